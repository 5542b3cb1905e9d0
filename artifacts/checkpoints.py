"""Checkpoints: one file each, written atomically, read without pickle.

A checkpoint is an uncompressed `.npz` of arrays: every model and optimizer variable by its path, the hard-mining pool,
and a JSON text with the image counter, the best score and the options. Zip keeps a CRC per array and its directory at
the end, so a truncated or damaged file is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from system.atomic_files import move_into_place, write_atomically, write_bytes
from system.csv_tables import counted

Answer = TypeVar("Answer")

KEEP = 3  # newest checkpoints kept; older ones are deleted


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit this model."""


@dataclass
class State:
    """What a checkpoint holds besides variables.

    Attributes:
        images: images trained so far, over all ranks.
        best_score: best validation score so far, mIoU of a segmentation; -1 before its first validation. Checkpoints
            before 0.2.0 call it `best_miou`.
        options: options of the run; JSON types only.
        arrays: further arrays by name (the hard-mining pool ...).
        ranks: number of ranks that it was written by.
        seconds: how long the run has taken, over all its parts.
        validation_due: the run was preempted when a validation was due.
        base_batch: patches to which `--base_lr` belongs: `--batch_size` of the run's first start; 0 in checkpoints
            before 0.1.0, which belong to their own.
    """

    images: int
    best_score: float
    options: Mapping[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    ranks: int = 1
    seconds: float = 0.0
    validation_due: bool = False
    base_batch: int = 0

    def head(self) -> dict[str, Any]:
        """All but the arrays, JSON types."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arrays"} | {
            "options": dict(self.options)
        }


def named_variables(model: Any, optimizer: Any) -> dict[str, Any]:
    """Every TensorFlow variable that training changes, by a name that does not depend on the session."""
    named = {f"model/{v.path}": v.value for v in model.variables}
    if optimizer is not None:
        # in the order of the model's variables, which its graph fixes
        named |= {f"optimizer/{i:05d}": v for i, v in enumerate(optimizer.variables)}
    return named


def remove_partials(folder: Path) -> list[str]:
    """Remove partial files that a killed run left in its `--log_dir`; returns their names."""
    patterns = ("checkpoints/.*.npz.*part", ".final.*.keras", ".final_savedmodel.*", ".final*.part")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return [path.name for path in found]


def export(model: Any, folder: Path, info: Mapping[str, Any]) -> None:
    """Write the trained model for use elsewhere: `final.keras` and the SavedModel folder `final_savedmodel`.

    `final.keras` loads with `keras.models.load_model` after `import models`; the SavedModel needs none of our code.
    Both take float32 images (B, H, W, C) in [-1, 1] and return logits. Further information about them is in
    `final.json`, and in the SavedModel's `assets.extra`, which the format leaves to its users.

    Args:
        model: in float32.
        folder: the run's log folder.
        info: information about the model (`artifacts.metadata`), JSON types.
    """
    text = (json.dumps(info, indent=1) + "\n").encode()
    partial = folder / f".final.{os.getpid()}.keras"
    model.save(partial)
    move_into_place(partial, folder / "final.keras")
    partial = folder / f".final_savedmodel.{os.getpid()}"
    model.export(partial, verbose=False)
    (partial / "assets.extra").mkdir()
    (partial / "assets.extra" / "model.json").write_bytes(text)
    shutil.rmtree(folder / "final_savedmodel", ignore_errors=True)
    os.replace(partial, folder / "final_savedmodel")
    write_bytes(folder / "final.json", text)


def exported(folder: Path, images: int) -> bool:
    """Whether `export` has written the model of this image counter completely; `final.json` comes last."""
    try:
        info = json.loads((folder / "final.json").read_text(encoding="utf-8"))
        counted_then = info.get("images", images)
    except (OSError, ValueError, AttributeError):
        return False
    return counted_then == images and (folder / "final.keras").exists() and (folder / "final_savedmodel").is_dir()


class _FirstError:
    """A file to write to that keeps its first error, and takes everything after it for written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        return self._tried(lambda: self._file.write(data), memoryview(data).nbytes)

    # A buffered file may find only here that there is no space.
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._tried(lambda: self._file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._tried(self._file.tell, 0)

    def flush(self) -> None:
        self._tried(self._file.flush, None)

    def _tried(self, action: Callable[[], Answer], otherwise: Answer) -> Answer:
        if self.error is None:
            try:
                return action()
            except OSError as error:
                self.error = error
        return otherwise


def _write_arrays(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an `.npz` to an open file.

    Raises:
        OSError: once, where the disk is full; a zip file that cannot be closed would print it again, with a traceback.
    """
    kept = _FirstError(file)
    np.savez(kept, **arrays)
    if kept.error is not None:
        raise kept.error


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: their folder; made on the first save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, model: Any, optimizer: Any, state: State) -> Path:
        """Write a checkpoint; of those named `images-COUNTER.npz` only the newest `KEEP` stay.

        Ranks: only one may call this.

        Args:
            name: file name.
            model: to save.
            optimizer: to save.
            state: what else to save.

        Returns:
            The file written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {key: v.numpy() for key, v in named_variables(model, optimizer).items()}
        arrays |= {f"extra/{key}": value for key, value in state.arrays.items()}
        arrays["state"] = np.frombuffer(json.dumps(state.head()).encode(), np.uint8)
        path = self.folder / name
        write_atomically(path, lambda file: _write_arrays(file, arrays))
        for old in self.history()[KEEP:]:
            old.unlink(missing_ok=True)
        return path

    def keep(self, path: Path, name: str) -> None:
        """Give a checkpoint a second name, under which it stays; the data are on the disk once where links are known.

        Args:
            path: the checkpoint.
            name: file name.
        """
        kept = self.folder / name
        partial = self.folder / f".{name}.{os.getpid()}.part"
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, partial)
        move_into_place(partial, kept)

    def history(self) -> list[Path]:
        """Checkpoints by image counter, newest first."""
        return sorted(self.folder.glob("images-*.npz"), reverse=True)

    def resume(
        self, wanted: str, model: Any, optimizer: Any, stream: Mapping[str, Any]
    ) -> tuple[State, Path, list[str]] | None:
        """Restore the newest readable checkpoint.

        Checkpoints of this run with a higher image counter are renamed to `abandoned-*`: the resumed run
        diverges from them, and `auto` must not return to them.

        Args:
            wanted: `auto` for the newest of this run (None is returned where there is none), else a file, or a run or
                checkpoint folder whose newest one is taken.
            model: model to fill.
            optimizer: its optimizer, to fill.
            stream: options that decide which patch an index is; the checkpoint must agree on them.

        Returns:
            The state, the file it came from, and a note for each file passed over or renamed; or None.

        Raises:
            CheckpointError: none readable, or the checkpoint is of another model or sample stream.
        """
        candidates = self._candidates(wanted)
        notes: list[str] = []
        for path in candidates:
            try:
                arrays = read_arrays(path)
            except CheckpointError as error:
                notes.append(f"{error} Falling back to the one before.")
                continue
            check_stream(path, arrays, stream)
            state = restore(path, arrays, model, optimizer)
            if path.parent.resolve() == self.folder.resolve():
                notes += self._abandon_after(state.images)
            return state, path, notes
        if wanted == "auto" and not candidates:
            return None
        raise CheckpointError(f"--resume {wanted}: no readable checkpoint. " + " ".join(notes))

    def _abandon_after(self, images: int) -> list[str]:
        """Rename the checkpoints after this image counter; a note for each."""
        later = [path for path in self.history() if path.name > f"images-{images:09d}.npz"]
        return [
            f"{path} is of a later image: renamed to {path.rename(path.with_name(f'abandoned-{path.name}')).name}."
            for path in later
        ]

    def _candidates(self, wanted: str) -> list[Path]:
        """Files to try, best first; those before a damaged one of the same folder serve as its fall-back."""
        if wanted == "auto":
            return self.history()
        path = Path(wanted)
        if path.is_dir():
            folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
            return Checkpoints(folder).history()
        if not path.exists():
            raise CheckpointError(f"--resume {wanted}: no such file or folder")
        siblings = Checkpoints(path.parent).history()
        return [path, *[p for p in siblings if p.name < path.name]]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a checkpoint.

    Raises:
        CheckpointError: unreadable, truncated or damaged, or made to run code or to fill the memory.
    """
    try:
        _refuse_growth(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        if isinstance(error, CheckpointError):
            raise
        if "allow_pickle" in str(error):
            raise CheckpointError(f"{path}: holds pickled objects, which could run any program: not read.") from error
        raise CheckpointError(f"{path}: damaged checkpoint ({error}).") from error
    if "state" not in arrays:
        raise CheckpointError(f"{path}: not a checkpoint of this program.")
    return arrays


def _refuse_growth(path: Path) -> None:
    """Refuse arrays larger than their file: ours are not compressed, and those of others could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > path.stat().st_size:
        raise CheckpointError(f"{path}: its arrays are compressed, which those of this program never are: not read.")


def restore(path: Path, arrays: Mapping[str, NDArray[Any]], model: Any, optimizer: Any) -> State:
    """Fill model and optimizer from the arrays of a checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another model or optimizer; nothing is changed then.
    """
    named = named_variables(model, optimizer)
    stored = {key: value for key, value in arrays.items() if key.startswith(("model/", "optimizer/"))}
    wrong = sorted(set(named) ^ set(stored))
    wrong += [key for key in named if key in stored and tuple(named[key].shape) != stored[key].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: of another model or optimizer ({len(wrong)} of {len(named)} variables differ, first {wrong[0]}). "
            "Resume with the same --model, --img_size and classes, or use --weights_path to take what fits"
        )
    for key, variable in named.items():
        variable.assign(stored[key])
    return state_of(arrays)


def state_of(arrays: Mapping[str, NDArray[Any]]) -> State:
    """What the arrays of a checkpoint hold besides variables."""
    extra = {key.removeprefix("extra/"): value for key, value in arrays.items() if key.startswith("extra/")}
    stored = head(arrays)
    stored.setdefault("best_score", stored.pop("best_miou", -1.0))
    return State(**stored, arrays=extra)


def changed(state: State, options: Mapping[str, Any], free: Collection[str], ranks: int) -> list[str]:
    """Differences between a resumed run and the one that wrote the checkpoint, a line each.

    Args:
        state: of the checkpoint.
        options: of the resumed run.
        free: names of options that change nothing of what is learned; batch and ranks have a line of their own.
        ranks: of the resumed run.
    """
    was = state.options
    notes = options_changed(state, options, free)
    batches = [o["batch_size"] * o["accumulate_batch"] * r for o, r in ((was, state.ranks), (options, ranks))]
    if batches[0] != batches[1]:
        notes.append(
            f"the joint batch was {batches[0]} ({counted(state.ranks, 'rank')}), is {batches[1]} "
            f"({counted(ranks, 'rank')}): the same patches in other steps. "
            "--batch_size x --accumulate_batch x ranks keeps it"
        )
    return notes


def options_changed(state: State, options: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Options that differ from those of the run that wrote a checkpoint, a line each; see `changed`."""
    was = state.options
    return [
        f"--{name} was {was[name]}, is {value}"
        for name, value in options.items()
        if name in was and name not in free and was[name] != value
    ]


OFF = (None, False, 0, "none")


def check_stream(path: Path, arrays: Mapping[str, NDArray[Any]], stream: Mapping[str, Any]) -> None:
    """Refuse to resume with another sample stream.

    Raises:
        CheckpointError: an option that decides which patch an index is has changed.
    """
    was = head(arrays)["options"]
    # An option that is younger than the checkpoint agrees with it where it is off.
    known = {name: value for name, value in stream.items() if name in was or value not in OFF}
    changed = [f"--{name} {was.get(name)}" for name, value in known.items() if was.get(name) != value]
    if changed:
        raise CheckpointError(
            f"{path}: was trained with {', '.join(changed)}. Resume with the same, or start a run with --weights_path"
        )


def head(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What a checkpoint holds besides arrays, by the names of `State`."""
    found: dict[str, Any] = json.loads(arrays["state"].tobytes())
    return found
