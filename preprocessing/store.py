"""The output folder of a run: held by one run at a time, written atomically, with a mark for all that is finished.

    OUT/.lock                     who works here
    OUT/.done/STEP/SLIDE.json     the mark of a finished slide: fingerprint of inputs and options, results, files

A mark is written after the files it names are in place, and removed before they are made again: what was killed half
way has no mark and is made anew.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from system.atomic_files import part_of, written_whole

_LOCK, _DONE = ".lock", ".done"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Made:
    """What a step made of one slide.

    Attributes:
        values: results as JSON types, for tables.
        notes: what a user should know.
        outputs: files and folders written, relative to the output folder, with `/`.
        fault: why later steps must leave the slide out; empty when they need not.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    fault: str = ""


class Held:
    """The output folder, locked for this run (use as a context).

    Args:
        root: made where missing.

    Attributes:
        notes: what a user should know.

    Raises:
        ValueError: the folder cannot be made, or another run works in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self._file: TextIO | None = None

    def __enter__(self) -> Held:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._file = (self.root / _LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"--out {self.root} cannot be written: {error.strerror}; give a folder you may write to"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another run"
            self._file.close()
            raise ValueError(
                f"--out {self.root} is in use by {holder}: wait for it to end, or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.notes.append(f"the file system of {self.root} has no locks: start no second run with this --out")
        self._file.truncate(0)
        command = shlex.join(Path(word).name if index == 0 else word for index, word in enumerate(sys.argv))
        since = time.strftime("%F %T")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})\n")
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        with suppress(OSError):  # a full disk must not hide why the run ended
            self._file.truncate(0)
        self._file.close()


# ------------------------------------------------------------------------------------------------------ atomic writing


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all; its folder is made.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """See `write_bytes`; UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left of a step's folder or file. Only for the run that holds the output folder."""
    remove(part_of(target))
    for part in target.glob(".*.part"):
        remove(part)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; nothing where it is missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_output(out: Path, suffixes: tuple[str, ...], inputs: Iterable[Path]) -> None:
    """Make sure that a single file may be written.

    Args:
        out: the file.
        suffixes: allowed ones, in small letters.
        inputs: files that are read.

    Raises:
        ValueError: it is one of the inputs, has another suffix, is no plain file, or its folder is missing.
    """
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"--out {out}: its name must end in {' or '.join(suffixes)}")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} is there and no plain file: give another")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"--out {out} is the file {path} that is read: give another")


def claim(root: Path, targets: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Make sure that steps may write and remove what they call their own.

    Args:
        root: the output folder.
        targets: each step's folder or file in it.
        inputs: files that the run reads.

    Raises:
        ValueError: a file to be read is, or lies in, one of these; or one is there that no run of the step has made.
    """
    own = {target.resolve(): (step, target) for step, target in targets.items()}
    for path in inputs:
        # As it is called and as what it links to: either may be removed.
        for place in {path.parent.resolve() / path.name, path.resolve()}:
            for folder in (place, *place.parents):
                if folder in own:
                    step, target = own[folder]
                    raise ValueError(
                        f"{path} is to be read, but {target} is where the step {step} writes: give another --out"
                    )
    for step, target in targets.items():
        done = root / _DONE / step
        if done.is_dir():
            continue
        if target.is_file() or (target.is_dir() and any(True for _ in target.iterdir())):
            raise ValueError(
                f"{target} is there already, and not from the step {step} (there is no {done}): move it away, or give "
                "another --out"
            )
        done.mkdir(parents=True, exist_ok=True)


# --------------------------------------------------------------------------------------------------------------- marks


def mark_path(root: Path, step: str, slide_id: str) -> Path:
    """The mark of a slide."""
    return root / _DONE / step / f"{slide_id}.json"


def fingerprint(options: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """A short name for all that an output depends on: options, and files by path, size and time.

    Args:
        options: JSON types.
        inputs: files; one that is missing counts as such.
    """
    files = [_signature(path) for path in inputs]
    stored = json.dumps([options, files], sort_keys=True)
    return hashlib.sha256(stored.encode()).hexdigest()[:32]


def _signature(path: Path) -> list[str | int]:
    try:
        status = path.stat()
    except OSError:
        return [str(path.absolute()), -1, -1]
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def write_mark(root: Path, step: str, slide_id: str, name: str, made: Made) -> None:
    """Say that a slide is finished; its outputs must be in place.

    Args:
        root: output folder.
        step: name of the step.
        slide_id: id of the slide.
        name: see `fingerprint`.
        made: what was made.
    """
    sizes = {output: _size(root / output) for output in made.outputs}
    stored = asdict(made) | {"outputs": sizes, "fingerprint": name}
    write_text(mark_path(root, step, slide_id), json.dumps(stored, indent=1) + "\n")


def read_mark(root: Path, step: str, slide_id: str, name: str | None = None) -> Made | None:
    """What was made of a slide.

    Args:
        root: output folder.
        step: name of the step.
        slide_id: id of the slide.
        name: the fingerprint it must have; None for any.

    Returns:
        None where there is no mark, it has another fingerprint, or one of its outputs is missing or has another size.
    """
    stored = _stored(mark_path(root, step, slide_id))
    if stored is None or (name is not None and stored["fingerprint"] != name):
        return None
    if any(_size(root / output) != size for output, size in stored["outputs"].items()):
        return None
    return Made(stored["values"], tuple(stored["notes"]), tuple(stored["outputs"]), stored["fault"])


def forget(root: Path, step: str, slide_id: str) -> None:
    """Remove a slide's mark, and then what it names."""
    mark = mark_path(root, step, slide_id)
    stored = _stored(mark)
    mark.unlink(missing_ok=True)
    for output in stored["outputs"] if stored else ():
        # Marks are ours, but may have been edited: nothing outside the output folder is removed.
        if Path(output).is_absolute() or ".." in Path(output).parts:
            continue
        remove(root / output)


def marked(root: Path, step: str) -> list[str]:
    """Ids of the slides that have a mark, sorted."""
    return sorted(path.stem for path in (root / _DONE / step).glob("*.json") if not path.name.startswith("."))


def _stored(mark: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = {"values", "notes", "outputs", "fault", "fingerprint"}
    return stored if isinstance(stored, dict) and known <= set(stored) else None


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; -1 where it is missing."""
    try:
        files = (entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else (path,)
        return sum(file.stat().st_size for file in files)
    except OSError:
        return -1
