"""What a run has reached so far: the rows that it appends to `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Curve:
    """Values of one score of a run by image counter, read as they are written.

    Attributes:
        path: `metrics.jsonl` of the run.
        kind: of rows, e.g. `val`.
        score: name in a row.
        points: images -> value; a score that is not defined is left out.
        others: names of scores that rows of that kind have.
    """

    path: Path
    kind: str
    score: str
    points: dict[int, float] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    _size: int = -1

    def update(self) -> bool:
        """Read the file if it has changed; whether there are new values."""
        try:
            size = self.path.stat().st_size
        except OSError:
            return False
        if size == self._size:
            return False
        self._size = size
        before = dict(self.points)
        self.points.clear()
        # Read as a whole: a run that is resumed cuts the rows behind its checkpoint.
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            self._take(line)
        return self.points != before

    def _take(self, line: str) -> None:
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            return  # the last line is being written
        if not isinstance(row, dict) or row.get("kind") != self.kind:
            return
        value = row.get(self.score)
        self.others |= {name for name, other in row.items() if isinstance(other, (int, float))} - {"images", "seconds"}
        if isinstance(value, (int, float)) and math.isfinite(value):
            self.points[int(row["images"])] = float(value)

    def best(self, minimize: bool, until: int | None = None) -> float | None:
        """The best value, up to an image counter; None without any."""
        values = [value for images, value in self.points.items() if until is None or images <= until]
        if not values:
            return None
        return min(values) if minimize else max(values)
