"""Which values masks hold, and which class each value is of, decided over all masks of a data set.

Masks say nothing about their values: 0/1 and 0/255 call tumor what is not 0, but CAMELYON's official masks hold 0
background, 1 tissue and 2 tumor, and in those of negative slides 2 is absent. So the whole set decides.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from slides.tiff.backends import READ_ERRORS, file_key
from slides.tiff.tags import tile_layout
from slides.truth.label import IGNORE
from slides.truth.mask_file import THRESHOLD, MaskFile

BLOCK = 2048  # largest side of the parts that are counted, px
CAMELYON_VALUES = {0: 0, 1: 0, 2: 1}
# Slides as the organizers name them, with what is added for their masks.
_CAMELYON_NAME = re.compile(r"((tumor|normal|test)_\d+|patient_\d+_node_\d+)(_mask)?(\.ome)?", re.IGNORECASE)
_PLAIN = ({0, 1}, {0, 255})
_LISTED = 8  # most values listed in a message
_MANY = 16  # more values than classes have: probabilities, or interpolated
Counts = Mapping[int, int]


@dataclass(frozen=True)
class Decision:
    """What the values of all masks of a set mean.

    Attributes:
        classes: Value to class; None: every value but 0 is class 1.
        text: A description of the decision.
    """

    classes: dict[int, int] | None
    text: str


def count_values(path: Path) -> Counter[int]:
    """Count the px of each value at level 0, exactly.

    Every tile is read, but of tiles with the same bytes, as nearly all of a mask are, only one is decoded. Remembered
    while the process lives and the file stays the same.

    Raises:
        ValueError: The mask cannot be read; the message names it.
    """
    try:
        key = file_key(path)
    except OSError as error:
        raise ValueError(f"mask {path} cannot be opened: {error.strerror or error}") from error
    return Counter(dict(_counted(key, path)))


def count_all(masks: Sequence[Path], threads: int = 1, lenient: bool = False) -> dict[Path, Counter[int]]:
    """`count_values` of masks whose values nobody has explained.

    Args:
        masks: The masks.
        threads: How many are read at a time.
        lenient: Leave out masks that cannot be read; opening them later reports them.

    Raises:
        ValueError: A mask cannot be read, or it is unclear which of its values is which.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        counts = list(pool.map(partial(_unexplained, lenient), masks))
    return {mask: found for mask, found in zip(masks, counts, strict=True) if found is not None}


def decide(counts: Mapping[Path, Counts]) -> Decision:
    """Tell the class of each value from the values of all masks of a set.

    Args:
        counts: Mask to the px of each of its values.

    Raises:
        ValueError: The values are neither 0/1 nor 0/255 nor CAMELYON's; the message lists them and the option to give.
    """
    total: Counter[int] = sum((Counter(dict(found)) for found in counts.values()), Counter())
    values = set(total)
    camelyon = all(_CAMELYON_NAME.fullmatch(path.stem) for path in counts)
    if is_plain(total):
        text = f"0 -> normal (class 0), {255 if 255 in values else 1} -> tumor (class 1)"
        # The official mask of a tumor slide always has a 2.
        if camelyon and 1 in values and not any(path.stem.lower().startswith("tumor") for path in counts):
            text += "; if these are CAMELYON's official masks of slides without tumor, 1 is tissue: give " + _option(
                CAMELYON_VALUES
            )
        return Decision(None, text)
    if values <= set(CAMELYON_VALUES) and 1 in values and camelyon:
        return Decision(
            dict(CAMELYON_VALUES),
            "0 (background), 1 (tissue) -> normal (class 0), 2 -> tumor (class 1), as in CAMELYON's official masks; "
            f"if 1 and 2 are classes of yours, give {_option({0: 0, 1: 1, 2: 2})}",
        )
    raise ValueError(_unclear(total, counts))


def is_plain(counts: Counts) -> bool:
    """Whether the values are 0/1 or 0/255, which need no explanation."""
    return any(counts.keys() <= plain for plain in _PLAIN)


def described(classes: Mapping[int, int]) -> str:
    """Describe which value becomes which class, as --mask_values gives it."""
    names = {0: "normal (class 0)", 1: "tumor (class 1)", IGNORE: "ignored (class 255)"}
    pairs = (f"{value} -> {names.get(cls, f'class {cls}')}" for value, cls in sorted(classes.items()))
    return ", ".join(pairs) + ", as --mask_values says"


def listed(counts: Counts) -> str:
    """List values with their px, the most frequent ones where there are many."""
    shown = sorted(sorted(counts, key=lambda value: -counts[value])[:_LISTED])
    more = f" and {len(counts) - _LISTED} more values" if len(counts) > _LISTED else ""
    return ", ".join(f"{value} ({counts[value]} px)" for value in shown) + more


def _unclear(total: Counts, counts: Mapping[Path, Counts]) -> str:
    values = sorted(total)
    odd = min(
        (value for value in values if value not in (0, 1)), key=lambda value: total[value]
    )  # most likely the slip
    first = next(path for path, found in counts.items() if odd in found)
    found = f"masks hold the values {listed(total)}, first with {odd}: {first}"
    if len(values) > _MANY:
        return f"{found}; these are probabilities or were interpolated: make them 0 and 255, {THRESHOLD}"
    # Numbers from 1 on are classes; others mark one.
    if values == [0, 1, 2]:
        ways = (
            f"{_option(CAMELYON_VALUES)} where 1 is tissue and 2 tumor, or {_option({0: 0, 1: 1, 2: 2})} for 3 classes"
        )
    elif 255 in values and len(values) > 2:
        ways = f"{_option({value: min(value, 1) for value in values} | {255: 255})} where 255 is to be ignored"
    else:
        ways = f"{_option({value: min(value, 1) for value in {0, *values}})} where all but 0 is tumor"
    return f"{found}; say which class each is: {ways}"


def _option(classes: Mapping[int, int]) -> str:
    return "--mask_values " + " ".join(f"{value}:{cls}" for value, cls in sorted(classes.items()))


def _unexplained(lenient: bool, path: Path) -> Counter[int] | None:
    try:
        counts = count_values(path)
        mask = MaskFile(path)
    except ValueError:
        if lenient:
            return None
        raise
    top = 2 ** mask.pages[0].bits - 1
    if mask.unsure and set(counts) <= {0, top}:
        raise ValueError(
            f"mask {path} holds {listed(counts)} and calls white zero, so viewers show {top} as black; say which is "
            f"tumor: --mask_values 0:1 {top}:0 for what is white in viewers, or --mask_values 0:0 {top}:1"
        )
    return counts


@lru_cache(maxsize=4096)
def _counted(_key: tuple[object, ...], path: Path) -> tuple[tuple[int, int], ...]:
    mask = MaskFile(path)
    counts = np.zeros(256, np.int64)
    page = mask.pages[0]
    by_tiles = page.tiled and max(page.tile_xy) <= BLOCK
    for corner_xy, hw, times in _distinct_tiles(mask) if by_tiles else _blocks(mask):
        # OpenCV's histogram: thirty times faster than NumPy's, in float32, which is exact up to 2**24 px.
        histogram = cv2.calcHist([np.ascontiguousarray(mask.read(0, corner_xy, hw))], [0], None, [256], [0, 256])
        counts += times * histogram.ravel().astype(np.int64)
    return tuple((value, int(counts[value])) for value in np.flatnonzero(counts).tolist())


Part = tuple[tuple[int, int], tuple[int, int], int]


def _distinct_tiles(mask: MaskFile) -> Iterator[Part]:
    """Corner, height and width of one tile of each content, and how many tiles are equal to it."""
    page = mask.pages[0]
    (width, height), (across, down) = page.size_xy, page.tile_xy
    columns = -(-width // across)
    digests: dict[tuple[int, int], bytes] = {}
    times: Counter[tuple[tuple[int, int], bytes]] = Counter()
    corners: dict[tuple[tuple[int, int], bytes], tuple[int, int]] = {}
    try:
        layout = tile_layout(mask.path, page)
        with mask.path.open("rb", buffering=0) as file:
            read = partial(os.pread, file.fileno())
            for number, place in enumerate(zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True)):
                offset, size = place
                if place not in digests:
                    digests[place] = hashlib.blake2b(read(size, offset)).digest() if size else b""
                row, column = divmod(number, columns)
                hw = min(down, height - row * down), min(across, width - column * across)
                times[hw, digests[place]] += 1
                corners.setdefault((hw, digests[place]), (column * across, row * down))
    except READ_ERRORS as error:
        raise ValueError(f"mask {mask.path} cannot be read: {error}") from error
    for key, corner_xy in corners.items():
        yield corner_xy, key[0], times[key]


def _blocks(mask: MaskFile) -> Iterator[Part]:
    """Corner, height and width of blocks that cover level 0, once each."""
    width, height = mask.pages[0].size_xy
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            yield (left, top), (min(BLOCK, height - top), min(BLOCK, width - left)), 1
