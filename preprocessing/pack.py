"""Packs many files into one uncompressed tar, whose files are read in place (`slides.packed.PackedFiles`).

    OUT/pack/NAME.tar          the files below --files, sorted by name; the same bytes for the same files
    OUT/pack/NAME.tar.json     place and size of every file
    OUT/pack/NAME-00000.tar    and so on, with --shard_gb: shards are written in parallel and resumed one by one

Hidden files are skipped. Names are relative to --files; times, owners and permissions are not stored.

python -m preprocessing.pack --files OUT/extract_tissue --out OUT
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cohorts.pairing import Case, named
from options.fields import Group, option, read
from options.parser import Parser, positive
from options.preprocess import Work
from parallel.launchers import is_first_rank
from preprocessing import store
from preprocessing.executors import Executor, on_all_ranks
from preprocessing.runner import DONE, FAILED, UNCHANGED, Outcome, Step, failures, reserve, run_step
from preprocessing.store import StepResult, marked
from slides.packed import PackedFiles, PackError, check_name, index_path, index_text
from system.atomic_files import written_whole
from system.csv_tables import counted
from system.folder_lock import FolderLock

NAME = "pack"
GB = 10**9
COPY_BYTES = 2**22

File = tuple[str, Path]  # name in the archive, and where it is


@dataclass(frozen=True)
class Options:
    """No options: the content of an archive depends only on its files."""


def files_below(folder: Path, suffixes: Sequence[str]) -> list[File]:
    """Find the files to pack, sorted by name.

    Args:
        folder: folder; links to files count as files, linked folders are not entered.
        suffixes: suffixes of the files to take, without a dot and in lower case; empty: all files.

    Raises:
        ValueError: there are no files, a folder cannot be listed, or a name is not allowed in an archive.
    """
    if not folder.is_dir():
        raise ValueError(f"--files {folder} is not a folder; give the folder whose files are to be packed")
    found: list[File] = []
    wrong: list[str] = []

    def refuse(error: OSError) -> None:
        raise ValueError(f"folder {error.filename} cannot be listed: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file_name in names:
            path = Path(parent, file_name)
            if file_name.startswith(".") or not path.is_file():
                continue
            if suffixes and path.suffix.lower().removeprefix(".") not in suffixes:
                continue
            name = path.relative_to(folder).as_posix()
            try:
                check_name(name).encode("utf-8")
            except (PackError, UnicodeEncodeError):
                wrong.append(repr(name))
            found.append((name, path))
    if wrong:
        raise ValueError(
            f"{len(wrong)} files have names that are not allowed: {named(sorted(wrong))}; "
            "rename them: UTF-8, no backslash, no colon before the first /"
        )
    if not found:
        raise ValueError(f"--files {folder} has no files{' of these suffixes' if suffixes else ''}")
    return sorted(found)


def shards(files: Sequence[File], name: str, most_bytes: float | None) -> dict[str, list[File]]:
    """Assign files to archives, in their order; a new archive starts when `most_bytes` would be exceeded.

    Args:
        files: see `files_below`.
        name: name of the archive, without a suffix.
        most_bytes: largest sum of file sizes per shard; a larger file gets a shard of its own. None: one archive.

    Returns:
        Name of each archive -> its files.
    """
    if most_bytes is None:
        return {name: list(files)}
    groups: list[list[File]] = [[]]
    size = 0
    for file in files:
        more = file[1].stat().st_size
        if groups[-1] and size + more > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += more
    return {f"{name}-{number:05d}": group for number, group in enumerate(groups)}


def step(plan: Mapping[str, Sequence[File]], name: str) -> Step:
    """The step that writes archives.

    Args:
        plan: see `shards`.
        name: name of the archive, without a suffix.
    """
    return Step(NAME, 1, partial(make, plan), Options(), partial(reads, plan), partial(finish, name))


def reads(plan: Mapping[str, Sequence[File]], case: Case, _out: Path) -> list[Path]:
    """For `Step.reads`: the files of an archive except the first, which is the slide of the case."""
    return [path for _, path in plan[case.slide_id][1:]]


def make(plan: Mapping[str, Sequence[File]], case: Case, out: Path, _options: Options) -> StepResult:
    """Write one archive and its index.

    Raises:
        ValueError: a file changed meanwhile.
        OSError: a file cannot be read, or the archive cannot be written; nothing is left behind.
    """
    files = plan[case.slide_id]
    path = out / NAME / f"{case.slide_id}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    # First: an old index must never lie beside the new archive.
    index_path(path).unlink(missing_ok=True)
    with written_whole(path) as part:
        with tarfile.TarFile(part, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=COPY_BYTES) as tar:
            for name, file in files:
                _add(tar, name, file)
        # The index is built from the headers, so a reader with it sees the same as a reader without it.
        members = PackedFiles(part).members
        assert list(members) == [name for name, _ in files], "written in this order"
        size = part.stat().st_size
    store.write_text(index_path(path), index_text(members, size))
    names = path.name, index_path(path).name
    return StepResult({"files": len(files), "bytes": size}, (), tuple(f"{NAME}/{name}" for name in names))


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        info = tarfile.TarInfo(name)  # owner, group and time are 0
        info.size, info.mode = before.st_size, 0o644
        try:
            tar.addfile(info, file)
        except OSError as error:
            if error.errno is not None:  # tarfile's "unexpected end of data" has no number
                raise
            raise ValueError(
                f"{path} shrank while it was packed; run this again when no process writes to it"
            ) from error
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(f"{path} changed while it was packed; run this again when no process writes to it")


def finish(name: str, out: Path, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Remove shards of earlier runs that are no longer part of the set: readers would take them for it."""
    now = {case.slide_id for case in cases}
    old = [
        shard for shard in marked(out, NAME) if shard not in now and re.fullmatch(re.escape(name) + r"(-\d{5})?", shard)
    ]
    for shard in old:
        store.forget(out, NAME, shard)
    lines = [f"{NAME:<15} removed, no longer part of {name}: {', '.join(old)}"] if old else []
    good = [outcome.result.values for outcome in outcomes if outcome.state != FAILED]
    states = Counter(outcome.state for outcome in outcomes)
    state_counts = ", ".join(f"{states[state]} {state}" for state in (DONE, UNCHANGED, FAILED) if states[state])
    count, size = (sum(row[key] for row in good) for key in ("files", "bytes"))
    packed = f"{counted(count, 'file')} in {counted(len(good), 'archive')}"
    return [*lines, f"{NAME:<15} {packed} ({state_counts}), {size / GB:.2f} GB: {out / NAME}"]


@dataclass(frozen=True, kw_only=True)
class Archive(Group):
    """Archive."""

    files: Path = option(required=True, metavar="DIR", help="folder of the files to pack")
    suffix: tuple[str, ...] = option((), nargs="+", metavar="SUFFIX", help="only these files: tif jpg csv ...")
    name: str | None = option(help="name of the archive; default: name of the folder")
    shard_gb: float | None = option(
        parse=positive, unit="GB", help="start another archive after this many 10^9 bytes; default: one archive"
    )

    @property
    def stem(self) -> str:
        """Name of the archive, without a suffix."""
        return self.name or self.files.resolve().name

    def plan(self, out: Path) -> dict[str, list[File]]:
        """Name of each archive -> its files.

        Args:
            out: output folder.

        Raises:
            ValueError: see `files_below`; or the name is not allowed, or the archive would be packed into itself.
        """
        if "/" in check_name(self.stem) or self.stem.startswith("."):
            raise ValueError(f"--name {self.stem!r}: a name without / that does not start with a dot is needed")
        if (out / NAME).resolve().is_relative_to(self.files.resolve()):
            raise ValueError(f"--out {out} is inside --files {self.files}: the archive would be packed into itself")
        suffixes = [suffix.lower().removeprefix(".") for suffix in self.suffix]
        return shards(files_below(self.files, suffixes), self.stem, self.shard_gb and self.shard_gb * GB)


@dataclass(frozen=True, kw_only=True)
class PackOptions(Group):
    """All options of the program."""

    archive: Archive
    work: Work


def main(argv: Sequence[str] | None = None) -> int:
    """Pack; returns the exit code, as `preprocessing.command.main`."""
    parser = Parser("python -m preprocessing.pack", __doc__, prose=True)
    options = read(PackOptions, parser, argv)
    try:
        return on_all_ranks(partial(_execute, parser.prog, options), options.work.num_processes)
    except ValueError as error:
        if is_first_rank():
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _execute(prog: str, options: PackOptions, executor: Executor) -> int:
    """The whole run, on rank 0; returns the exit code."""
    out = options.work.out
    try:
        plan = options.archive.plan(out)
        cases = [Case(shard, files[0][1], None) for shard, files in plan.items()]
        packing = step(plan, options.archive.stem)
        with FolderLock(out) as lock:
            for note in lock.notes:
                print(f"note    {note}")
            # No inputs: `plan` has checked that the files do not lie in the output folder.
            reserve([packing], [], out)
            outcomes = run_step(packing, cases, out, executor, partial(print, flush=True))
            bad = [(NAME, outcome) for outcome in outcomes if outcome.state == FAILED]
            lines = packing.finish(out, cases, outcomes)
            for line in [*lines, *failures(bad)]:
                print(line, flush=True)
            return int(bool(bad))
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
