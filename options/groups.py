"""Groups of options that several programs share; what one program alone has is in the module called like it."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from options.choices import OPTIMIZERS, DatasetName, LabelFormat, ScheduleName
from options.fields import Group, option
from options.parser import not_negative, positive, share_below_1, whole

SUFFIXES = "tif, svs, ndpi, mrxs ...: anything OpenSlide reads"
TRUTHS = "tif or png (masks), xml (ASAP) or geojson (QuPath)"
CENTERS = "CAMELYON17 centers; -1 is all"
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class SlideFiles(Group):
    """Slides."""

    slide_format: str = option("tif", metavar="SUFFIX", help=SUFFIXES)
    recursive: bool = option(
        False, help="search all folders below those of slides and labels, too (archives deliver a folder per slide)"
    )
    mpp: float | None = option(
        parse=positive, unit="um/px", stream=True, help="um per px of level 0, instead of what the slides state"
    )
    mpp_table: Path | None = option(
        metavar="CSV",
        help="um per px of level 0 of single slides, before --mpp: columns slide and mpp (or mpp_x, mpp_y)",
    )


@dataclass(frozen=True, kw_only=True)
class LabeledSlides(Group):
    """Slides and labels."""

    slide_path: Path | None = option(help="slides: a folder or one file")
    label_path: Path | None = option(help="their labels: a folder or one file; slides without one are normal")
    label_format: LabelFormat = option(help=f"{TRUTHS}; default: xml with --dataset, else tif")

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """CAMELYON comes with XML labels."""
        given.label_format = given.label_format or ("xml" if getattr(given, "dataset", None) else "tif")


@dataclass(frozen=True, kw_only=True)
class Cohort(LabeledSlides):
    """Slides and labels."""

    valid_slide_path: Path | None = option(help="slides for validation")
    valid_label_path: Path | None = option(help="their labels")
    dataset: DatasetName | None = option(help="standard CAMELYON layout under --data_root")
    data_root: Path | None = option(help="root of --dataset; default: $CAMELYON_ROOT")

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """See `LabeledSlides.settle`; and the root of CAMELYON where its variable names it."""
        super().settle(given)
        root = os.environ.get("CAMELYON_ROOT")
        given.data_root = given.data_root or (Path(root) if root else None)

    @property
    def folders(self) -> tuple[Path | None, ...]:
        """The four paths that take the place of --dataset."""
        return (self.slide_path, self.label_path, self.valid_slide_path, self.valid_label_path)


@dataclass(frozen=True, kw_only=True)
class TissueSearch(Group):
    """Tissue search."""

    bb_downsample: int = option(
        7, parse=whole(0), metavar="LEVEL", stream=True,
        help="pyramid level of the tissue and contour search, clamped to what the slide has",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Staged(Group):
    """Copies of files on the node."""

    stage_dir: Path | None = option(
        metavar="DIR", free=True,
        help="disk of the node, e.g. $TMPDIR: slides and masks are copied there once per node",
    )  # fmt: skip
    stage_gb: float = option(
        200.0, parse=positive, unit="GB", free=True, help="most GB to copy per node; the rest is read in place"
    )


@dataclass(frozen=True, kw_only=True)
class Updates(Group):
    """Optimizer and learning rate."""

    optimizer: str = option("adam", choices=tuple(OPTIMIZERS), help="how gradients change weights")
    lr_schedule: ScheduleName = option(
        "constant", help="after the warm-up: half a cosine, triangles, or a power of what is left"
    )
    momentum: float = option(parse=share_below_1, metavar="SHARE", help=f"of sgd and lars; default {MOMENTUM}")
    weight_decay: float | None = option(
        parse=not_negative, metavar="DECAY", help="of kernels; default adamw, lamb 0.01, lars 0.0001, sgd 0"
    )

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """No option that the optimizer or the schedule has no use for; defaults that depend on them."""
        usual = OPTIMIZERS[given.optimizer]
        if given.weight_decay is not None and usual.weight_decay is None:
            raise ValueError(f"--weight_decay: --optimizer {given.optimizer} has none; adamw is Adam with weight decay")
        if given.momentum is not None and not usual.momentum:
            raise ValueError(f"--momentum applies to sgd and lars; --optimizer {given.optimizer} has none")
        if given.lr_cycle is not None and given.lr_schedule != "cyclic":
            raise ValueError(f"--lr_cycle applies to --lr_schedule cyclic; {given.lr_schedule} has no cycle")
        given.weight_decay = usual.weight_decay if given.weight_decay is None else given.weight_decay
        given.momentum = MOMENTUM if given.momentum is None else given.momentum


@dataclass(frozen=True, kw_only=True)
class Ranks(Group):
    """Ranks and machine."""

    no_cuda: bool = option(False, help="CPU even where GPUs are visible")
    horovod: bool = option(
        True, free=True, help="join the ranks that a launcher started; one process without a launcher runs alone"
    )
    stall_timeout: float = option(
        60.0, parse=not_negative, unit="s", free=True,
        help="s without a heartbeat of a rank until the job is aborted; 5 times that without a patch; 0: never",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine(Ranks):
    """Ranks and machine."""

    sample_processes: int = option(1, parse=whole(1), free=True, help="parallel samplers per rank")
    tile_cache: int = option(
        128, parse=whole(0), unit="MB", free=True, help="MB of decoded tiles kept per rank, shared by its samplers"
    )
