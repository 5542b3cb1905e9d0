"""Whole images of slides, read in windows: from a folder, from a tar in place, or straight from the slides.

Of a tiled file only the tiles under a window are decoded. JPEG and PNG have no tiles: they are decoded once when their
first px is read, and kept as long as the image is in use: small ones in memory, others in a scratch file without name.

Shapes: H rows, W columns, C = 3 channels (RGB, uint8); R, S rows and columns of a sampling mask. Frames: px of the
image; level-0 px of its slide.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classification.image_files import SUFFIXES, Interval, Pixels, Place, Read, opened, pack_members, read_mask
from cohorts.pairing import Case, is_mask, named
from cohorts.staging import Staging
from slides.geometry import Pair, Points, Trim, l0_from_trimmed
from slides.names import composed
from slides.reader import WHITE, SlideError
from slides.trimming import trim_of

IMAGES, MASKS, MANIFEST = "images", "masks", "manifest.csv"
STEPS = ("extract_tissue", "trim_tissue")
USUAL_STEP = 16  # px of the image per cell, what extract_tissue takes unless told otherwise


@dataclass(frozen=True, eq=False)
class WholeImage:
    """One image, read in windows.

    Attributes:
        name: id of its slide.
        hw: rows and columns.
        read_inside: gives the px (H, W, C) of rows and columns (first, end) inside the image.
        mask_RS: float32, how much each cell of the image is worth looking at; None if there is no mask.
        mask_step: px of the image per cell of the mask.
        trim: from px of the image to level-0 px of its slide; None if px of the image are all there is.
        um_px: um per px; None if not known.
        size_xy_l0: width and height of its slide, level-0 px; without a trim those of the image.
        um_px_xy_l0: um per level-0 px along x and y; None if not known.
        where: the file, for messages.
    """

    name: str
    hw: tuple[int, int]
    read_inside: Read
    mask_RS: NDArray[np.float32] | None = None
    mask_step: int = 1
    trim: Trim | None = None
    um_px: float | None = None
    size_xy_l0: tuple[int, int] = (0, 0)
    um_px_xy_l0: Pair | None = None
    where: str = ""

    def __post_init__(self) -> None:
        """An image without a slide is its own level 0."""
        if self.size_xy_l0 == (0, 0):
            object.__setattr__(self, "size_xy_l0", self.hw[::-1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """1, H, W and C, as of `streaming.images.Source`."""
        return 1, *self.hw, 3

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """The image (1, rows, columns, C) in two intervals of px; white outside.

        Raises:
            SlideError: it cannot be decoded; the message names the file.
        """
        (top, bottom), (left, right) = (
            (max(first, 0), min(end, size)) for (first, end), size in zip((rows, columns), self.hw, strict=True)
        )
        hw = rows[1] - rows[0], columns[1] - columns[0]
        if top >= bottom or left >= right:
            return np.full((1, *hw, 3), WHITE, np.uint8)
        inside_HWC = self.read_inside((top, bottom), (left, right))
        if inside_HWC.shape[:2] == hw:
            return inside_HWC[None]
        image_BHWC = np.full((1, *hw, 3), WHITE, np.uint8)
        image_BHWC[0, top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = inside_HWC
        return image_BHWC

    def l0_from_image(self, xy: ArrayLike) -> Points:
        """Level-0 px of points given in px of the image; both (..., 2), last axis (x, y)."""
        return np.asarray(xy, np.float64) if self.trim is None else l0_from_trimmed(self.trim, xy)


@dataclass(frozen=True)
class Files:
    """What belongs to one slide.

    Attributes:
        image: its image, or the slide.
        mask: its sampling mask.
        trim: the map of its rows and columns to level 0.
        mask_step: px of the image per cell of the mask; None if not stated.
    """

    image: Place
    mask: Place | None = None
    trim: Place | None = None
    mask_step: int | None = None

    def moved(self, image: Path, mask: Path | None) -> Files:
        """The same with copies of the image's and the mask's file; the map is small, and copied only within a tar."""
        trim = self.trim.moved(image) if self.trim and self.trim.path == self.image.path else self.trim
        moved_mask = self.mask.moved(mask) if self.mask and mask else None
        return replace(self, image=self.image.moved(image), mask=moved_mask, trim=trim)


@dataclass(frozen=True)
class Images:
    """The images of a data set; see `in_folder`, `in_tar` and `slide_images.of_slides`.

    Attributes:
        files: of each id, in order.
        opener: opens the image of an id.
        where: where they are, for messages.
        probe: like `opener`, as far as it is quick; None: `opener` is.
    """

    files: Mapping[str, Files]
    opener: Callable[[str, Files], WholeImage]
    where: str
    probe: Callable[[str, Files], None] | None = None

    @property
    def ids(self) -> list[str]:
        """Ids of the slides, in order."""
        return list(self.files)

    def open(self, slide_id: str) -> WholeImage:
        """Open an image. Quick, but for slides, whose tissue is looked for at the first time.

        Raises:
            SlideError: it cannot be read; the message names the file.
            KeyError: there is no such image.
        """
        return self.opener(slide_id, self.files[slide_id])

    def faults(self, ids: Iterable[str]) -> list[str]:
        """What is wrong with images, one line each, so that a run can say it before it starts; milliseconds per image.

        Px are not decoded: damage in the middle of an image shows when it is read.
        """
        return [fault for fault in map(self._fault, ids) if fault]

    def _fault(self, name: str) -> str:
        try:
            (self.probe or self.opener)(name, self.files[name])
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def staged(self, staging: Staging) -> tuple[Images, str]:
        """The images with their files copied to the node, and a line on what was copied.

        Raises:
            OSError: a file could not be copied.
        """
        # The second file of a case is called its label.
        cases = [Case(name, of.image.path, of.mask.path if of.mask else None) for name, of in self.files.items()]
        moved, line = staging.copy(cases)
        files = {
            case.slide_id: of.moved(case.slide_path, case.label_path)
            for case, of in zip(moved, self.files.values(), strict=True)
        }
        return replace(self, files=files), line


def in_folder(folder: Path, scratch: Path | None = None) -> Images:
    """Images of a folder: what `extract_tissue` or `trim_tissue` wrote, or any TIFF, slide, JPEG or PNG, at level 0.

    Args:
        folder: OUT, OUT/extract_tissue, or a folder of images, with sampling masks of the same names in a folder
            `masks` beside or in it.
        scratch: folder for decoded JPEG and PNG; None: that of the system for temporary files.

    Raises:
        ValueError: the folder does not exist, has no images, or two of one id.
    """
    if not folder.is_dir():
        raise ValueError(f"--data_dir {folder} is not a folder; give the folder that extract_tissue wrote, or images")
    root = next((folder / step for step in STEPS if (folder / step).is_dir()), folder)
    home = root / IMAGES if (root / IMAGES).is_dir() else root
    places = [Place(path) for place in (home, root / MASKS, home.parent / MASKS) for path in _files(place)]
    manifest = next((path for path in (root / MANIFEST, home.parent / MANIFEST) if path.is_file()), None)
    steps = mask_steps(Place(manifest)) if manifest else {}
    return _sorted_out(dict.fromkeys(places), steps, f"--data_dir {home}", scratch)


def in_tar(path: Path, scratch: Path | None = None) -> Images:
    """Images in a tar, read in place: one of `pack`, or any uncompressed one; or in all tars of a folder (shards).

    Args:
        path: the tar, or a folder of tars.
        scratch: see `in_folder`.

    Raises:
        ValueError: there is no tar, it is cut or damaged, has no images, or two of one id.
    """
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not tars:
        raise ValueError(f"--data_tar {path} has no .tar file; give a tar, or the folder of its shards")
    places = [Place(tar, name) for tar in tars for name in pack_members(tar)]
    steps: dict[str, int] = {}
    for place in places:
        if PurePosixPath(place.member).name == MANIFEST:
            steps |= mask_steps(place)
    return _sorted_out(places, steps, f"--data_tar {path}", scratch)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be listed: {error.strerror}; check its permissions") from error


def _sorted_out(places: Iterable[Place], steps: Mapping[str, int], where: str, scratch: Path | None) -> Images:
    """Images, masks and maps of each slide, by name."""
    images: dict[str, list[Place]] = {}
    masks: dict[str, list[Place]] = {}
    trims: dict[str, list[Place]] = {}
    for place in places:
        path = PurePosixPath(place.member or place.path.as_posix())
        stem = composed(path.stem)
        if path.name.startswith("."):
            continue  # macOS leaves ._x.tif beside x.tif
        if path.suffix.lower() == ".json":
            trims.setdefault(stem, []).append(place)
        elif path.name.lower().endswith(SUFFIXES) and not is_mask(Path(path.name)):
            # SLIDE_mask.tif is the truth of a slide, wherever it lies, not where to look.
            (masks if path.parent.name == MASKS else images).setdefault(stem, []).append(place)
    if not images:
        raise ValueError(f"{where} has no image ({', '.join(SUFFIXES[:5])} or a slide); give a folder or tar of images")
    for kind in (images, masks):
        twice = next((found for found in kind.values() if len(found) > 1), None)
        if twice:
            raise ValueError(f"{where} has two files of one name: {named(map(str, twice))}; keep one")

    def first(found: Mapping[str, list[Place]], name: str) -> Place | None:
        return found[name][0] if name in found else None

    files = {
        name: Files(found[0], first(masks, name), first(trims, name), steps.get(name))
        for name, found in sorted(images.items())
    }

    def opener(name: str, of: Files) -> WholeImage:
        return whole_image(name, of, scratch)

    return Images(files, opener, where)


def mask_steps(place: Place) -> dict[str, int]:
    """Px of the image per cell of the mask, by id, as the manifest of `extract_tissue` has them.

    Raises:
        ValueError: it cannot be read.
    """
    rows = csv.DictReader(io.StringIO(place.text(), newline=""))
    try:
        return {composed(row["slide_id"]): int(row["mask_step"]) for row in rows if row.get("mask_step")}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{place} is not a manifest of extract_tissue: {error!r}; remove or replace it") from error


def whole_image(name: str, of: Files, scratch: Path | None = None) -> WholeImage:
    """Open the image of a slide with its mask and its map.

    Raises:
        SlideError: a file cannot be read, or they do not belong together.
    """
    part = opened(of.image, scratch)
    mask_RS = None if of.mask is None else read_mask(of.mask)
    step = 1 if mask_RS is None else mask_step(part.hw, mask_RS.shape, of.mask_step, f"{of.mask} of {of.image}")
    um_px = None if part.um_px_xy is None else sum(part.um_px_xy) / 2
    image = WholeImage(
        name, part.hw, part.read, mask_RS, step, None, um_px, um_px_xy_l0=part.um_px_xy, where=f"{of.image}"
    )
    return image if of.trim is None else _on_its_slide(image, of.trim)


def _on_its_slide(image: WholeImage, place: Place) -> WholeImage:
    """The image with the map of its rows and columns to the slide."""
    try:
        text = place.text()
        trim = trim_of(text, str(place))
        stored = json.loads(text)
        (width, height), (um_x, um_y) = stored["size_xy_l0"], stored["um_px_xy_l0"]
        um_px = float(np.mean(stored["um_px_xy_trim"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SlideError(f"{error}; remove {place}, or write image and map again") from error
    if trim.size_xy_trim != image.hw[::-1]:
        raise SlideError(
            f"{place} is of an image of {trim.size_xy_trim} px (x, y), but {image.where} has {image.hw[::-1]}: "
            "write both again"
        )
    size_xy_l0, um_px_xy_l0 = (int(width), int(height)), (float(um_x), float(um_y))
    return replace(image, trim=trim, um_px=um_px, size_xy_l0=size_xy_l0, um_px_xy_l0=um_px_xy_l0)


def mask_step(hw: tuple[int, int], mask_hw: tuple[int, ...], stated: int | None, where: str) -> int:
    """Px of the image per cell of its mask, by their sizes; if several fit, that of `extract_tissue`, or a power of 2.

    Args:
        hw: rows and columns of the image.
        mask_hw: of the mask.
        stated: what the manifest says.
        where: for messages.

    Raises:
        SlideError: no whole number fits, or the stated one does not.
    """
    low = max(-(-size // cells) for size, cells in zip(hw, mask_hw, strict=True))
    fitting = [
        step
        for step in ([stated] if stated else range(max(1, low), max(hw) + 1))
        if all(-(-size // step) == cells for size, cells in zip(hw, mask_hw, strict=True))
    ]
    if not fitting:
        said = f" with {stated} px per cell" if stated else ""
        raise SlideError(
            f"mask {where}: {mask_hw} cells{said} do not fit {hw} px (rows, columns); write the mask again"
        )
    return min(fitting, key=lambda step: (step != USUAL_STEP, step & (step - 1) != 0, step))
