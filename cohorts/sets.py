"""Training and validation slides from folders, CAMELYON layouts or a manifest; all slides of a data set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cohorts.camelyon import by_centers, camelyon, filter_centers
from cohorts.pairing import Case, case_of, find_slides, ids_of_label, known_problems, list_files, pair, slides_and_masks
from cohorts.spacings import spacing_of
from cohorts.splits import NORMAL, split
from slides.names import composed, existing, id_of
from system.csv_tables import counted


@dataclass(frozen=True)
class Source:
    """Paths of slides and their labels.

    Attributes:
        slide_path: folder or file.
        label_path: folder or file; None if all slides are normal.
        slide_format: suffix of the slides.
        label_format: a key of `pairing.LABEL_SUFFIXES`.
        recursive: search all folders below, too.
    """

    slide_path: Path
    label_path: Path | None
    slide_format: str
    label_format: str
    recursive: bool = False


@dataclass(frozen=True)
class Slides:
    """All slides of a data set, for preprocessing.

    Attributes:
        cases: sorted by id, each id once.
        val_ids: ids of the validation slides; None if not specified.
        notes: for the user.
        faults: files that do not pair; only `paired_only` fills it.
    """

    cases: list[Case]
    val_ids: frozenset[str] | None
    notes: list[str]
    faults: tuple[str, ...] = ()


Centers = tuple[Sequence[int], Sequence[int]]
Chosen = tuple[list[Case], list[Case], list[str]]
_SPLITS = ("train", "val", "test")


def from_folders(train: Source, val: Source | None, centers: Centers, val_share: float, seed: int) -> Chosen:
    """Training and validation slides from folders.

    Args:
        train: training data.
        val: validation data; None to hold out slides of `train`.
        centers: CAMELYON17 centers of training and of validation; -1 for all.
        val_share: share to hold out if neither `val` nor validation centers are given.
        seed: of the split.

    Returns:
        Training cases, validation cases, notes for the user.

    Raises:
        ValueError: files do not pair, a set is empty, or a slide is in both.
    """
    found = _pairs(train)
    if val is not None:
        return _finish(filter_centers(found, centers[0]), filter_centers(_pairs(val), centers[1]), [])
    return _split_if_needed(by_centers(found, *centers), val_share, seed)


def from_camelyon(
    which: str, root: Path, formats: tuple[str, str], centers: Centers, val_share: float, seed: int
) -> Chosen:
    """Training and validation slides of CAMELYON16 or 17 in a standard layout; see `from_folders`.

    `formats` are the formats of slides and of labels.
    """
    sets = camelyon(which, root, centers[0], centers[1], label_format=formats[1], slide_format=formats[0])
    return _split_if_needed((sets.train, sets.val, sets.notes), val_share, seed)


def from_manifest(path: Path, slide_root: Path | None, centers: Centers) -> Chosen:
    """Training and validation slides from a manifest (`preprocessing.manifest`); see `from_folders`.

    Args:
        path: CSV with the columns slide, slide_path, label_path and split (`train`, `val`; `test` is skipped), and
            optionally patient, center, class, root and the spacing (`cohorts.spacings`).
        slide_root: folder that the paths are relative to; None: the column root, or else the folder of the manifest.
        centers: CAMELYON17 centers of training and of validation; -1 for all.

    Raises:
        ValueError: a column or value is missing or wrong, a file does not exist, or a set is empty.
    """
    split_of: dict[str, list[Case]] = {name: [] for name in _SPLITS}
    seen: set[str] = set()
    for line, row in _rows(path):
        case, split = _case(f"{path}, line {line}", row, slide_root or Path(row.get("root") or path.absolute().parent))
        if case.slide_id in seen:
            raise ValueError(f"{path}, line {line}: slide {case.slide_id} occurs twice; keep one row")
        seen.add(case.slide_id)
        split_of[split].append(case)
    for name in ("train", "val"):
        if not split_of[name]:
            raise ValueError(f"{path} has no slide with split {name}: edit some rows, or make it from more slides")
    notes = [f"not used: {counted(len(split_of['test']), 'slide')} with split test"] if split_of["test"] else []
    return _finish(filter_centers(split_of["train"], centers[0]), filter_centers(split_of["val"], centers[1]), notes)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows of a manifest with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [
                name for name in ("slide", "slide_path", "label_path", "split") if name not in (reader.fieldnames or ())
            ]
            if absent:
                raise ValueError(
                    f"{path} has no column {', '.join(absent)}; a manifest comes from run_prepro.sh (python -m "
                    "preprocessing.manifest)"
                )
            return [(reader.line_num, {key: _cell(key, value) for key, value in row.items() if key}) for row in reader]
    except OSError as error:
        raise ValueError(
            f"manifest {path} cannot be read: {error.strerror}; give the file that run_prepro.sh wrote"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"manifest {path} is not a CSV table in UTF-8: {error}") from error


def _cell(column: str, value: str | None) -> str:
    """Text of a cell, without blanks around it unless it is a file name, which may begin or end with one."""
    text = value or ""
    return text if column in ("slide", "root", "slide_path", "label_path") and text.strip() else text.strip()


def _case(where: str, row: dict[str, str], root: Path) -> tuple[Case, str]:
    """A slide and its split."""
    slide_id, split = composed(row["slide"]), row["split"].lower()
    if split not in _SPLITS:
        raise ValueError(f"{where}: split {row['split']!r} of {slide_id} must be one of {', '.join(_SPLITS)}")
    center = row.get("center", row.get("centre", ""))  # old spelling: manifests before 0.1.0
    if center and not center.isdecimal():
        raise ValueError(f"{where}: center {center!r} of {slide_id} must be a whole number, or empty if unknown")
    slide_path = existing(root / row["slide_path"])
    label_path = existing(root / row["label_path"]) if row["label_path"] else None
    if label_path is None and row.get("class", NORMAL) not in (NORMAL, ""):
        raise ValueError(f"{where}: {slide_id} is of class {row['class']} but has no label_path; add it")
    for file in (slide_path, label_path):
        if file is not None and not file.is_file():
            raise ValueError(f"{where}: {file} does not exist; give the current folder of the files as --slide_root")
    if id_of(slide_path) != slide_id:
        raise ValueError(f"{where}: slide must be the name of {slide_path.name} without its suffix, not {slide_id}")
    patient, um_px = row.get("patient") or None, spacing_of(where, row)
    return Case(slide_id, slide_path, label_path, patient, int(center) if center else None, um_px), split


def all_in_folders(train: Source, val: Source | None, centers: Sequence[int], labeled: bool = True) -> Slides:
    """All slides of folders.

    Args:
        train: training data.
        val: validation data, if it has folders of its own.
        centers: CAMELYON17 centers to use; -1 for all.
        labeled: pair slides with their labels; else their truth is unknown.

    Raises:
        ValueError: files do not pair, a center has no slides, or an id occurs in both.
    """
    found = _pairs if labeled else _unlabeled
    first, second = found(train), found(val) if val is not None else []
    twice = {case.slide_id for case in first} & {case.slide_id for case in second}
    if twice:
        raise ValueError(
            f"{counted(len(twice), 'slide')} in training and in validation, first {sorted(twice)[0]}: outputs are "
            "named by slide id, so remove them from one"
        )
    cases = filter_centers(sorted([*first, *second], key=lambda case: case.slide_id), centers)
    val_ids = frozenset(case.slide_id for case in second) if val is not None else None
    return Slides(cases, val_ids, known_problems(cases))


def paired_only(sources: Sequence[Source], fault: str) -> Slides:
    """Slides of folders that do not pair, so that the others can still be checked: each slide with one label or none.

    Args:
        sources: folders.
        fault: message about the files that do not pair.

    Raises:
        ValueError: a folder is missing, or has no slide or label at all.
    """
    slides: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for source in sources:
        found = slides_and_masks(source.slide_path, source.slide_format, source.recursive, source.label_path)[0]
        for path in found:
            slides.setdefault(id_of(path), []).append(path)
        if source.label_path is not None:
            taken = {path.resolve() for path in found}
            for path in list_files(source.label_path, source.label_format, "label", source.recursive):
                if path.resolve() not in taken:
                    for slide_id in ids_of_label(path):
                        labels.setdefault(slide_id, []).append(path)
    cases = [
        case_of(slide_id, paths[0], next(iter(labels.get(slide_id, [])), None))
        for slide_id, paths in sorted(slides.items())
        if len(paths) == 1 and len(labels.get(slide_id, [])) <= 1
    ]
    return Slides(cases, None, [], (fault,))


def all_of_camelyon(which: str, root: Path, formats: tuple[str, str], centers: Sequence[int]) -> Slides:
    """All training slides of CAMELYON16 or 17 in a standard layout; see `all_in_folders` and `camelyon.camelyon`.

    `formats` are the formats of slides and of labels.
    """
    sets = camelyon(which, root, centers, label_format=formats[1], slide_format=formats[0])
    return Slides(sets.train, None, [*sets.notes, *known_problems(sets.train)])


def _pairs(source: Source) -> list[Case]:
    return pair(source.slide_path, source.label_path, source.slide_format, source.label_format, source.recursive)


def _unlabeled(source: Source) -> list[Case]:
    return find_slides(source.slide_path, source.slide_format, source.recursive)


def _split_if_needed(chosen: tuple[list[Case], list[Case] | None, list[str]], val_share: float, seed: int) -> Chosen:
    """Hold out a share of the training slides if no validation slides were chosen."""
    train, val, notes = chosen
    if val is None:
        train, val = split(train, val_share, seed)
    return _finish(train, val, notes)


def _finish(train: list[Case], val: list[Case], notes: list[str]) -> Chosen:
    """Refuse slides that are in both sets, which would falsify the score; warn about slides with known problems."""
    both = sorted({case.slide_path.resolve() for case in train} & {case.slide_path.resolve() for case in val})
    if both:
        raise ValueError(
            f"{counted(len(both), 'slide')} in training and in validation, first {both[0]}: remove them from one"
        )
    return train, val, [*notes, *known_problems([*train, *val])]
