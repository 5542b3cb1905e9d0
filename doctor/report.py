"""Printing and storing findings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from system.findings import FAIL, PASS, WARN, Finding, failed, passed, warned

__all__ = ["FAIL", "PASS", "WARN", "Finding", "Report", "failed", "passed", "warned"]


@dataclass
class Report:
    """Findings in the order in which they were made, each printed at once.

    Attributes:
        log: prints one line.
        findings: all findings so far.
    """

    log: Callable[[str], None]
    findings: list[Finding] = field(default_factory=list)

    def add(self, found: Iterable[Finding]) -> None:
        """Print and keep findings."""
        for finding in found:
            self.findings.append(finding)
            self.log(f"{finding.level}  {finding.what:<12} {_one_line(finding.found)}")
            if finding.level != PASS:
                self.log(f"      {'':<12} fix: {_one_line(finding.fix)}")

    def run(self, what: str, check: Callable[..., Iterable[Finding]], *arguments: Any) -> None:
        """Run a check; if it raises, that is a finding, too."""
        try:
            found = list(check(*arguments))
        except Exception as error:
            found = [failed(what, f"{type(error).__name__}: {error}", "the check itself failed; see the error")]
        self.add(found)

    @property
    def exit_code(self) -> int:
        """0 if no check failed, else 1."""
        return int(any(finding.level == FAIL for finding in self.findings))

    def counts(self) -> dict[str, int]:
        """Number of findings per level."""
        return {level: sum(finding.level == level for finding in self.findings) for level in (PASS, WARN, FAIL)}

    def as_json(self, **more: Any) -> str:
        """The report as JSON, with further entries."""
        return json.dumps({"counts": self.counts(), "checks": [asdict(f) for f in self.findings], **more}, indent=1)


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
