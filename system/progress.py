"""Progress of a program: a bar on a terminal, and a whole line now and then where the output is a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

LINE_S = 60.0  # between two lines of a batch log


class Progress:
    """How far a program has come, on standard error.

    A bar in a batch log would be one endless line full of carriage returns, in whose middle other lines begin.

    Args:
        total: amount of the whole work.
        unit: of the amounts, plural: images, windows; B for bytes.
        initial: amount done before.
        name: what is being done.
        shown: False: nothing is ever shown.
        clock: seconds.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        initial: int = 0,
        name: str = "progress",
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit, self._name, self._clock = total, unit, name, clock
        self._initial = self._done = initial
        self._note = ""
        self._start = self._last = clock()
        file = sys.stderr
        self._lines = shown and file is not None and not file.isatty()
        self._bar: Any = None
        if shown and file is not None and not self._lines:
            # It takes a tenth of a second to import.
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, desc=name, unit=unit if unit == "B" else f" {unit}",
                unit_scale=unit == "B", smoothing=0.1, mininterval=0.5, file=file,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def update(self, amount: int, note: str = "") -> None:
        """Some more is done; a note, such as the slide that is being read, is shown beside it."""
        self._done += amount
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(amount)
        elif self._lines and self._clock() - self._last >= LINE_S:
            self._last = self._clock()
            # The reader may have gone; the work has not.
            with suppress(OSError, ValueError):
                sys.stderr.write(f"{self.line()}\n")
                sys.stderr.flush()

    def line(self) -> str:
        """One line: how much is done, how long it took, and how long the rest will take at this speed."""
        seconds, fresh = self._clock() - self._start, self._done - self._initial
        left = f", {duration(seconds / fresh * max(0, self._total - self._done))} left" if fresh > 0 else ""
        done, total = (f"{n / 1e9:.2f}" if self._unit == "B" else str(n) for n in (self._done, self._total))
        unit = "GB" if self._unit == "B" else self._unit
        share = 100 * self._done // self._total if self._total else 100
        note = f"; {self._note}" if self._note else ""
        return f"{self._name:<11} {share} %, {done} of {total} {unit}, {duration(seconds)} so far{left}{note}"

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._lines = None, False


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
