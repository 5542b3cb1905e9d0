"""Steps of preprocessing by their names, in this process."""

from collections.abc import Sequence

from preprocessing.command import main
from preprocessing.steps import steps_named


def run_steps(names: Sequence[str], argv: Sequence[str]) -> int:
    """Exit code of a run of these steps."""
    return main(steps_named(names), argv)
