"""Where to look: samplers turn an index into a request for a patch, and requests into pixels and batches.

To add a sampler, write one module with a class like `samplers.surf.Sampler`, whose `request(index, attempt)` is a pure
function, name it in `options.choices` with its default ratio, and add it to `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from options.choices import TUMOR_RATIOS, SamplerName

if TYPE_CHECKING:
    from samplers.index import SlideIndex
    from samplers.patch import RequestSource


class _SamplerClass(Protocol):
    def __call__(
        self, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None
    ) -> RequestSource: ...


def build(
    name: SamplerName, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None
) -> RequestSource:
    """Return a sampler by its name.

    Args:
        name: value of --data_sampler.
        indexes: search index of each training slide.
        seed: seed of the stream; the same on all ranks.
        classes: number of classes K.
        tumor_ratio: exact share of draws aimed at classes >= 1; None for the sampler's own default.

    Raises:
        ValueError: the name is unknown, or the slides lack a class that must be drawn.
    """
    from samplers import radboud, surf

    classes_of: dict[SamplerName, _SamplerClass] = {"radboud": radboud.Sampler, "surf": surf.Sampler}
    if name not in classes_of:
        raise ValueError(f"--data_sampler {name}: choose one of {', '.join(classes_of)}")
    ratio = TUMOR_RATIOS[name] if tumor_ratio is None else tumor_ratio
    return classes_of[name](indexes, seed, classes, ratio)
