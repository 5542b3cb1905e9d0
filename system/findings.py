"""Findings of checks, shared by the doctor and the check of a data set."""

from __future__ import annotations

from dataclasses import dataclass

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: `PASS`; `WARN`, the run would work, but probably not as intended; `FAIL`, it would end with an error.
        what: subject of the check, one or two words.
        found: the result.
        fix: what to do; empty for `PASS`.
    """

    level: str
    what: str
    found: str
    fix: str = ""


def passed(what: str, found: str) -> Finding:
    """A finding of level `PASS`."""
    return Finding(PASS, what, found)


def warned(what: str, found: str, fix: str) -> Finding:
    """A finding of level `WARN`."""
    return Finding(WARN, what, found, fix)


def failed(what: str, found: str, fix: str) -> Finding:
    """A finding of level `FAIL`."""
    return Finding(FAIL, what, found, fix)


def worst(findings: list[Finding]) -> str:
    """The worst level among findings; `PASS` for none."""
    return max((finding.level for finding in findings), key=(PASS, WARN, FAIL).index, default=PASS)
