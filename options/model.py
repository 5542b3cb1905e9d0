"""The group of options that name a trained model, for every program that opens one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from options.fields import Group, option
from options.parser import positive, whole


@dataclass(frozen=True, kw_only=True)
class Model(Group):
    """Model.

    --resolution, --context_spacing and --input_range are for models that do not say themselves how they were trained.
    """

    model: Path = option(
        required=True, metavar="PATH",
        help="a run (--log_dir of train.py: its best checkpoint), a checkpoint .npz, a .keras file, or a SavedModel",
    )  # fmt: skip
    img_size: int | None = option(
        parse=whole(1), unit="px", help="side of the square images; default: as trained. Any for train.py's runs"
    )
    resolution: float | None = option(parse=positive, unit="um/px", help="um per px of the images")
    context_spacing: float | None = option(parse=positive, unit="um/px", help="um per px of a second, coarser view")
    input_range: tuple[float, float] | None = option(
        nargs=2, metavar=("LOW", "HIGH"), help="what 0 and 255 become before the model takes them, e.g. -1 1"
    )

    def __post_init__(self) -> None:
        if self.input_range is not None and not -1e6 < self.input_range[0] < self.input_range[1] < 1e6:
            low, high = self.input_range
            raise ValueError(f"--input_range {low:g} {high:g}: the smaller number first")
        um, context_um = self.resolution, self.context_spacing
        if um is not None and context_um is not None and context_um <= um:
            raise ValueError(
                f"--context_spacing {context_um:g}: the second view is coarser than --resolution {um:g} um/px"
            )
