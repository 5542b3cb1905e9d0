"""Whole slides as one image: networks of local layers applied tile by tile, exactly (docs/streaming.md)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaming.images import ArrayImage, SlideImage, Source
    from streaming.layers import register
    from streaming.rules import Rule
    from streaming.stream import Gradients, Streamed

__all__ = ["ArrayImage", "Gradients", "Rule", "SlideImage", "Source", "Streamed", "register"]


def __getattr__(name: str) -> Any:
    """Loads TensorFlow when it is needed: `python -m streaming.statistics --help` does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from streaming import images, layers, rules, stream

    return {**vars(images), **vars(layers), **vars(rules), **vars(stream)}[name]
