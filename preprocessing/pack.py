"""Many files as one: an uncompressed tar whose files are read in place (`slides.packed.PackedFiles`), never unpacked.

    OUT/pack/NAME.tar          the files below --files, by name; the same bytes for the same files
    OUT/pack/NAME.tar.json     place and size of every file
    OUT/pack/NAME-00000.tar    and so on, with --shard_gb: shards are written at the same time and resumed one by one

Hidden files are left out. Names are relative to --files; times, owners and rights are not kept.

python -m preprocessing.pack --files OUT/extract_tissue --out OUT
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cohorts.pairing import Case
from options.parser import Parser, positive, whole
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
NAMED = 10

File = tuple[str, Path]  # name in the archive, and where it is


@dataclass(frozen=True)
class Options:
    """Nothing changes what is in an archive but its files."""


def files_below(folder: Path, suffixes: Sequence[str]) -> list[File]:
    """Files to be packed, sorted by name.

    Args:
        folder: folder; links to files count as files, linked folders are not entered.
        suffixes: take only these, without a dot and in small letters; none: all.

    Raises:
        ValueError: there are none, a folder cannot be listed, or a name cannot be a member's.
    """
    if not folder.is_dir():
        raise ValueError(f"--files {folder} is no folder; give the folder whose files shall be packed")
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
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise ValueError(
            f"{len(wrong)} files have names that an archive shall not hold: {', '.join(sorted(wrong)[:NAMED])}{more}; "
            "rename them: UTF-8, no backslash, no colon before the first /"
        )
    if not found:
        raise ValueError(f"--files {folder} has no files{' of these suffixes' if suffixes else ''}")
    return sorted(found)


def shards(files: Sequence[File], name: str, most_bytes: float | None) -> dict[str, list[File]]:
    """Which archive holds which files: in their order, a new one where `most_bytes` would be passed.

    Args:
        files: see `files_below`.
        name: of the archive, without a suffix.
        most_bytes: of files in a shard; a larger file has one of its own. None: one archive.
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
    """The step for archives as of `shards`."""
    return Step(NAME, 1, partial(make, plan), Options(), partial(reads, plan), partial(finish, name))


def reads(plan: Mapping[str, Sequence[File]], case: Case, _out: Path) -> list[Path]:
    """The files of an archive; the first is the case's own."""
    return [path for _, path in plan[case.slide_id][1:]]


def make(plan: Mapping[str, Sequence[File]], case: Case, out: Path, _options: Options) -> StepResult:
    """Write one archive and its index.

    Raises:
        ValueError: a file changed meanwhile.
        OSError: a file cannot be read, or the archive not be written; nothing is left behind.
    """
    files = plan[case.slide_id]
    path = out / NAME / f"{case.slide_id}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    # First: an index of other files must never stand beside these.
    index_path(path).unlink(missing_ok=True)
    with written_whole(path) as part:
        with tarfile.TarFile(part, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=COPY_BYTES) as tar:
            for name, file in files:
                _add(tar, name, file)
        # Read back from the headers: what the index says is what a reader without it would see.
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
            if error.errno is not None:  # of the system; without a number it is tarfile's "unexpected end of data"
                raise
            raise ValueError(f"{path} shrank while it was packed; run this again when nobody writes to it") from error
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(f"{path} changed while it was packed; run this again when nobody writes to it")


def finish(name: str, out: Path, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Remove shards of earlier runs that are none any more: a reader would take them for part of this set."""
    now = {case.slide_id for case in cases}
    old = [
        shard for shard in marked(out, NAME) if shard not in now and re.fullmatch(re.escape(name) + r"(-\d{5})?", shard)
    ]
    for shard in old:
        store.forget(out, NAME, shard)
    lines = [f"{NAME:<15} removed, no longer part of {name}: {', '.join(old)}"] if old else []
    good = [outcome.result.values for outcome in outcomes if outcome.state != FAILED]
    states = Counter(outcome.state for outcome in outcomes)
    words = ", ".join(f"{states[state]} {state}" for state in (DONE, UNCHANGED, FAILED) if states[state])
    count, size = (sum(row[key] for row in good) for key in ("files", "bytes"))
    packed = f"{counted(count, 'file')} in {counted(len(good), 'archive')}"
    return [*lines, f"{NAME:<15} {packed} ({words}), {size / GB:.2f} GB: {out / NAME}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Pack; returns the exit code, as of `preprocessing.command.main`."""
    parser = Parser("python -m preprocessing.pack", __doc__, prose=True)
    parser.add_argument("--files", type=Path, required=True, help="folder of the files to be packed")
    parser.add_argument("--suffix", nargs="+", default=[], metavar="SUFFIX", help="only these: tif jpg csv ...")
    parser.add_argument("--name", help="of the archive; default: the name of the folder")
    parser.add_argument("--shard_gb", type=positive, help="start a new archive after so many 10^9 bytes; default: one")
    parser.add_argument("--out", type=Path, required=True, help="output folder; archives are in its folder pack")
    parser.add_argument("--num_processes", type=whole(1), help="default: one per CPU; under mpirun the ranks")
    opts = parser.parse_args(argv)
    try:
        return on_all_ranks(partial(_story, parser.prog, opts), opts.num_processes)
    except ValueError as error:
        if is_first_rank():
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _story(prog: str, opts: argparse.Namespace, executor: Executor) -> int:
    """The whole run, on one rank."""
    try:
        name = opts.name or opts.files.resolve().name
        if "/" in check_name(name) or name.startswith("."):
            raise ValueError(f"--name {name!r}: wanted is a plain name that does not begin with a dot")
        if (opts.out / NAME).resolve().is_relative_to(opts.files.resolve()):
            raise ValueError(f"--out {opts.out} lies in --files {opts.files}: the archive would be packed into itself")
        suffixes = [suffix.lower().removeprefix(".") for suffix in opts.suffix]
        plan = shards(files_below(opts.files, suffixes), name, opts.shard_gb and opts.shard_gb * GB)
        cases = [Case(shard, files[0][1], None) for shard, files in plan.items()]
        packing = step(plan, name)
        with FolderLock(opts.out) as held:
            for note in held.notes:
                print(f"note    {note}")
            # That the files do not lie in it was seen above.
            reserve([packing], [], opts.out)
            outcomes = run_step(packing, cases, opts.out, executor, partial(print, flush=True))
            bad = [(NAME, outcome) for outcome in outcomes if outcome.state == FAILED]
            lines = packing.finish(opts.out, cases, outcomes)
            for line in [*lines, *failures(bad)]:
                print(line, flush=True)
            return int(bool(bad))
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
