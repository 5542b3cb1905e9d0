"""The options of predict.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from options.choices import GeojsonFrame, OverlayStyle, StainNorm
from options.fields import Group, option, read
from options.groups import Machine, SlideFiles, TissueSearch
from options.model import Model
from options.parser import Parser, not_negative, positive, share_below_1, whole


@dataclass(frozen=True, kw_only=True)
class PredictSlides(SlideFiles):
    """Slides."""

    slide_path: tuple[Path, ...] = option(
        required=True, help="slides: files, folders, or .txt files with one of these in a line"
    )
    out: Path = option(required=True, metavar="DIR", help="folder of the results, one folder in it for each slide")
    overwrite: bool = option(False, help="also predict slides that were predicted with other options")
    strict: bool = option(False, help="stop if a slide cannot be opened or a window cannot be read completely")

    def __post_init__(self) -> None:
        missing = [path for path in self.slide_path if not path.exists()]
        if missing:
            raise ValueError(f"--slide_path {missing[0]}: no such file or folder")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} exists but is not a folder; choose another path")


@dataclass(frozen=True, kw_only=True)
class Windows(Group):
    """Windows."""

    overlap: float = option(
        0.25, parse=share_below_1, metavar="SHARE", help="overlap of neighboring windows, as a share of their side"
    )
    batch_size: int = option(1, parse=whole(1), help="windows in one call of the network")
    tissue_only: bool = option(True, help="skip windows without tissue")
    eightfold: bool = option(False, help="mean over the 8 orientations of every window; 8 times the work")
    stream: int | None = option(
        parse=whole(1), unit="px", metavar="TILE",
        help="all tissue of a slide as one image, computed exactly in tiles of this side, in place of windows",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.stream is None:
            return
        for flag, given, default in (("--overlap", self.overlap, 0.25), ("--batch_size", self.batch_size, 1)):
            if given != default:
                raise ValueError(
                    f"{flag} {given}: with --stream a slide is one image without windows; omit one of them"
                )


@dataclass(frozen=True, kw_only=True)
class Stain(Group):
    """Stain.

    For slides whose colors are not those of the training slides.
    """

    stain_norm: StainNorm | None = option(help="normalize every slide to the training slides; default: as trained")
    adapt_bn: bool = option(
        False, help="batch normalization by the statistics of each slide's own tissue instead of the training's"
    )


@dataclass(frozen=True, kw_only=True)
class Results(Group):
    """Results."""

    min_probability: float = option(
        0.1, parse=share_below_1, metavar="SHARE", help="less probable detections are omitted"
    )
    nms_um: float = option(
        75.0, parse=positive, unit="um", help="of detections closer together than this, only the most probable is kept"
    )
    simplify_um: float | None = option(
        parse=not_negative, unit="um", help="tolerance of simplified outlines; default 2 px of the map"
    )
    min_area_um2: float = option(100.0, parse=not_negative, unit="um2", help="smaller outlines are omitted")
    overlay: OverlayStyle = option(
        "auto", help="overlay.png with colors of probability or outlines only; auto: outlines where the "
        "picture shows single cells (1 um/px and finer)",
    )  # fmt: skip
    geojson_frame: GeojsonFrame = option(
        "qupath",
        help="where polygons.geojson counts level-0 px from, in slides with bounds (MRXS, SCN, BIF): the corner of "
        "what QuPath shows, or of the whole slide",
    )

    def __post_init__(self) -> None:
        if not self.min_probability:
            raise ValueError("--min_probability 0: must be above 0, or every px without tumor would be a candidate")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Group):
    """All options of predict.py."""

    model: Model
    slides: PredictSlides
    tissue: TissueSearch
    windows: Windows
    stain: Stain
    results: Results
    machine: Machine


def predict_options(argv: Sequence[str] | None = None) -> PredictOptions:
    """Parse and check predict.py's command line; exits with code 2 and one line where it is wrong."""
    parser = Parser(
        prog="predict.py",
        description="Predict whole slides with a trained network: probability maps, outlines, detections, pictures.",
        epilog="Several ranks: NP=4 SCRIPT=predict.py ./run_train.sh --model ... Options can be kept in a file: @FILE.",
    )
    return read(PredictOptions, parser, argv)
