"""The options of evaluate.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from options.choices import FALSE_PER_SLIDE, FrocRule, PixelSet
from options.classes import Classes
from options.fields import Group, option, read
from options.groups import LabeledSlides, SlideFiles
from options.parser import Parser, positive, whole


@dataclass(frozen=True, kw_only=True)
class EvaluateSlides(SlideFiles, LabeledSlides):
    """Predictions, slides and labels.

    Without --slide_path the slides are those that the predictions name.
    """

    predictions: Path | None = option(metavar="DIR", help="what predict.py wrote: a folder with one folder per slide")
    out: Path | None = option(
        metavar="DIR", help="folder for metrics.json, slides.csv, false_positives.csv, report.html"
    )

    def required(self) -> tuple[Path, Path, Path]:
        """Predictions, labels and output folder.

        Raises:
            ValueError: one is not given.
        """
        if self.predictions is None or self.label_path is None or self.out is None:
            named = {"predictions": self.predictions, "label_path": self.label_path, "out": self.out}
            missing = next(name for name, path in named.items() if path is None)
            raise ValueError(f"--{missing} is missing: --predictions, --label_path and --out are needed")
        return self.predictions, self.label_path, self.out


@dataclass(frozen=True, kw_only=True)
class Scores(Group):
    """Scores."""

    pixels: PixelSet = option("tissue", help="which count: tissue and annotations, or all")
    bootstrap: int = option(1000, parse=whole(0, 100_000), help="resamples of slides for the intervals; 0: none")
    seed: int = option(0, parse=whole(0, 2**32 - 1), help="seed of the resamples")
    froc: FrocRule = option(
        "double",
        help="precision of lesions' probabilities: that of false ones, or float32 as in the organizers' program",
    )
    froc_threshold: tuple[float, ...] = option(
        FALSE_PER_SLIDE, parse=positive, metavar="FALSE",
        help="false positives per slide at which the sensitivity is read",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if sorted(set(self.froc_threshold)) != list(self.froc_threshold):
            raise ValueError("--froc_threshold: must be in rising order without repeats")


@dataclass(frozen=True, kw_only=True)
class StageTables(Group):
    """Two tables of CAMELYON17 only."""

    submission: Path | None = option(metavar="CSV", help="predicted stages: patient,stage")
    reference: Path | None = option(metavar="CSV", help="true stages")

    def __post_init__(self) -> None:
        if (self.submission is None) != (self.reference is None):
            raise ValueError("--submission and --reference must be given together: two tables of stages to compare")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Group):
    """All options of evaluate.py."""

    slides: EvaluateSlides
    labels: Classes
    scores: Scores
    tables: StageTables

    def __post_init__(self) -> None:
        slides = self.slides
        if self.tables.submission is None:
            slides.required()
        elif slides.predictions or slides.label_path or slides.slide_path:
            raise ValueError("--submission and --reference compare two tables only: omit the other paths")


def evaluate_options(argv: Sequence[str] | None = None) -> EvaluateOptions:
    """Parse and check evaluate.py's command line; exits with code 2 and one line where it is wrong."""
    parser = Parser(
        prog="evaluate.py",
        description="Score predictions of whole slides against their truth: pixels, lesions, slides, patients.",
        epilog="evaluate.py --submission FILE --reference FILE compares two CAMELYON17 tables of stages and nothing "
        "else. What each number is: docs/evaluation.md.",
    )
    return read(EvaluateOptions, parser, argv)
