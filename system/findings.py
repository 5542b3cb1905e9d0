"""Findings of checks, in the words of the doctor."""

from __future__ import annotations

from dataclasses import dataclass

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        level: `PASS`; `WARN`, work can go on but hardly as wanted; `FAIL`, it would end with an error.
        what: what was looked at, a word or two.
        found: what was found.
        fix: what to do; empty for `PASS`.
    """

    level: str
    what: str
    found: str
    fix: str = ""


def passed(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(PASS, what, found)


def warned(what: str, found: str, fix: str) -> Finding:
    """Work can go on."""
    return Finding(WARN, what, found, fix)


def failed(what: str, found: str, fix: str) -> Finding:
    """It would end with an error."""
    return Finding(FAIL, what, found, fix)


def worst(findings: list[Finding]) -> str:
    """The worst level of all; `PASS` of none."""
    return max((finding.level for finding in findings), key=(PASS, WARN, FAIL).index, default=PASS)
