"""Standard output and error that outlive their readers.

`train.py ... | head`, a `tee` that died, a terminal that was closed, a full disk under a log file: that nobody
reads any more is no reason to lose what is computed.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

_NAMES = ("stdout", "stderr")


class EnduringFile(io.FileIO):
    """A file descriptor to write to; after an error what is written goes nowhere."""

    def write(self, data: Any) -> int:
        """Write all of the data; returns the number of bytes, also where nobody reads them."""
        left = memoryview(data).cast("B")
        size = left.nbytes
        while left:
            try:
                done = super().write(left)
            except OSError:
                _to_nowhere(self.fileno())
                break
            if done is None:
                # The descriptor does not block, as launchers leave it, and the reader is slow.
                select.select([], [self.fileno()], [])
            left = left[done or 0 :]
        return size


def endure() -> None:
    """Make the standard streams of this process such files, unless something else has replaced them."""
    for number, name in enumerate(_NAMES, start=1):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        try:
            if stream.fileno() != number or isinstance(getattr(stream.buffer, "raw", None), EnduringFile):
                continue
            stream.flush()
        except (OSError, ValueError):
            continue
        # With python -u a line and its end would be two writes, between which other ranks could write.
        by_line = stream.line_buffering or stream.write_through
        raw = EnduringFile(number, "w", closefd=False)
        fresh = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=by_line)
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)


def _to_nowhere(number: int) -> None:
    """Libraries in C, and processes started from here, write there, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
