"""Files in an uncompressed tar, read in place: one large file for the file system, any file of it at once for us.

`preprocessing.pack` writes such archives with an index beside them, but any plain tar will do. Own code: tarfile
has one position for all readers, which neither threads nor forked processes can share.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyvips

from slides.tiff.backends import drop_handle, file_key

VERSION = 1
INDEX_SUFFIX = ".json"
BUFFER_BYTES = 2**16


class PackError(ValueError):
    """An archive that cannot be used; the message names it and what to do."""


@dataclass(frozen=True)
class Member:
    """Where a file lies in an archive.

    Attributes:
        offset: Its first byte.
        size: Bytes.
    """

    offset: int
    size: int


class PackedFiles:
    """The files of an archive; a light description that pickles, forks and is shared by threads.

    Reads go to places given by number (`pread`), so that nobody moves anybody else's position.

    Args:
        path: The tar. The index beside it (`NAME.tar.json`) is taken where it fits the archive's size; otherwise the
            headers are read, one per member.

    Attributes:
        path: The tar.
        members: Place of each file, by name, in the archive's order. Names are relative, with `/`.

    Raises:
        PackError: The file is missing, compressed, truncated or damaged, a name leads out of a folder or is there
            twice, or a member is not a regular file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._fd: int | None = None
        try:
            self._status = _status(self.path)
            found = _indexed(self.path) or _scanned(self.path)
        except (OSError, tarfile.TarError) as error:
            raise PackError(f"archive {self.path} cannot be read: {error}; expected an uncompressed tar") from error
        self.members: Mapping[str, Member] = found

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": None}

    def read(self, name: str) -> bytes:
        """Return all bytes of a file.

        Raises:
            PackError: The archive has no file of this name, or the archive was replaced or cut.
        """
        member = self._member(name)
        return self._pread(member.size, member.offset, name)

    def open(self, name: str) -> io.BufferedReader:
        """Open a file for reading; it can be sought in, and used beside others.

        Raises:
            PackError: The archive has no file of this name, or the archive was replaced.
        """
        return io.BufferedReader(_MemberFile(self, name, self._member(name)), BUFFER_BYTES)

    def vips(self, name: str, **options: Any) -> pyvips.Image:
        """Open an image by libvips, which reads only what it needs of it (tiles of a TIFF, a level: `page=1`).

        For one process; a child that was forked opens its own.

        Args:
            name: Of the file.
            options: Of the loader, e.g. `page`, `access`.

        Raises:
            PackError: The archive has no file of this name.
            pyvips.Error: It is no image, or damaged.
        """
        file = self.open(name)

        def read(count: int) -> bytes:
            try:
                return file.read(count)
            except PackError:
                return b""  # libvips says where it ends; an error here would only be printed

        source = pyvips.SourceCustom()
        source.on_read(read)
        source.on_seek(file.seek)
        return pyvips.Image.new_from_source(source, "", **options)

    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """Give a path for libraries that want one (`Slide`, OpenSlide): a copy in memory, gone when the block ends.

        Costs a read of the whole file; worth it for many reads from one file. Use it in one thread.

        Yields:
            A path of this process, with the name's suffix; not for other processes.

        Raises:
            PackError: The archive has no file of this name.
            OSError: The copy does not fit into memory.
        """
        member = self._member(name)
        with tempfile.TemporaryDirectory(prefix="packed-", dir=_memory_folder()) as folder:
            copy = Path(folder) / PurePosixPath(name).name
            with copy.open("wb") as file:
                for start in range(0, member.size, 2**22):
                    file.write(self._pread(min(2**22, member.size - start), member.offset + start, name))
            try:
                yield copy
            finally:
                # A `Slide` leaves its file open for later reads: the memory would stay in use.
                drop_handle(file_key(copy))

    def _member(self, name: str) -> Member:
        found = self.members.get(name)
        if found is None:
            first = ", ".join(list(self.members)[:3]) or "nothing"
            raise PackError(f"archive {self.path} holds no {name!r}; it has {len(self.members)} files: {first} ...")
        return found

    def _open(self) -> int:
        if self._fd is None:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise PackError(f"archive {self.path} cannot be read: {error.strerror}") from error
            # Two threads may both come here: each file is closed with this object, whichever is kept.
            weakref.finalize(self, os.close, fd)
            if _status(fd) != self._status:
                raise PackError(f"archive {self.path} was replaced since it was opened: open it again")
            self._fd = fd
        return self._fd

    def _pread(self, count: int, offset: int, name: str) -> bytes:
        fd = self._open()
        parts = []
        while count:
            # The kernel gives at most 2 GiB at once.
            part = os.pread(fd, count, offset)
            if not part:
                raise PackError(f"archive {self.path} ends inside {name!r}: it is incomplete: pack it again")
            parts.append(part)
            count -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _MemberFile(io.RawIOBase):
    """One file of an archive, with a position of its own."""

    def __init__(self, packed: PackedFiles, name: str, member: Member) -> None:
        super().__init__()
        self._packed, self._member, self._at = packed, member, 0
        self.name = name

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be sought in."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as of any file; beyond the end nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._member.size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}: before the file's first byte")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read on from the position."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._member.size - self._at))
        view[:count] = self._packed._pread(count, self._member.offset + self._at, self.name) if count else b""
        self._at += count
        return count


def check_name(name: str) -> str:
    """A member's name, where it is one that cannot lead anywhere else when it is used as a path.

    Raises:
        PackError: It is empty, absolute or not in its shortest form, goes up, or has a backslash or a NUL in it.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or ":" in parts[0]:
        raise PackError(f"name {name!r}: wanted is a relative path without ., .., backslashes, or a drive's colon")
    return name


def index_path(path: Path) -> Path:
    """Where the index of an archive is."""
    return path.with_name(path.name + INDEX_SUFFIX)


def index_text(members: Mapping[str, Member], archive_bytes: int) -> str:
    """The index of an archive as JSON, one member per line."""
    rows = [json.dumps([name, member.offset, member.size], ensure_ascii=False) for name, member in members.items()]
    listed = "[\n  " + ",\n  ".join(rows) + "\n ]" if rows else "[]"
    return f'{{\n "version": {VERSION},\n "archive_bytes": {archive_bytes},\n "members": {listed}\n}}\n'


def _indexed(path: Path) -> dict[str, Member] | None:
    """Members by the index; None where there is none, or it belongs to an archive of another size."""
    index = index_path(path)
    try:
        stored = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PackError(f"index {index} is damaged: {error}; remove it, then the headers are read") from error
    size = path.stat().st_size
    try:
        if stored["version"] != VERSION or stored["archive_bytes"] != size:
            return None
        found: dict[str, Member] = {}
        for name, offset, length in stored["members"]:
            if not (type(offset) is type(length) is int and 0 <= offset <= offset + length <= size):
                raise PackError(f"index {index}: {name!r} lies outside of the archive's {size} bytes; remove the index")
            _add(found, name, Member(offset, length), path)
    except PackError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PackError(f"index {index} is damaged: {error!r}; remove it, then the headers are read") from error
    return found


def _scanned(path: Path) -> dict[str, Member]:
    """Members by their headers."""
    found: dict[str, Member] = {}
    size = path.stat().st_size
    with tarfile.open(path, "r:", encoding="utf-8") as tar:
        for info in tar:
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise PackError(
                    f"archive {path}: {info.name!r} is not a regular file (a link, a device, sparse): pack again"
                )
            if info.offset_data + info.size > size:
                raise PackError(f"archive {path} ends inside {info.name!r}: it is incomplete: pack it again")
            # `tar -C FOLDER -cf NAME.tar .` names its files ./a
            _add(found, info.name.removeprefix("./"), Member(info.offset_data, info.size), path)
    return found


def _add(found: dict[str, Member], name: str, member: Member, path: Path) -> None:
    try:
        check_name(name)
    except PackError as error:
        raise PackError(f"archive {path}: {error}") from error
    if name in found:
        raise PackError(f"archive {path}: {name!r} is there twice")
    found[name] = member


def _status(file: Path | int) -> tuple[int, int, int]:
    status = os.stat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _memory_folder() -> str | None:
    """A folder in memory; None (the system's) where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # a folder of our own is made in it
