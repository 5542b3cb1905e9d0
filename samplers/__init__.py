"""Where to look: samplers turn an index into a request for a patch, and requests into pixels and batches.

To add a sampler, write one module with a class like `samplers.surf.Sampler`, whose `request(index, attempt)` is a pure
function, and name it here twice: in `SAMPLERS` and in `build`. This file is imported for its names alone, also by
`--help`, so it loads nothing before `build` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from samplers.index import SlideIndex
    from samplers.patch import RequestSource

# Value of --data_sampler -> its default of --batch_tumor_ratio; None: balanced rounds over all classes.
SAMPLERS: dict[str, Fraction | None] = {"radboud": None, "surf": Fraction(1)}


class _SamplerClass(Protocol):
    def __call__(
        self, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None
    ) -> RequestSource: ...


def build(
    name: str, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None
) -> RequestSource:
    """Return a sampler by its name.

    Args:
        name: one of `SAMPLERS`.
        indexes: search index of each training slide.
        seed: seed of the stream; the same on all ranks.
        classes: number of classes K.
        tumor_ratio: exact share of draws aimed at classes >= 1; None for the sampler's own default.

    Raises:
        ValueError: the name is unknown, or the slides lack a class that must be drawn.
    """
    from samplers import radboud, surf

    classes_of: dict[str, _SamplerClass] = {"radboud": radboud.Sampler, "surf": surf.Sampler}
    if name not in classes_of:
        raise ValueError(f"--data_sampler {name}: choose one of {', '.join(SAMPLERS)}")
    ratio = SAMPLERS[name] if tumor_ratio is None else tumor_ratio
    return classes_of[name](indexes, seed, classes, ratio)
