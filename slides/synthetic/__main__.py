"""`python -m slides.synthetic --out DIR [--seed S]` writes the slides of the demo."""

from __future__ import annotations

from slides.synthetic.demo import command_line, make_demo

if __name__ == "__main__":
    command_line(make_demo, "write small H&E-like slides with annotations and masks")
