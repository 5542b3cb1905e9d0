"""How a network sees a slide of another stain: normalized colors, and batch statistics of the slide's own windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.plan import PlannedSlide
from inference.predict import Network
from inference.reading import read_window
from slides.reader import Slide
from slides.stain import FAR, distance, normalization, why_not

NONE = "none"
ADAPT_WINDOWS = 32  # of a slide, evenly spaced among those that are predicted
ADAPT_PX = 2**19  # of a batch: eight windows of 256 px, one of 1024

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Appearance:
    """What is done about stain.

    Attributes:
        norm: `none`, or a method of `slides.stain`.
        known: what the model has stored of its training slides; None: nothing.
        adapt_bn: batch normalization takes the statistics of each slide.
    """

    norm: str
    known: Mapping[str, Any] | None
    adapt_bn: bool = False

    @classmethod
    def chosen(cls, asked: str | None, trained: str, known: Mapping[str, Any] | None, adapt_bn: bool) -> Appearance:
        """Take the method of the training, or another that was asked for.

        Args:
            asked: `--stain_norm`, or None.
            trained: method of the training.
            known: see the class.
            adapt_bn: see the class.

        Raises:
            ValueError: the model has no target for the method.
        """
        norm = asked or trained
        targets = {} if known is None else known["targets"]
        if norm != NONE and norm not in targets:
            held = ", ".join(targets) or "none: it was trained by an earlier version, or elsewhere"
            raise ValueError(f"--stain_norm {norm}: the model has no target for it; it has {held}")
        return cls(norm, known, adapt_bn)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods by which a slide's stain must be estimated."""
        return () if self.norm == NONE else (self.norm,)

    def options(self) -> dict[str, Any]:
        """What determines the result, JSON types; empty by default, so that earlier results stay valid."""
        norm = {} if self.norm == NONE else {"stain_norm": self.norm}
        return norm | ({"adapt_bn": True} if self.adapt_bn else {})

    def distance(self, planned: PlannedSlide) -> float | None:
        """How far a slide's colors are from those of the training, standard deviations; None: unknown."""
        colors = None if self.known is None else self.known["colors"]
        return None if colors is None else distance(planned.stain, colors)

    def warnings(self, planned: PlannedSlide) -> list[str]:
        """What the user must know of a slide's stain."""
        found = []
        far = self.distance(planned)
        if far is not None and far > FAR:
            tried = self.norm != NONE or self.adapt_bn
            cure = "" if tried else "; --adapt_bn or --stain_norm macenko may help"
            found.append(
                f"{planned.slide_id}: its colors are {far:.1f} standard deviations from those of the training slides "
                f"(more than {FAR:g}): check its results before you use them{cure}"
            )
        why = "" if self.norm == NONE or not planned.windows else why_not(self.norm, planned.stain)
        return [*found, f"{planned.slide_id}: {why}"] if why else found

    def record(self, planned: PlannedSlide) -> dict[str, Any]:
        """What `summary.json` says of a slide's stain, JSON types."""
        far, density = self.distance(planned), planned.stain.density
        return {
            "norm": self.norm if self.norm in planned.stain.estimates else NONE,
            "adapt_bn": self.adapt_bn,
            "density_rgb": None if density is None else [round(value, 4) for value in density],
            "distance_from_training": None if far is None else round(far, 2),
        }

    def normalized(self, network: Network, planned: PlannedSlide) -> Network:
        """Return the network for a slide: it gets images with the target's colors."""
        change = self.change(planned)
        if change is None:
            return network
        return lambda image_BHWC: network(np.stack([change(image_HWC) for image_HWC in image_BHWC]))

    def change(self, planned: PlannedSlide) -> Callable[[Images], Images] | None:
        """What gives px (..., 3) of a slide the target's colors, each by itself; None: they stay as they are."""
        if self.norm == NONE or self.known is None:
            return None
        return normalization(self.norm, planned.stain, self.known["targets"])

    def adaptation_batches(self, slide: Slide, planned: PlannedSlide, context_um_px: float | None) -> Iterator[Images]:
        """Yield windows of a slide in batches, as the network sees them: the same on every rank.

        Windows that cannot be read completely are left out.
        """
        change = self.change(planned)
        count = min(ADAPT_WINDOWS, len(planned.windows))
        side = planned.grid.window(0, 0).hw_out[0]
        size = max(1, ADAPT_PX // side**2)
        batch: list[Images] = []
        for k in range(count):
            row, column = planned.windows[(2 * k + 1) * len(planned.windows) // (2 * count)]
            image_HWC, fault = read_window(slide, planned.grid.window(row, column), context_um_px)
            if not fault:
                batch.append(image_HWC if change is None else change(image_HWC))
            if len(batch) == size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)
