"""OME-TIFF: which pages are the slide, its levels and its colors, and how large a px is, by the OME-XML in page 0.

Brightfield slides only: 8-bit RGB, whose samples lie together, in planes of one page, or in three pages. Fluorescence,
focal planes, time and files of several scans are refused by name, never guessed at; that is why ome-types is not used.

Source: the OME-TIFF specification, https://docs.openmicroscopy.org/ome-model (6.x: levels as SubIFDs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lxml import etree

from slides.tiff.backends import MAX_STRIP_PX, PHOTOMETRICS, file_key, pyramid
from slides.tiff.spacing import UM_PER_NAME
from slides.tiff.tags import MAX_PAGES, Page, TagError, description, read_pages
from slides.tiff.tiled_tiff import JPEG, JPEG_2000, ZSTDS, open_planes, readable

MAX_XML_BYTES = 64 * 2**20
# Micrometers per unit of PhysicalSizeX; "pixel" and "reference frame" say nothing.
UM_PER_UNIT = UM_PER_NAME | {"": 1.0}
# Another image of at least this part of the slide's px, at an unknown spacing, is a scan of its own and no label.
SCAN_SHARE, SCAN_SPACING = 1 / 16, 1.5
# Share of px of a brightfield slide (glass, pale tissue) that are bright in all three channels; fluorescence has none.
BRIGHT, BRIGHT_SHARE, PROBES, PROBE_PX = 128, 0.02, 8, 32

_OME = re.compile(rb"<(\w+:)?OME[\s>]")
_ASSOCIATED = re.compile(r"\b(label|macro|overview|thumbnail|preview|barcode)\b", re.IGNORECASE)
_UNNAMED = re.compile(r"((channel|chan|ch|c)?[\s_:#.-]*\d*)(:\d+)*", re.IGNORECASE)
_NAMES = (("r", "red"), ("g", "green"), ("b", "blue"))
_COLORS = (0xFF0000, 0x00FF00, 0x0000FF)
_FLUORESCENT = {"ContrastMethod": "fluorescence", "IlluminationType": "epifluorescence"}
_EXPORT = "bfconvert -noflat -series {} -compression LZW -tilex 512 -tiley 512 IN OUT.ome.tif"


@dataclass(frozen=True)
class OmeSlide:
    """What an OME-TIFF holds.

    Attributes:
        planes: Levels, finest first, of each channel that has pages of its own; one tuple where all lie in one page.
        um_px_xy: Micrometers per level-0 px along x and y; None where neither OME-XML nor resolution tags say.
    """

    planes: tuple[tuple[Page, ...], ...]
    um_px_xy: tuple[float, float] | None


@dataclass(frozen=True)
class _Image:
    """One Image of the OME-XML: `pages` says which page of the file holds plane 0, 1, ...; `files` has their UUIDs."""

    number: int
    name: str
    kind: str
    size_xy: tuple[int, int]
    size_zct: tuple[int, int, int]
    um_px_xy: tuple[float, float] | None
    channels: tuple[etree._Element, ...]
    pages: dict[int, int]
    files: frozenset[str]


def ome_slide(path: Path) -> OmeSlide | None:
    """Find the slide in an OME-TIFF, None for any other TIFF.

    The slide is the largest image that is not called label, macro or the like. Its levels are its SubIFDs, and smaller
    images or pages that show the same field. Its spacing is PhysicalSizeX and -Y, as in Bio-Formats, OMERO and QuPath,
    else that of the resolution tags.

    Raises:
        ValueError: The OME-XML is broken, at odds with the pages or in another file, or the image is not 8-bit RGB or
            gray in one plane; the message says which and what to do.
        OSError: The file cannot be read.
    """
    text = description(path)
    if not _OME.search(text[:4096]):
        return None
    root = _parse(text)
    pages = read_pages(path)
    chain = {page.page: page for page in pages if page.subifd < 0}
    images = [_image(number, element, chain) for number, element in enumerate(root.iterfind("{*}Image"))]
    if not images:
        _refuse_binary_only(root)
        raise ValueError("its OME-XML has no Image; convert the original slide again")
    # The photograph of a glass can have more px than the scan of a small piece on it.
    scans = [image for image in images if not _ASSOCIATED.search(image.name)] or images
    slide = max(scans, key=lambda image: (image.size_xy[0] * image.size_xy[1], -image.number))
    _refuse_other_files(slide, root.get("UUID"))
    _refuse_stacks(slide)
    firsts = _level_0(slide, chain)
    _refuse_channels(slide, firsts)
    planes = tuple(pyramid(first, _others(at, first, images, pages)) for at, first in enumerate(firsts))
    if len({tuple(page.size_xy for page in levels) for levels in planes}) > 1:
        raise ValueError("damaged OME-TIFF: its channels have levels of different sizes; convert the original again")
    _refuse_scans(slide, images, {page.size_xy for page in planes[0]})
    for levels in planes:
        for page in levels:
            _refuse_encoding(page, all(map(readable, levels)))
    if firsts[0].samples == 3 and firsts[0].photometric == 1:
        # Tags that call the channels gray are the writer's want of knowledge: names or pixels say RGB.
        planes = (tuple(replace(page, photometric=2) for page in planes[0]),)
    if not _are_rgb(slide, firsts):
        _refuse_dark(path, planes)
    return OmeSlide(planes, slide.um_px_xy or firsts[0].um_px_xy)


# -------------------------------------------------------------------------------------------------------------- the XML


def _parse(text: bytes) -> etree._Element:
    repair = "repair it (tiffcomment -edit FILE) or convert the original slide again"
    if len(text) > MAX_XML_BYTES:
        raise ValueError(f"its OME-XML has {len(text)} bytes; at most {MAX_XML_BYTES} are read: {repair}")
    # Refused before parsing: entities could grow without bound.
    if b"<!DOCTYPE" in text.upper():
        raise ValueError("its OME-XML has a DOCTYPE, which OME-TIFF does not and entities could grow from: " + repair)
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        decoded = text.decode("latin-1")  # declared as UTF-8 all the same, with a micro sign of one byte
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, encoding="utf-8", remove_comments=True
    )
    try:
        return etree.fromstring(decoded.strip().encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise ValueError(f"its OME-XML is broken ({error}): {repair}") from error


def _image(number: int, element: etree._Element, chain: dict[int, Page]) -> _Image:
    pixels = element.find("{*}Pixels")
    if pixels is None:
        raise ValueError(f"its OME-XML has no Pixels in image {number}; convert the original slide again")
    x, y, z, c, t = (_number(pixels, f"Size{axis}") for axis in "XYZCT")
    files: set[str] = set()
    pages: dict[int, int] = {}
    blocks = pixels.findall("{*}TiffData")
    for block in blocks:
        plane, page = _number(block, "FirstC", 0), _number(block, "IFD", 0)
        # By the specification: all planes, but one where a page is given.
        count = _number(block, "PlaneCount", 1 if block.get("IFD") else _planes(page, chain, z * c * t))
        files |= {(uuid.text or "").strip() for uuid in block.iterfind("{*}UUID")}
        pages |= {plane + i: page + i for i in range(min(count, MAX_PAGES))}
    if not blocks and number == 0:
        # Written by hand, as is common with libvips.
        pages = {i: i for i in range(_planes(0, chain, z * c * t))}
    return _Image(
        number, element.get("Name") or "", (pixels.get("Type") or "").lower(), (x, y), (z, c, t), _spacing(pixels),
        tuple(pixels.iterfind("{*}Channel")), pages, frozenset(files),
    )  # fmt: skip


def _planes(page: int, chain: dict[int, Page], channels: int) -> int:
    """Number of pages that hold this many channels, from `page` on; bounded, as the XML may state any number."""
    samples = chain[page].samples if page in chain else 1
    return max(1, min(channels, MAX_PAGES) // samples)


def _number(element: etree._Element, name: str, default: int = -1) -> int:
    text = element.get(name)
    if text is None and default >= 0:
        return default
    if text is None or not re.fullmatch(r"\s*[0-9]{1,12}\s*", text):
        raise ValueError(f"damaged OME-XML: {name} is {text!r}, no whole number; convert the original slide again")
    return int(text)


def _spacing(pixels: etree._Element) -> tuple[float, float] | None:
    """Micrometers per px along x and y; None where they are absent, no lengths or not positive."""
    found = []
    for axis in "XY":
        unit = (pixels.get(f"PhysicalSize{axis}Unit") or "").strip()
        try:
            found.append(float(pixels.get(f"PhysicalSize{axis}") or "nan") * UM_PER_UNIT.get(unit, float("nan")))
        except ValueError:
            return None
    return (found[0], found[1]) if all(np.isfinite(value) and value > 0 for value in found) else None


# ------------------------------------------------------------------------------------------------------------ its pages


def _level_0(slide: _Image, chain: dict[int, Page]) -> tuple[Page, ...]:
    """The page of level 0, or those of its channels."""
    wanted = [slide.pages.get(plane, -1) for plane in range(_planes(slide.pages.get(0, -1), chain, slide.size_zct[1]))]
    if any(page not in chain for page in wanted) or len(set(wanted)) < len(wanted):
        raise TagError(
            f"its OME-XML wants pages {wanted[:8]}, the file has {len(chain)}: it is damaged, convert it again"
        )
    found = tuple(chain[page] for page in wanted)
    for page in found:
        if page.size_xy != slide.size_xy:
            raise ValueError(
                f"its OME-XML says {slide.size_xy[0]} x {slide.size_xy[1]} px, page {page.page} has "
                f"{page.size_xy[0]} x {page.size_xy[1]}; convert the original slide again"
            )
    return found


def _others(plane: int, first: Page, images: list[_Image], pages: tuple[Page, ...]) -> list[Page]:
    """Pages that may be levels of a channel: SubIFDs of its page, that of other images, pages that no image names."""
    named = {page for image in images for page in image.pages.values()}
    mine = {image.pages.get(plane) for image in images if not _ASSOCIATED.search(image.name)}
    return [
        page
        for page in pages
        if (page.subifd >= 0 and page.page == first.page)
        or (page.subifd < 0 and page != first and (page.page in mine or page.page not in named))
    ]


# ------------------------------------------------------------------------------------------------------ what is refused


def _refuse_binary_only(root: etree._Element) -> None:
    only = root.find("{*}BinaryOnly")
    if only is not None:
        name = only.get("MetadataFile") or "another file"
        raise ValueError(
            f"it is a part of an OME-TIFF of several files, described in {name}; join them: "
            f"bfconvert {name} OUT.ome.tif"
        )


def _refuse_other_files(slide: _Image, own: str | None) -> None:
    """Planes in other files; a file that was renamed still has its own UUID, whatever name stands beside it."""
    others = slide.files - {own} if own else slide.files
    if others and (own or len(others) > 1):
        raise ValueError(
            f"it is a part of an OME-TIFF of several files, {len(slide.files)} for this image; join them: "
            "bfconvert IN OUT.ome.tif"
        )


def _refuse_stacks(slide: _Image) -> None:
    z, _, t = slide.size_zct
    if z > 1 or t > 1:
        raise ValueError(
            f"it has {z} focal planes and {t} points in time; slides have one: keep one, counted from 0, with "
            "bfconvert -z 0 -timepoint 0 IN OUT.ome.tif"
        )


def _refuse_channels(slide: _Image, firsts: tuple[Page, ...]) -> None:
    """Anything but 8-bit gray, RGB or RGBA; three channels that are said to be others than red, green and blue."""
    if slide.kind != "uint8" or any(page.bits != 8 for page in firsts):
        raise ValueError(
            f"samples are {slide.kind or 'of an unknown type'} ({firsts[0].bits} bits), only 8-bit images are read; "
            "convert the file to 8 bit"
        )
    names = ", ".join(repr(channel.get("Name") or "") for channel in slide.channels[:8])
    samples = {page.samples for page in firsts}
    gray = all(page.photometric == 1 for page in firsts)
    said = slide.size_zct[1] in (1, sum(page.samples for page in firsts))
    known = (len(firsts), *samples) in ((1, 1), (1, 3), (1, 4), (3, 1)) and not (samples == {4} and gray)
    if not (said and known):
        raise ValueError(
            f"it has {slide.size_zct[1]} channels ({names}) in {len(firsts)} pages, not red, green and blue: "
            "fluorescence is not read"
        )
    if samples in ({3}, {4}) and not gray:
        return
    if (samples == {3} or len(firsts) == 3) and any(map(_says_other, slide.channels, range(len(slide.channels)))):
        raise ValueError(
            f"its channels ({names}) are not said to be red, green and blue: fluorescence is not read. If they are, "
            "call them Red, Green, Blue (tiffcomment -edit FILE) or write RGB with raw2ometiff --rgb"
        )


def _says_other(channel: etree._Element, number: int) -> bool:
    """Whether the OME-XML gives a channel a name, color or light that the `number`-th of RGB does not have."""
    name = (channel.get("Name") or "").strip().lower()
    wavelengths = ("EmissionWavelength", "ExcitationWavelength", "Fluor")
    if any(channel.get(key) for key in wavelengths):
        return True
    if any((channel.get(key) or "").lower() == value for key, value in _FLUORESCENT.items()):
        return True
    if not _UNNAMED.fullmatch(name):
        return number > 2 or name not in _NAMES[number]
    # RGBA, signed. White, gray and nothing say nothing; nor do red, green, blue in this order, which programs give to
    # any three channels.
    try:
        color = (int(channel.get("Color") or "-1") & 0xFFFFFFFF) >> 8
    except ValueError:
        return True
    return color not in (0xFFFFFF, 0x808080, 0, _COLORS[min(number, 2)])


def _are_rgb(slide: _Image, firsts: tuple[Page, ...]) -> bool:
    """Whether tags or names say RGB (or gray): three channels without names may also be fluorescence."""
    if len(firsts) == 1 and (firsts[0].samples != 3 or firsts[0].photometric != 1):
        return True
    names = [(channel.get("Name") or "").strip().lower() for channel in slide.channels]
    return len(names) == 3 and all(name in allowed for name, allowed in zip(names, _NAMES, strict=True))


def _refuse_dark(path: Path, planes: tuple[tuple[Page, ...], ...]) -> None:
    """Look at the coarsest level: brightfield is bright in all three channels somewhere, fluorescence is not."""
    level = len(planes[0]) - 1
    width, height = planes[0][level].size_xy
    backend = open_planes(path, file_key(path), planes)
    bright = total = 0
    try:
        for y in sorted({int(v) for v in np.linspace(0, max(height - PROBE_PX, 0), PROBES)}):
            for x in sorted({int(v) for v in np.linspace(0, max(width - PROBE_PX, 0), PROBES)}):
                hw = min(PROBE_PX, height - y), min(PROBE_PX, width - x)
                probe_HWC = backend.fetch(level, (x, y), hw)[0]
                bright += int((probe_HWC.min(axis=2) >= BRIGHT).sum())
                total += hw[0] * hw[1]
    finally:
        backend.close()
    if bright < BRIGHT_SHARE * total:
        raise ValueError(
            "its three channels have no names and are dark as in fluorescence, which is not read. If they are red, "
            "green and blue, call them so (tiffcomment -edit FILE) or write RGB with raw2ometiff --rgb"
        )


def _refuse_scans(slide: _Image, images: list[_Image], levels: set[tuple[int, int]]) -> None:
    """A second image like the slide, that is no level of it, nor its label or overview."""
    for other in images:
        if other is slide or _ASSOCIATED.search(other.name) or (other.size_xy in levels - {slide.size_xy}):
            continue
        if slide.um_px_xy and other.um_px_xy:
            alike = other.um_px_xy[0] < SCAN_SPACING * slide.um_px_xy[0]
        else:
            alike = other.size_xy[0] * other.size_xy[1] >= SCAN_SHARE * slide.size_xy[0] * slide.size_xy[1]
        if alike:
            raise ValueError(
                f"it holds several scans: image {slide.number} {slide.name!r} of {slide.size_xy}, image {other.number} "
                f"{other.name!r} of {other.size_xy} px; write each into a file: {_EXPORT.format(other.number)}"
            )


def _refuse_encoding(page: Page, own: bool) -> None:
    """What neither libvips nor our decoder reads, or reads in wrong colors."""
    again = "write the file again: " + _EXPORT.format(0)
    if page.photometric not in PHOTOMETRICS:
        raise ValueError(f"PhotometricInterpretation {page.photometric}; read are gray, RGB and YCbCr: {again}")
    if not page.tiled and page.size_xy[0] * page.size_xy[1] > MAX_STRIP_PX:
        raise ValueError(f"it has no tiles and {page.size_xy[0]} x {page.size_xy[1]} px, more than 64 Mpx: {again}")
    if page.tiled and page.planar == 2 and page.photometric == 6:
        raise ValueError(f"YCbCr in planes is not read: {again}")
    if not page.tiled and page.compression in (*JPEG_2000, *ZSTDS):
        raise ValueError(f"compression {page.compression} is read in tiles only, not in strips: {again}")
    # Bio-Formats calls YCbCr RGB here. The own decoder asks the streams; libvips, which reads the rest, believes it.
    if not own and page.compression == JPEG and (page.samples, page.planar, page.photometric) == (3, 1, 2):
        raise ValueError(f"JPEG in strips or beside another compression, that may be RGB or YCbCr: {again}")
