"""Small OME-TIFFs in every layout, for tests; tifffile writes them, also where it has not the codec."""

import io
import re

import numpy as np
import PIL.Image
import simplejpeg
import tifffile

from slides.reader import Slide

TILE = 64
UM = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
LZW, JPEG, ZSTD, APERIO_YCBCR, JPEG_2000 = 5, 7, 50000, 33003, 34712
LAYOUTS = ["together", "planes", "pages"]


def picture(width=201, height=150, channels=3):
    """Every px and channel differs from its neighbors; bright as a slide is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + (x * (c + 1) + 3 * y + 40 * c) % 128 for c in range(channels)], -1).astype(np.uint8)


def smooth():
    y, x = np.mgrid[:150, :201]
    return np.stack([255 - x // 2, 200 - y // 3, 150 + (x + y) // 6], -1).astype(np.uint8)


def levels_of(image, number=3):
    return [image[:: 2**n, :: 2**n] for n in range(number)]


def stream(tile, compression):
    """The bytes of one compressed tile."""
    buffer = io.BytesIO()
    if compression == JPEG:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(tile), 90, "GRAY" if tile.shape[-1] == 1 else "RGB", "420")
    picture = PIL.Image.fromarray(tile[..., 0] if tile.shape[-1] == 1 else tile)
    if compression in (APERIO_YCBCR, JPEG_2000):
        picture.save(buffer, "JPEG2000", no_jp2=True, mct=compression != JPEG_2000 and tile.shape[-1] == 3)
        return buffer.getvalue()
    picture.save(buffer, "TIFF", compression={LZW: "tiff_lzw", ZSTD: "zstd"}[compression])
    tags = PIL.Image.open(io.BytesIO(buffer.getvalue())).tag_v2
    assert len(tags[273]) == 1
    return buffer.getvalue()[tags[273][0] : tags[273][0] + tags[279][0]]


def tiles(image, compression):
    """Compressed tiles of an image (planes, H, W, samples), plane by plane."""
    for plane in image:
        high, wide = (-(-side // TILE) * TILE for side in plane.shape[:2])
        whole = np.pad(plane, ((0, high - plane.shape[0]), (0, wide - plane.shape[1]), (0, 0)), mode="edge")
        for y in range(0, high, TILE):
            for x in range(0, wide, TILE):
                yield stream(whole[y : y + TILE, x : x + TILE], compression)


def write(path, image, layout="together", tile=True, compression=None, subifds=False, number=3, **options):
    """Write an OME-TIFF.

    `layout` is "together" (RGBRGB), "planes" (PlanarConfig 2) or "pages" (a page per channel).
    """
    metadata = {"axes": {"together": "YXS", "planes": "SYX", "pages": "CYX"}[layout]} | UM | options.pop("metadata", {})
    writer = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
    shared = {
        "photometric": "minisblack" if layout == "pages" else "rgb",
        "planarconfig": {"together": "contig", "planes": "separate", "pages": None}[layout],
        "tile": (TILE, TILE) if tile else None,
        "compression": 8 if isinstance(compression, int) else compression,
    } | options
    with tifffile.TiffWriter(path, ome=True, **writer) as tiff:
        for index, level in enumerate(levels_of(image, number if subifds else 1)):
            data = level if layout == "together" else np.ascontiguousarray(level.transpose(2, 0, 1))
            if isinstance(compression, int):
                parts = level[None] if layout == "together" else data[..., None]
                more = {"data": tiles(parts, compression), "shape": data.shape, "dtype": np.uint8}
            else:
                more = {"data": data}
            more |= {"subifds": number - 1, "metadata": metadata} if subifds and index == 0 else {"metadata": metadata}
            if index:
                more |= {"subfiletype": 1, "metadata": None}
            tiff.write(**more, **shared)
    return renumbered(path, compression) if isinstance(compression, int) else path


def renumbered(path, compression):
    """Say by which number tiles are compressed: tifffile writes none that it cannot encode itself."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            for one in [page, *(page.pages or ())]:
                one.tags[259].overwrite(compression)
    return path


def check(path, image, number=1, tolerance=0):
    """All levels, and windows of them across tiles, are those of the image."""
    slide = Slide(path)
    assert [level.size_xy for level in slide.levels] == [(lv.shape[1], lv.shape[0]) for lv in levels_of(image, number)]
    for level, expected in enumerate(levels_of(image, number)):
        read = slide.read_level(level, (0, 0), expected.shape[:2])
        assert np.abs(read.astype(int) - expected).max() <= tolerance
        np.testing.assert_array_equal(slide.read_level(level, (13, 7), (25, 35)), read[7:32, 13:48])
    return slide


def edited(path, old, new):
    """Replace text of the OME-XML, bytes allowed."""
    old, new = (text if isinstance(text, bytes) else text.encode() for text in (old, new))
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages[0].tags[270].value.encode()
    assert re.search(old, text)
    tifffile.tiffcomment(path, re.sub(old, new, text))
    return path
