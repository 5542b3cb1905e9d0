"""OME-TIFF that is no brightfield slide, damaged or hostile: refused in one line that says what to do."""

import re

import numpy as np
import pytest
import tifffile

from slides.reader import Slide, SlideError
from slides.tiff import ome, tiled_tiff
from tests.support.ome_files import (
    APERIO_YCBCR,
    JPEG,
    JPEG_2000,
    LAYOUTS,
    LZW,
    TILE,
    UM,
    ZSTD,
    check,
    edited,
    picture,
    renumbered,
    smooth,
    stream,
    tiles,
    write,
)


def channels(*names, **more):
    return {"metadata": {"Channel": {"Name": list(names)} | more}}


def test_jpeg_2000_that_may_be_ycbcr_is_refused(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        data = list(tiles(picture()[None], JPEG_2000))  # without the transform of the standard
        options = {"shape": (150, 201, 3), "dtype": np.uint8, "tile": (TILE, TILE), "compression": 8}
        tiff.write(iter(data), photometric="rgb", metadata={"axes": "YXS"} | UM, **options)
    renumbered(path, APERIO_YCBCR)
    with pytest.raises(SlideError, match="JPEG 2000 that may be YCbCr or RGB; write the file again: bfconvert"):
        Slide(path)


def test_several_scans_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        for number in range(2):
            image = picture(201 - number, 150)
            tiff.write(image, photometric="rgb", metadata={"axes": "YXS", "Name": f"scan {number}"} | UM)
    with pytest.raises(SlideError, match=r"several scans: .*'scan 0' of \(201, 150\).*bfconvert -noflat -series 1"):
        Slide(tmp_path / "a.ome.tif")


def test_named_red_green_and_blue_are_read_even_when_dark(tmp_path):
    path = write(tmp_path / "a.ome.tif", picture() - 128, "pages", **channels("Red", "Green", "Blue"))
    check(path, picture() - 128)


DARK = "no names and are dark as in fluorescence.*raw2ometiff --rgb"


@pytest.mark.parametrize(
    ("options", "dark", "message"),
    [
        (channels("DAPI", "FITC", "TRITC"), False, "'DAPI', 'FITC', 'TRITC'.*fluorescence is not read"),
        (channels("Blue", "Green", "Red"), False, "not said to be red, green and blue"),
        (channels("", "", "", Color=[65535, 16711935, -16776961]), False, "not said to be red, green and blue"),
        (channels("", "", "", EmissionWavelength=[460, 520, 600]), False, "not said to be red, green and blue"),
        (channels("", "", "", Color=[-16776961, 16711935, 65535]), True, DARK),
        (channels("Channel 0", "C:1", "2"), True, DARK),
        ({}, True, DARK),
    ],
)
def test_three_channels_that_are_not_rgb_are_refused(tmp_path, options, dark, message):
    path = write(tmp_path / "a.ome.tif", picture() - (128 if dark else 0), "pages", **options)
    with pytest.raises(SlideError, match=rf"a\.ome\.tif cannot be opened: .*{message}"):
        Slide(path)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_that_the_tags_call_gray(tmp_path, planar, dark):
    image = picture() - (128 if dark else 0)
    data, axes = (image, "YXS") if planar == "contig" else (np.ascontiguousarray(image.transpose(2, 0, 1)), "SYX")
    options = {"photometric": "minisblack", "planarconfig": planar, "tile": (TILE, TILE)}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": axes} | UM, **options)
    if not dark:
        check(tmp_path / "a.ome.tif", image)
        return
    with pytest.raises(SlideError, match=DARK):
        Slide(tmp_path / "a.ome.tif")


@pytest.mark.parametrize(
    ("shape", "axes", "dtype", "message"),
    [
        ((4, 150, 201), "CYX", np.uint8, "4 channels .* in 4 pages, not red, green and blue: fluorescence is not read"),
        ((2, 150, 201), "CYX", np.uint8, "2 channels"),
        ((3, 150, 201), "CYX", np.uint16, r"samples are uint16 \(16 bits\), only 8-bit images are read"),
        ((150, 201, 3), "YXS", np.uint16, "only 8-bit images are read"),
        ((150, 201, 3), "YXS", np.float32, "samples are float .*only 8-bit"),
        ((5, 150, 201), "ZYX", np.uint8, "5 focal planes and 1 points in time.*bfconvert -z 0 -timepoint 0"),
        ((3, 150, 201), "ZYX", np.uint8, "3 focal planes"),
        ((5, 150, 201, 3), "ZYXS", np.uint8, "5 focal planes"),
        ((3, 150, 201), "TYX", np.uint8, "1 focal planes and 3 points in time"),
    ],
)
def test_what_is_no_brightfield_slide_is_refused(tmp_path, shape, axes, dtype, message):
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    options = {"ome": True, "photometric": photometric, "tile": (TILE, TILE), "metadata": {"axes": axes} | UM}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.full(shape, 200, dtype), **options)
    with pytest.raises(SlideError, match=rf"a\.ome\.tif cannot be opened: .*{message}"):
        Slide(tmp_path / "a.ome.tif")


def test_four_channels_side_by_side_are_no_alpha(tmp_path):
    options = {"ome": True, "photometric": "minisblack", "planarconfig": "contig", "tile": (TILE, TILE)}
    tifffile.imwrite(tmp_path / "a.ome.tif", picture(channels=4), metadata={"axes": "YXS"} | UM, **options)
    with pytest.raises(SlideError, match="4 channels"):
        Slide(tmp_path / "a.ome.tif")


def test_channels_on_one_page_are_damage(tmp_path):
    blocks = "".join(f'<TiffData FirstC="{channel}" PlaneCount="1"/>' for channel in range(3))
    path = edited(write(tmp_path / "a.ome.tif", picture(), "pages"), "<TiffData[^>]*>", blocks)
    with pytest.raises(SlideError, match=r"wants pages \[0, 0, 0\], the file has 3"):
        Slide(path)


def test_jpeg_beside_another_compression_is_refused_where_colors_are_unsure(tmp_path):
    path = write(tmp_path / "a.ome.tif", smooth(), compression=JPEG, subifds=True)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].pages[1].tags[259].overwrite(LZW)
    with pytest.raises(SlideError, match="may be RGB or YCbCr: write the file again"):
        Slide(path)


@pytest.mark.parametrize("compression", [ZSTD, JPEG_2000])
def test_tiles_of_absurd_sizes_are_an_error(tmp_path, compression):
    path = write(tmp_path / "a.ome.tif", picture(TILE, TILE), compression=compression)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[322].overwrite(2**16 - 16)
        tiff.pages[0].tags[323].overwrite(2**16 - 16)
    with pytest.raises(SlideError, match="tile in row 0, column 0"):
        Slide(path)


def test_files_in_parts_are_refused_and_renamed_ones_read(tmp_path):
    data = "<TiffData[^>]*/>"
    one = '<TiffData IFD="0"><UUID FileName="old.ome.tif">urn:uuid:{}</UUID></TiffData>'
    path = write(tmp_path / "own.ome.tif", picture())
    own = re.search('urn:uuid:([^"]*)', tifffile.tiffcomment(path))[1]
    check(edited(path, data, one.format(own)), picture())
    path = edited(write(tmp_path / "other.ome.tif", picture()), data, one.format("1"))
    with pytest.raises(SlideError, match=r"OME-TIFF of several files.*join them: bfconvert"):
        Slide(path)
    path = edited(
        write(tmp_path / "only.ome.tif", picture()),
        "(?s)<Image.*</Image>",
        '<BinaryOnly MetadataFile="x.companion.ome"/>',
    )
    with pytest.raises(SlideError, match=r"described in x\.companion\.ome; join them: bfconvert"):
        Slide(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</Image>", "", "OME-XML is broken .*repair it"),
        ("(?s)<Pixels.*", "", "OME-XML is broken"),
        ("(?s)<Pixels.*</Pixels>", "", "no Pixels in image 0"),
        ("(?s)<Image.*</Image>", "", "no Image"),
        ('SizeX="201"', 'SizeX="200"', r"says 200 x 150 px, page 0 has 201 x 150"),
        ('SizeX="201"', 'SizeX="many"', "SizeX is 'many', no whole number"),
        ('SizeX="201"', "", "SizeX is None"),
        ('SizeZ="1"', f'SizeZ="{10**11}"', "focal planes"),
        ('SizeC="3"', f'SizeC="{10**11}"', "wants pages"),
        ('SizeC="3"', 'SizeC="4"', "4 channels"),
        ('PlaneCount="1"', f'PlaneCount="{10**11}"', None),
        ('IFD="0"', 'IFD="7"', "wants pages .7.*damaged"),
        ('<TiffData[^>]*>', "", None),
        ('<TiffData[^>]*>', "<TiffData/>", None),
        ("<OME", '<!DOCTYPE a [<!ENTITY b "cccc"><!ENTITY d "&b;&b;&b;">]><OME', "DOCTYPE"),
        ("<OME", '<!doctype a SYSTEM "file:///etc/passwd"><OME', "DOCTYPE"),
        ('Type="uint8"', "", "samples are of an unknown type"),
        ('Type="uint8"', 'Type="uint16"', "samples are uint16"),
        ("<Image ", b'<Image Description="1 \xb5m" ', None),
        ('xmlns="[^"]*"', 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2011-06"', None),
    ],
)  # fmt: skip
def test_broken_and_odd_xml(tmp_path, old, new, message):
    path = edited(write(tmp_path / "a.ome.tif", picture(), subifds=True), old, new)
    if message is None:
        check(path, picture(), 3)
        return
    with pytest.raises(SlideError, match=rf"a\.ome\.tif cannot be opened: .*{message}") as raised:
        Slide(path)
    assert "\n" not in str(raised.value)


def test_xml_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ome, "MAX_XML_BYTES", 100)
    with pytest.raises(SlideError, match="at most 100 are read"):
        Slide(write(tmp_path / "a.ome.tif", picture()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_file_is_refused_wherever_it_ends(tmp_path, layout):
    whole = write(tmp_path / "whole.ome.tif", picture(), layout, subifds=True).read_bytes()
    for length in [0, 3, 9, *np.linspace(20, len(whole) - 1, 25).astype(int)]:
        (tmp_path / "a.ome.tif").write_bytes(whole[:length])
        with pytest.raises(SlideError, match=r"a\.ome\.tif"):
            Slide(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("compression", [LZW, ZSTD, JPEG_2000, JPEG])
def test_a_damaged_tile_of_a_plane_is_an_error_there_and_only_there(tmp_path, compression):
    path = write(tmp_path / "a.ome.tif", picture(), "planes", compression=compression)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[12 + 5], page.databytecounts[12 + 5]  # 4 x 3 tiles a plane: green, row 1
    tiled_tiff.tile_cache.resize(0)
    try:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(count))
        slide = Slide(path)
        with pytest.raises(SlideError, match="tile in row 1, column 1"):
            slide.read_level(0, (70, 70), (8, 8))
        expected = picture()[70:78, 130:138].astype(int)
        assert np.abs(slide.read_level(0, (130, 70), (8, 8)) - expected).max() <= (0 if compression != JPEG else 40)
    finally:
        tiled_tiff.tile_cache.resize(tiled_tiff.CACHE_BYTES)


@pytest.mark.parametrize("compression", [JPEG, JPEG_2000, ZSTD])
def test_strips_that_cannot_be_read_say_what_to_do(tmp_path, compression):
    path = tmp_path / "a.ome.tif"
    image = picture(TILE, TILE)
    options = {"shape": image.shape, "dtype": np.uint8, "rowsperstrip": TILE, "compression": 8}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(iter([stream(image, compression)]), photometric="rgb", metadata={"axes": "YXS"} | UM, **options)
    renumbered(path, compression)
    with pytest.raises(SlideError, match=r"in strips.*: write the file again: bfconvert"):
        Slide(path)
