"""The output folder of a run: files written atomically, and a mark for every finished slide.

    OUT/.lock                     who works here, see `system.folder_lock`
    OUT/.done/STEP/SLIDE.json     mark of a finished slide: fingerprint of inputs and options, results, files

A mark is written once the files it names are complete, and removed before they are written again: a slide whose run was
killed has no mark and is processed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slides.names import id_of
from system import atomic_files
from system.atomic_files import part_of, remove

_DONE = ".done"


@dataclass(frozen=True)
class StepResult:
    """What a step made of one slide.

    Attributes:
        values: JSON types, for tables.
        notes: warnings for the user.
        outputs: files and folders written, relative to the output folder, with `/`.
        fault: why later steps must skip the slide; empty if they need not.
        damage: what of the slide could not be decoded and is left out or white; a note, with `--strict` a failure.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    fault: str = ""
    damage: str = ""


# ------------------------------------------------------------------------------------------------------ atomic writing


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all; creates its folder.

    Raises:
        OSError: the file could not be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_bytes(path, data)


def write_text(path: Path, text: str) -> None:
    """See `write_bytes`; UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left in a step's folder. Only the run that holds the lock may call it."""
    remove(part_of(target))
    for part in target.glob(".*.part"):
        remove(part)


def check_output(out: Path, suffixes: tuple[str, ...], inputs: Iterable[Path]) -> None:
    """Check that a single output file may be written.

    Args:
        out: the file.
        suffixes: allowed suffixes, lower case.
        inputs: files that are read.

    Raises:
        ValueError: the file is an input, has another suffix, is not a regular file, or its folder is missing.
    """
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"--out {out}: its name must end in {' or '.join(suffixes)}")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} exists but is not a regular file; choose another path")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: folder {out.parent} does not exist")
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"--out {out} is the input file {path}; choose another path")


def reserve(root: Path, targets: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Check that steps may write and remove their targets, and mark these as theirs.

    Args:
        root: output folder.
        targets: folder or file of each step in it.
        inputs: files that the run reads.

    Raises:
        ValueError: an input is, or lies in, a target; or a target exists that no run of the step has written.
    """
    own = {target.resolve(): (step, target) for step, target in targets.items()}
    for path in inputs:
        # Under its own name and as the file it links to: a step could remove either.
        for place in {path.parent.resolve() / path.name, path.resolve()}:
            for folder in (place, *place.parents):
                if folder in own:
                    step, target = own[folder]
                    raise ValueError(
                        f"{path} is an input, but the step {step} writes to {target}; choose another --out"
                    )
    for step, target in targets.items():
        done = root / _DONE / step
        if done.is_dir():
            continue
        if target.is_file() or (target.is_dir() and any(True for _ in target.iterdir())):
            raise ValueError(
                f"{target} already exists and was not written by the step {step} (there is no {done}); move it away, "
                "or choose another --out"
            )
        done.mkdir(parents=True, exist_ok=True)


# --------------------------------------------------------------------------------------------------------------- marks


def mark_path(root: Path, step: str, slide_id: str) -> Path:
    """Path of the mark of a slide."""
    return root / _DONE / step / f"{slide_id}.json"


def fingerprint(options: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """A hash of everything an output depends on: options, and files by path, size and modification time.

    Args:
        options: JSON types.
        inputs: files; a missing one is hashed as missing.

    Returns:
        32 hexadecimal digits.
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


def write_mark(root: Path, step: str, slide_id: str, name: str, result: StepResult) -> None:
    """Mark a slide as finished; its outputs must be complete.

    Args:
        root: output folder.
        step: name of the step.
        slide_id: id of the slide.
        name: see `fingerprint`.
        result: what the step made.
    """
    sizes = {output: _size(root / output) for output in result.outputs}
    stored = asdict(result) | {"outputs": sizes, "fingerprint": name}
    write_text(mark_path(root, step, slide_id), json.dumps(stored, indent=1) + "\n")


def read_mark(root: Path, step: str, slide_id: str, name: str | None = None) -> StepResult | None:
    """Read the mark of a slide.

    Args:
        root: output folder.
        step: name of the step.
        slide_id: id of the slide.
        name: required fingerprint; None for any.

    Returns:
        What the step made; None if there is no mark, the fingerprint differs, or an output is missing or has another
        size.
    """
    stored = _stored(mark_path(root, step, slide_id))
    if stored is None or (name is not None and stored["fingerprint"] != name):
        return None
    if any(_size(root / output) != size for output, size in stored["outputs"].items()):
        return None
    values, notes, outputs = stored["values"], tuple(stored["notes"]), tuple(stored["outputs"])
    return StepResult(values, notes, outputs, stored["fault"], stored.get("damage", ""))


def forget(root: Path, step: str, slide_id: str) -> None:
    """Remove the mark of a slide, and then the files it names."""
    mark = mark_path(root, step, slide_id)
    stored = _stored(mark)
    mark.unlink(missing_ok=True)
    for output in stored["outputs"] if stored else ():
        # A mark may have been edited: never remove anything outside the output folder.
        if Path(output).is_absolute() or ".." in Path(output).parts:
            continue
        remove(root / output)


def marked(root: Path, step: str) -> list[str]:
    """Sorted ids of the slides with a mark."""
    return sorted(id_of(path) for path in (root / _DONE / step).glob("*.json") if not path.name.startswith("."))


def _stored(mark: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = {"values", "notes", "outputs", "fault", "fingerprint"}
    return stored if isinstance(stored, dict) and known <= set(stored) else None


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; -1 if missing."""
    try:
        files = (entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else (path,)
        return sum(file.stat().st_size for file in files)
    except OSError:
        return -1
