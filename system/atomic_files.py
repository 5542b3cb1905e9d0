"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where a file or folder is written before it gets its name."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the place to write a file to; it gets its name when the block ends, and is removed when the block raises.

    So a reader never sees half a file, an old one stays until the new one is whole, and a full disk leaves nothing.

    Args:
        path: The file; its folder must exist.

    Yields:
        `.NAME.part` in the same folder.

    Raises:
        OSError: Whatever writing, or the renaming at the end, raised.
    """
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
