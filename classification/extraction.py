"""Writes archives of features (`classification.features`): ranks share the slides, and a killed run is resumed.

While it is written there are, beside OUT.tar,

    OUT.tar.maps/features.json     what the maps depend on; another run than this may not continue
    OUT.tar.maps/SLIDE/000.npy     finished maps, complete or absent
    .OUT.tar.part                  the archive as far as it goes: a map is appended, then removed from the folder, so
                                   that the disk need not hold all of them twice

and in the end only OUT.tar and its index OUT.tar.json.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from classification.features import ALL_FIELDS, DESCRIPTION, Features, FeaturesError, Settings, member_name, parsed
from classification.stream import Stream
from parallel.comm import AgreedError, Comm, together
from slides.packed import Member, PackedFiles, check_name, index_path, index_text
from streaming import Source
from system.atomic_files import move_into_place, part_of, write_atomically, write_bytes
from system.folder_lock import FolderLock

Item = tuple[str, int]  # id of a slide, and number of the copy
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
COPY_BYTES = 2**22
NAMED = 5  # slides in a message


@dataclass(frozen=True)
class Extraction:
    """What to extract.

    Attributes:
        path: archive to write.
        settings: what the maps depend on.
        items: slides and copies, in the archive's order; copies of a slide count from 0.
        view: the image of an item: 8-bit px or px in [-1, 1].
        extra: further files of the archive, such as labels.csv.
    """

    path: Path
    settings: Settings
    items: Sequence[Item]
    view: Callable[[str, int], Source]
    extra: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse items that a reader would not find again."""
        found: dict[str, list[int]] = {}
        for slide_id, copy in self.items:
            found.setdefault(slide_id, []).append(copy)
        for slide_id, copies in found.items():
            if sorted(copies) != list(range(len(copies))):
                raise ValueError(f"copies {copies} of {slide_id}: each is wanted once, counted from 0")

    @property
    def folder(self) -> Path:
        """Where finished maps wait."""
        return self.path.with_name(self.path.name + ".maps")

    def place(self, item: Item) -> Path:
        """File of a finished map."""
        return self.folder / member_name(*item)


def extract(
    extraction: Extraction,
    stream: Stream,
    comm: Comm,
    stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda _: None,
) -> bool:
    """Write the archive; maps of an earlier run that was interrupted are taken over.

    Ranks: every rank makes its share of the maps, rank 0 puts them together.

    Args:
        extraction: what to extract.
        stream: the classifier.
        comm: the ranks.
        stop: whether this rank was asked to stop; asked between maps.
        log: rank 0: called with a line now and then.

    Returns:
        True when the archive is complete; False when some rank was asked to stop before. The same call resumes.

    Raises:
        AgreedError: maps of other settings are there, the disk is full, or images cannot be read; all others are done
            then, and kept.
    """
    assert not stream.features, "maps are made of images"
    with _locked(extraction, comm) as todo:
        made = together(comm, lambda: _own_share(extraction, stream, comm, todo, stop, log))
        failed = [line for part in comm.gather(made.failed) for line in part]
        stopped = any(comm.gather(made.stopped))
        if failed and not stopped:
            more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
            raise AgreedError(
                f"{len(failed)} of {len(extraction.items)} maps could not be made: {'; '.join(failed[:NAMED])}{more}. "
                "Repair the images or leave out the slides, then repeat the command: finished maps are kept"
            )
        if not stopped:
            together(comm, lambda: _pack(extraction, log) if comm.rank == 0 else None)
    if comm.rank == 0 and not stopped:
        shutil.rmtree(extraction.folder, ignore_errors=True)
    return not stopped


@dataclass
class _Share:
    """What a rank made: failures as text, and whether it was asked to stop."""

    failed: list[str] = field(default_factory=list)
    stopped: bool = False


@contextmanager
def _locked(extraction: Extraction, comm: Comm) -> Iterator[list[Item]]:
    """Hold the folder of finished maps, and give the items that remain; the same on all ranks."""
    lock: Any = FolderLock(extraction.folder, "--save_path") if comm.rank == 0 else nullcontext()
    together(comm, lock.__enter__)
    try:
        todo = together(comm, lambda: _begin(extraction) if comm.rank == 0 else None)
        yield comm.gather(todo)[0]
    finally:
        lock.__exit__(None, None, None)


def _begin(extraction: Extraction) -> list[Item]:
    """Check what is there; the items that remain.

    Raises:
        FeaturesError: it is not of these settings.
        ValueError: an id cannot be a name in an archive.
    """
    path, folder = extraction.path, extraction.folder
    for item in extraction.items:
        check_name(member_name(*item))
    if path.exists():
        found = Features(path)
        misfits = found.settings.misfits(extraction.settings, ALL_FIELDS)
        if misfits or not all(copy < found.copies.get(slide_id, 0) for slide_id, copy in extraction.items):
            what = "; ".join(misfits) or "it has other slides or fewer copies"
            raise FeaturesError(
                f"features {path} already exist, {what}; choose another --save_path, or remove the file"
            )
        if not index_path(path).exists():
            _write_index(path)
        return []
    described = folder / DESCRIPTION
    if described.exists():
        before = parsed(described.read_bytes(), str(described))
        misfits = before.misfits(extraction.settings, ALL_FIELDS)
        if misfits:
            raise FeaturesError(
                f"{folder} holds maps of an interrupted extraction with other settings: "
                f"{'; '.join(misfits).replace('in the archive', 'there')}; repeat its options, or remove the folder "
                f"and {part_of(path)}"
            )
    else:
        part_of(path).unlink(missing_ok=True)
        write_bytes(described, extraction.settings.text().encode())
    for left in folder.glob("*/.*.part"):
        left.unlink()
    packed = _complete_members(part_of(path))[0]
    return [
        item for item in extraction.items if member_name(*item) not in packed and not extraction.place(item).exists()
    ]


def _own_share(
    extraction: Extraction,
    stream: Stream,
    comm: Comm,
    todo: Sequence[Item],
    stop: Callable[[], bool],
    log: Callable[[str], None],
) -> _Share:
    """Make this rank's maps.

    Raises:
        OSError: a map cannot be written.
    """
    share, began = _Share(), time.monotonic()
    # Ranks: in turn, so that all have about the same number from every part of the list.
    own = todo[comm.rank :: comm.size]
    if len(todo) < len(extraction.items) and comm.rank == 0:
        log(f"features    {len(extraction.items) - len(todo)} of {len(extraction.items)} maps are there already")
    for number, item in enumerate(own, start=1):
        if stop():
            share.stopped = True
            break
        try:
            map_HWC = _map(extraction, stream, item)
        except (ValueError, OSError) as error:
            share.failed.append(f"{item[0]}: {error}")
            continue
        place = extraction.place(item)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, lambda file, array=map_HWC: np.save(file, array, allow_pickle=False))  # type: ignore[misc]
        if comm.rank == 0:
            each = (time.monotonic() - began) / number
            log(f"features    map {number} of {len(own)} of this rank, {each:.1f} s each: {member_name(*item)}")
    return share


def _map(extraction: Extraction, stream: Stream, item: Item) -> Any:
    """The map of an item, (H', W', C) as it is stored.

    Raises:
        ValueError: the image cannot be read, or numbers are too large for the type.
    """
    exact_HWC = stream.map(extraction.view(*item))[0].astype(np.float32)
    if not np.isfinite(exact_HWC).all():
        raise ValueError("its map is not finite; the weights may be damaged, or extract with --mixed_precision float32")
    with np.errstate(over="ignore"):
        map_HWC = exact_HWC.astype(extraction.settings.dtype)
    if not np.isfinite(map_HWC).all():
        largest = float(np.abs(exact_HWC).max())
        raise ValueError(f"its map has numbers up to {largest:g}, too large for float16; store float32")
    return map_HWC


# ------------------------------------------------------------------------------------------------------------- archive


def _pack(extraction: Extraction, log: Callable[[str], None]) -> None:
    """Move all maps into the archive.

    Raises:
        OSError: the archive cannot be written.
    """
    path = extraction.path
    if path.exists():
        return
    part = part_of(path)
    packed, end = _complete_members(part)
    with part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(end)
        file.seek(end)
        small = {DESCRIPTION: extraction.settings.text().encode(), **extraction.extra}
        for name, data in small.items():
            if name not in packed:
                _append(file, name, len(data), [data])
        for item in extraction.items:
            place = extraction.place(item)
            if member_name(*item) not in packed:
                _append(file, member_name(*item), place.stat().st_size, _parts(place))
            # Only what is on the disk may be removed.
            file.flush()
            os.fsync(file.fileno())
            place.unlink(missing_ok=True)
        end = file.tell() + 2 * BLOCK
        file.truncate(-(-end // RECORD) * RECORD)
    index_path(path).unlink(missing_ok=True)
    move_into_place(part, path)
    _write_index(path)
    log(f"features    {len(extraction.items)} maps in {path}, {path.stat().st_size / 1e9:.2f} GB")


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(COPY_BYTES):
            yield part


def _append(file: IO[bytes], name: str, size: int, parts: Iterable[bytes]) -> None:
    """Write a member at the end of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8"))
    for part in parts:
        file.write(part)
    file.write(bytes(-size % BLOCK))


def _complete_members(part: Path) -> tuple[dict[str, Member], int]:
    """Members of an archive that was cut short, without the one that is incomplete, and where the last one ends."""
    found: dict[str, Member] = {}
    end = 0
    if not part.exists():
        return found, end
    size = part.stat().st_size
    try:
        with tarfile.open(part, "r:", encoding="utf-8") as tar:
            for info in tar:
                after = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if after > size:
                    break
                found[info.name], end = Member(info.offset_data, info.size), after
    except tarfile.TarError:  # the header of the next one is incomplete
        pass
    return found, end


def _write_index(path: Path) -> None:
    write_bytes(index_path(path), index_text(PackedFiles(path).members, path.stat().st_size).encode())
