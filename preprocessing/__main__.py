"""Prepares a data set once, before training: check, tissue, masks, patches, manifest. `./run_prepro.sh` starts it.

`preprocessing/steps.py` lists the steps; each is also a program of its own: `python -m preprocessing.STEP`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from options.fields import Group, add_options, option
from options.parser import Parser
from preprocessing import command
from preprocessing.steps import FULL_RUN, NAMES, steps_named


@dataclass(frozen=True, kw_only=True)
class Selection(Group):
    """Steps."""

    steps: tuple[str, ...] = option(
        FULL_RUN, choices=NAMES, metavar="STEP", help=f"any of {', '.join(NAMES)}; each adds its options to --help"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps of --steps; returns the exit code, see `command.main`."""
    # First: the options there are depend on the steps.
    parser = Parser(command.FULL_RUN, "", add_help=False)
    add_options(parser, Selection)
    steps = steps_named(parser.parse_known_args(argv)[0].steps)
    return command.main(steps, argv, command.FULL_RUN, [Selection])


if __name__ == "__main__":
    sys.exit(main())
