"""Groups of options that several steps of preprocessing share; those of one step alone are defined in its module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from options.choices import TissueMethod
from options.fields import Group, option
from options.groups import CENTERS, Cohort, SlideFiles
from options.parser import positive, share_below_1, whole


@dataclass(frozen=True, kw_only=True)
class PreparedSlides(SlideFiles, Cohort):
    """Slides and labels."""

    proc_center: tuple[int, ...] = option((-1,), metavar="CENTER", help=CENTERS)

    def __post_init__(self) -> None:
        if self.dataset:
            if self.recursive:
                raise ValueError("--recursive searches the folders of --slide_path: omit it with --dataset")
            if any(self.folders):
                raise ValueError("--dataset replaces the path options: use one or the other")
            if self.data_root is None:
                raise ValueError(f"--dataset {self.dataset} needs --data_root (or $CAMELYON_ROOT)")
        elif self.slide_path is None:
            raise ValueError("no slides: give --slide_path (and --label_path), or --dataset 16 or 17 with --data_root")
        elif self.valid_label_path is not None and self.valid_slide_path is None:
            raise ValueError("--valid_label_path goes with --valid_slide_path")


@dataclass(frozen=True, kw_only=True)
class Work(Group):
    """Output and processes."""

    out: Path = option(required=True, metavar="DIR", help="output folder; every step has a folder in it")
    num_processes: int | None = option(
        parse=whole(1), help="default: one per CPU; under mpirun the ranks are the processes"
    )
    strict: bool = option(False, help="a slide with a place that cannot be decoded fails, instead of losing that place")


@dataclass(frozen=True, kw_only=True)
class PatchSpacing(Group):
    """Spacing of patches."""

    resolution: float = option(0.25, parse=positive, unit="um/px", help="um per px of the patches")
    resolution_tolerance: float = option(
        0.0, parse=share_below_1, metavar="SHARE",
        help="take a level of the slide as it is where its spacing is within this share of --resolution, e.g. 0.05",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TissueRule(Group):
    """Tissue."""

    tissue_method: TissueMethod = option(
        "hsv", help="tissue by a fixed threshold of saturation, or by Otsu's threshold of each slide"
    )


@dataclass(frozen=True, kw_only=True)
class PenMarks(Group):
    """Pen marks."""

    keep_pen: bool = option(False, help="keep pen marks in tissue and patches")
