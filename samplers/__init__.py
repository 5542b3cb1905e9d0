"""Where to look: samplers turn an index into a request for a patch, and requests into pixels and batches.

A sampler is one module named like its `--data_sampler` value with a class `Sampler(indexes, seed, classes,
tumor_ratio)` whose `request(index, attempt)` is a pure function; adding a module adds a sampler.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from fractions import Fraction

from samplers.index import SlideIndex
from samplers.patch import RequestSource

NAMES = ("radboud", "surf")


def build(
    name: str, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None
) -> RequestSource:
    """Sampler by name.

    Args:
        name: one of `NAMES`.
        indexes: search index of each training slide.
        seed: seed of the stream; the same on all ranks.
        classes: number of classes K.
        tumor_ratio: exact share of draws aimed at classes >= 1; None for the sampler's own default.

    Raises:
        ValueError: unknown name, or the slides lack a class that must be drawn.
    """
    if name not in NAMES:
        raise ValueError(f"--data_sampler {name}: choose one of {', '.join(NAMES)}")
    source: RequestSource = importlib.import_module(f"samplers.{name}").Sampler(indexes, seed, classes, tumor_ratio)
    return source
