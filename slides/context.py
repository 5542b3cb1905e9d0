"""`python -m slides.context --out DIR [--seed S]` writes slides on which tumor shows only in a large field of view."""

from __future__ import annotations

from slides.synthetic.context import make_context
from slides.synthetic.demo import command_line

if __name__ == "__main__":
    command_line(make_context, "write slides on which tumor can be told only with a large field of view")
