"""Slow tests, of which a run of `run_tests.sh` takes a quarter: the choice, and what every slow test must have.

A slow test has the marker `slow` and, like a quicker one that always runs, `kind("what it looks at")`.
"""

from __future__ import annotations

from collections.abc import Iterable

QUARTERS = 4


def chosen(names: Iterable[str], which: str) -> set[str]:
    """Names of the slow tests that run.

    Args:
        names: node ids of all slow tests.
        which: `all`, `none`, or the number of a quarter, 0 to 3. The four quarters are all tests, each once.

    Raises:
        ValueError: `which` is something else.
    """
    ordered = sorted(names)
    if which == "all":
        return set(ordered)
    if which == "none":
        return set()
    if which not in map(str, range(QUARTERS)):
        raise ValueError(f"WIDEFOV_SLOW={which} is not 0, 1, 2, 3, none or all")
    return set(ordered[int(which) :: QUARTERS])


def without_sibling(tests: Iterable[tuple[str, str | None, bool]]) -> list[str]:
    """Slow tests of which no quicker one of the same kind runs always.

    Args:
        tests: node id, kind (None: none), and whether it is slow, of every test.
    """
    every = list(tests)
    quick = {kind for _, kind, slow in every if not slow}
    return [name for name, kind, slow in every if slow and (kind is None or kind not in quick)]
