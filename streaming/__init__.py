"""Whole slides as one image: networks of local layers applied tile by tile, exactly (docs/streaming.md)."""

from streaming.images import ArrayImage, SlideImage, Source
from streaming.layers import register
from streaming.rules import Rule
from streaming.stream import Gradients, Streamed

__all__ = ["ArrayImage", "Gradients", "Rule", "SlideImage", "Source", "Streamed", "register"]
