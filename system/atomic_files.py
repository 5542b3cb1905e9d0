"""Files and folders that are complete or absent: written elsewhere, flushed, then moved into place.

A reader never sees half a file, an old one stays until the new one is complete, and a full disk leaves nothing.

Three ways: `write_atomically` where the data is at hand (even a killed process leaves nothing), `written_whole` for
libraries that want a path, `written_folder` for files that belong together.

Own code: the package atomicwrites is unmaintained and does not write nameless files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def part_of(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: `.NAME.part` beside it."""
    return path.with_name(f".{path.name}.part")


def move_into_place(part: Path, path: Path) -> None:
    """Flush a complete file to disk, then give it its name.

    Without the flush, a power cut soon after could leave the name and no data.

    Raises:
        OSError: The disk is full or fails, or the file may not be moved.
    """
    descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, path)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path to write a file to; it gets its name when the block ends, and is removed when the block raises.

    Args:
        path: The file; its folder must exist.

    Yields:
        `.NAME.part` in the same folder.

    Raises:
        OSError: Writing, or the move at the end, failed.
    """
    part = part_of(path)
    try:
        yield part
        move_into_place(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def written_folder(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Give a new folder to write to; it takes the place of `path` when the block ends.

    It is removed when the block raises. Its files are not flushed: there may be a hundred thousand of them.

    Args:
        path: The folder.
        overwrite: Replace `path` with all it holds; else it may only be missing or empty at the end.

    Yields:
        `.NAME.part` beside it, without what a killed process left there; `.NAME.PID.part` where `path` is not to be
        replaced: another process may be writing it, too.

    Raises:
        OSError: Writing, or the move at the end, failed.
    """
    part = part_of(path) if overwrite else path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(part)
    part.mkdir(parents=True)
    try:
        yield part
        if overwrite:
            # Two moves: a folder cannot take the place of one that is not empty.
            remove(path)
        os.replace(part, path)
    except BaseException:
        # On a full disk, the partial folder must not be what fills it.
        with suppress(OSError):
            remove(part)
        raise


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a new file, flush it to disk, then move it to `path`.

    Until then the file has no name where the system can do that (Linux, not NFS): a killed process leaves nothing.
    Elsewhere it is called `.NAME.PID.part`.

    Raises:
        OSError: No space, or no permission; the new file is removed and the old `path` stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            file: IO[bytes] = os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
            nameless = True
        except OSError:
            file = part.open("wb")
            nameless = False
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if nameless:
                # With a folder given, Python calls linkat, which alone can follow this link; the path is absolute.
                os.link(f"/proc/self/fd/{file.fileno()}", part, src_dir_fd=file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file by `write_atomically`."""
    write_atomically(path, lambda file: file.write(data))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; nothing where it is missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
