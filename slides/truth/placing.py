"""Where a mask lies on its slide: px for px, or by a ratio where its size is another one.

Every mask begins at the upper left corner of its slide. The ratio comes from the size of a level of the slide, else
from the um/px in the mask's tags, else it is the nearest whole number; the mask then has to end near the slide's edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from slides.geometry import Extent, Pair
from slides.reader import Level

# How far a mask may end from the edge of its slide: level-0 px, or px of the mask if they are more.
LIMIT_L0 = 8.0
LIMIT_PX = 2.0
# Differences of um/px, as a share: up to the first a ratio is a whole number, beyond the second it is said.
_ROUNDED_UM = 0.005
_SAME_UM = 0.02


class Field(Extent, Protocol):
    """What a mask needs to know of its slide; `reader.Slide` has it."""

    @property
    def um_px_xy_l0(self) -> Pair:
        """Micrometers per level-0 px along x and y."""

    @property
    def levels(self) -> Sequence[Level]:
        """Levels of the slide, finest first."""


def place(path: Path, size_xy: tuple[int, int], um_px_xy: Pair | None, slide: Field) -> tuple[Pair, tuple[str, ...]]:
    """Place a mask on its slide.

    Args:
        path: The mask, for messages.
        size_xy: Its width and height, px.
        um_px_xy: Micrometers per px of the mask along x and y, as its tags say; None if they do not.
        slide: The slide.

    Returns:
        Level-0 px per px of the mask along x and y, with a note; none for a mask of the slide's size.

    Raises:
        ValueError: No ratio lets the mask end where the slide does.
    """
    if size_xy == slide.size_xy_l0:
        return (1.0, 1.0), ()
    (mask_w, mask_h), (width, height) = size_xy, slide.size_xy_l0
    sizes = f"mask {path} has {mask_w} x {mask_h} px, its slide {slide.path} {width} x {height}"
    stated = None if um_px_xy is None else f"{um_px_xy[0]:.4g} um/px"
    for step_xy, how in _ratios(size_xy, um_px_xy, slide):
        off_x, off_y = (px * step - size for px, step, size in zip(size_xy, step_xy, slide.size_xy_l0, strict=True))
        if any(abs(off) > max(LIMIT_L0, LIMIT_PX * step) for off, step in zip((off_x, off_y), step_xy, strict=True)):
            continue
        note = f"{sizes}: placed by {how}, one px is {step_xy[0]:.5g} x {step_xy[1]:.5g} px of the slide"
        if off_x or off_y:
            note += f", and it ends {off_x:+.4g} px beside the right and {off_y:+.4g} px beside the lower edge"
        if um_px_xy is not None and any(
            abs(um / (step * um_l0) - 1) > _SAME_UM
            for um, step, um_l0 in zip(um_px_xy, step_xy, slide.um_px_xy_l0, strict=True)
        ):
            note += f"; its tags say {stated}, which is not used"
        return step_xy, (note,)
    tags = "its tags have no um/px" if stated is None else f"its tags say {stated}, the slide has {_um(slide)}"
    raise ValueError(
        f"{sizes}, which is no level and no whole ratio of it, and {tags}; save the mask at the slide's size, at "
        "a half, a quarter ... of it, or with its own um/px"
    )


def _ratios(size_xy: tuple[int, int], um_px_xy: Pair | None, slide: Field) -> Iterator[tuple[Pair, str]]:
    """Level-0 px per px of the mask, and where they come from, the surest first."""
    for level in slide.levels:
        if level.size_xy == size_xy:
            yield level.downsample_xy, f"the size of level {level.index}"
    if um_px_xy is not None:
        how = f"um/px ({um_px_xy[0]:.4g}, the slide {_um(slide)})"
        x, y = (um / um_l0 for um, um_l0 in zip(um_px_xy, slide.um_px_xy_l0, strict=True))
        whole = max(1.0, float(round(x)))
        # um/px are often rounded.
        if max(abs(x / whole - 1), abs(y / whole - 1)) <= _ROUNDED_UM:
            yield (whole, whole), how
        yield (x, y), how
    # The longer side tells the ratio more exactly.
    axis = 0 if size_xy[0] >= size_xy[1] else 1
    whole = max(1.0, float(round(slide.size_xy_l0[axis] / size_xy[axis])))
    yield (whole, whole), f"the ratio 1 to {whole:.0f}"


def _um(slide: Field) -> str:
    return f"{slide.um_px_xy_l0[0]:.4g} um/px"
