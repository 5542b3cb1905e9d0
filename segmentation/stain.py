"""The stain of a run's slides: estimates, the target of a normalization, and the colors that a model has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel.comm import Comm, together
from slides.stain import (
    Estimate,
    Normalization,
    SlideStain,
    known_stains,
    middle,
    normalization,
    slide_stain,
    why_not,
)

if TYPE_CHECKING:
    from samplers.dataset import SlideSet

NONE = "none"
CHEAP = ("reinhard", "macenko")  # their targets are stored with every model, for `predict.py --stain_norm`
MOST_SLIDES = 64  # looked at where nothing is normalized; more tell no more


@dataclass(frozen=True)
class RunStain:
    """The stain of a training run.

    Attributes:
        norm: how patches are normalized; `none`.
        targets: median of the training slides, by method.
        colors: what `slides.stain.known_stains` says of the training slides; None without any.
        sources: estimate of each training slide; None where it is not normalized.
        train, val: normalization of each slide, in the order of the sets; None where it is left as it is.
        notes: slides that cannot be normalized.
    """

    norm: str
    targets: dict[str, Estimate]
    colors: dict[str, list[float]] | None
    sources: list[Estimate | None]
    train: list[Normalization | None]
    val: list[Normalization | None]
    notes: list[str]

    def model_json(self) -> dict[str, Any]:
        """What is stored with the model, JSON types."""
        return {"norm": self.norm, "targets": self.targets, "colors": self.colors}

    def replay_json(self) -> dict[str, Any] | None:
        """What `samplers.replay` needs to repeat the patches, JSON types; None where nothing is normalized."""
        if self.norm == NONE:
            return None
        return {"norm": self.norm, "target": self.targets[self.norm], "slides": self.sources}


def run_stain(norm: str, train_set: SlideSet, val_set: SlideSet, comm: Comm) -> RunStain:
    """Estimate the stains of a run's slides, divided among ranks; every rank must call it and gets the same.

    Args:
        norm: `none`, or a method of `slides.stain`.
        train_set: training slides.
        val_set: validation slides.
        comm: the ranks.

    Raises:
        ValueError: no training slide shows a stain that could be the target.
    """
    methods = CHEAP if norm in (NONE, *CHEAP) else (*CHEAP, norm)
    count = len(train_set.slides)
    seen = range(count) if norm != NONE else sorted({k * count // MOST_SLIDES for k in range(MOST_SLIDES)})
    train = _estimates(train_set, seen, methods, comm)
    val = _estimates(val_set, range(len(val_set.slides)), (norm,), comm) if norm != NONE else []
    found = {method: [s.estimates[method] for s in train if method in s.estimates] for method in methods}
    targets = {method: middle(estimates) for method, estimates in found.items() if estimates}
    colors = known_stains(train)
    if norm == NONE:
        return RunStain(NONE, targets, colors, [None] * count, [None] * count, [None] * len(val_set.slides), [])
    if norm not in targets:
        why = why_not(norm, train[0])
        raise ValueError(f"--stain_norm {norm}: no training slide can be its target; {train_set.slides[0].id}: {why}")
    slides = [*train_set.slides, *val_set.slides]
    reasons = [(slide.id, why_not(norm, stain)) for slide, stain in zip(slides, [*train, *val], strict=True)]
    return RunStain(
        norm, targets, colors, [stain.estimates.get(norm) for stain in train],
        [normalization(norm, stain, targets) for stain in train],
        [normalization(norm, stain, targets) for stain in val],
        [f"{slide_id}: {why}" for slide_id, why in reasons if why],
    )  # fmt: skip


def _estimates(slide_set: SlideSet, numbers: Sequence[int], methods: Sequence[str], comm: Comm) -> list[SlideStain]:
    """Estimate some slides of a set; each rank takes every size-th."""

    def mine() -> list[SlideStain]:
        pairs = [(slide_set.slides[i], slide_set.indexes[i]) for i in numbers[comm.rank :: comm.size]]
        return [slide_stain(slide, index.tissue.mask(), index.cell_l0, methods) for slide, index in pairs]

    parts = comm.gather(together(comm, mine))
    return [parts[i % comm.size][i // comm.size] for i in range(len(numbers))]
