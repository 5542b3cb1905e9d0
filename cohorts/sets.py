"""Which slides to train on and which to validate on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cohorts.camelyon import by_centers, camelyon, filter_centers
from cohorts.pairing import Case, case_of, ids_of_label, known_problems, list_files, pair, slides_and_masks
from cohorts.splits import NORMAL, split


@dataclass(frozen=True)
class Source:
    """Where slides and their labels are.

    Attributes:
        slide_path: folder or file.
        label_path: folder or file; None when all slides are normal.
        slide_format: suffix of the slides.
        label_format: `tif` or `xml`.
    """

    slide_path: Path
    label_path: Path | None
    slide_format: str
    label_format: str


@dataclass(frozen=True)
class Slides:
    """All slides of a data set, to be prepared.

    Attributes:
        cases: sorted by id, each id once.
        val_ids: ids of those that are for validation; None where nothing says so.
        notes: for the user.
        faults: what does not pair; only `paired_only` leaves any.
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
        centers: CAMELYON17 centres of training and of validation; -1 is all.
        val_share: share to hold out where neither `val` nor validation centres are given.
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

    `formats` are those of slides and labels.
    """
    sets = camelyon(which, root, centers[0], centers[1], label_format=formats[1], slide_format=formats[0])
    return _split_if_needed((sets.train, sets.val, sets.notes), val_share, seed)


def from_manifest(path: Path, slide_root: Path | None, centers: Centers) -> Chosen:
    """Training and validation slides from a table that `preprocessing.manifest` wrote; see `from_folders`.

    Args:
        path: CSV with the columns slide, slide_path, label_path and split (`train`, `val`; `test` is left out);
            patient, centre, class and root may be there.
        slide_root: folder that the paths are below; None: the column root says it, else the folder of the manifest.
        centers: CAMELYON17 centres of training and of validation; -1 is all.

    Raises:
        ValueError: a column or value is missing or wrong, a file does not exist, or a set is empty.
    """
    split_of: dict[str, list[Case]] = {name: [] for name in _SPLITS}
    seen: set[str] = set()
    for line, row in _rows(path):
        case, split = _case(f"{path}, line {line}", row, slide_root or Path(row.get("root") or path.absolute().parent))
        if case.slide_id in seen:
            raise ValueError(f"{path}, line {line}: slide {case.slide_id} is there twice; keep one row")
        seen.add(case.slide_id)
        split_of[split].append(case)
    for name in ("train", "val"):
        if not split_of[name]:
            raise ValueError(f"{path} has no slide with split {name}: change some rows, or make it of more slides")
    notes = [f"{len(split_of['test'])} slides with split test are left out"] if split_of["test"] else []
    return _finish(filter_centers(split_of["train"], centers[0]), filter_centers(split_of["val"], centers[1]), notes)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows of a manifest with their lines."""
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
            f"manifest {path} cannot be read: {error.strerror}; give the file run_prepro.sh wrote"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"manifest {path} is no table (CSV, UTF-8): {error}") from error


def _cell(column: str, value: str | None) -> str:
    """What stands in a cell, without blanks around it; but names of files may begin or end with one."""
    text = value or ""
    return text if column in ("slide", "root", "slide_path", "label_path") and text.strip() else text.strip()


def _case(where: str, row: dict[str, str], root: Path) -> tuple[Case, str]:
    """A slide and its split."""
    slide_id, split = row["slide"], row["split"].lower()
    if split not in _SPLITS:
        raise ValueError(f"{where}: split {row['split']!r} of {slide_id} is none of {', '.join(_SPLITS)}")
    centre = row.get("centre", "")
    if centre and not centre.isdecimal():
        raise ValueError(f"{where}: centre {centre!r} of {slide_id} is no whole number; leave it empty where unknown")
    slide_path = root / row["slide_path"]
    label_path = root / row["label_path"] if row["label_path"] else None
    if label_path is None and row.get("class", NORMAL) not in (NORMAL, ""):
        raise ValueError(f"{where}: {slide_id} is of class {row['class']} but has no label_path; add it")
    for file in (slide_path, label_path):
        if file is not None and not file.is_file():
            raise ValueError(f"{where}: {file} does not exist; say where the files are now with --slide_root")
    if slide_path.stem != slide_id:
        raise ValueError(f"{where}: slide {slide_id} is not the name of {slide_path.name} without its suffix")
    return Case(slide_id, slide_path, label_path, row.get("patient") or None, int(centre) if centre else None), split


def all_in_folders(train: Source, val: Source | None, centers: Sequence[int]) -> Slides:
    """All slides of folders.

    Args:
        train: training data.
        val: validation data, where it has folders of its own.
        centers: CAMELYON17 centres to take; -1 is all.

    Raises:
        ValueError: files do not pair, a centre has no slides, or an id occurs in both.
    """
    first, second = _pairs(train), _pairs(val) if val is not None else []
    twice = {case.slide_id for case in first} & {case.slide_id for case in second}
    if twice:
        raise ValueError(
            f"{len(twice)} slides are in training and in validation, first {sorted(twice)[0]}: outputs go by slide id, "
            "so take them out of one"
        )
    cases = filter_centers(sorted([*first, *second], key=lambda case: case.slide_id), centers)
    val_ids = frozenset(case.slide_id for case in second) if val is not None else None
    return Slides(cases, val_ids, known_problems(cases))


def paired_only(sources: Sequence[Source], fault: str) -> Slides:
    """Slides of folders that do not pair, for looking at those that do: each slide that has one label, or none.

    Args:
        sources: folders.
        fault: what does not pair.

    Raises:
        ValueError: a folder is missing, or holds no slide or label at all.
    """
    slides: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for source in sources:
        for path in slides_and_masks(source.slide_path, source.slide_format)[0]:
            slides.setdefault(path.stem, []).append(path)
        if source.label_path is not None:
            for path in list_files(source.label_path, source.label_format, "label"):
                for slide_id in ids_of_label(path):
                    labels.setdefault(slide_id, []).append(path)
    cases = [
        case_of(slide_id, paths[0], next(iter(labels.get(slide_id, [])), None))
        for slide_id, paths in sorted(slides.items())
        if len(paths) == 1 and len(labels.get(slide_id, [])) <= 1
    ]
    return Slides(cases, None, [], (fault,))


def all_of_camelyon(which: str, root: Path, formats: tuple[str, str], centers: Sequence[int]) -> Slides:
    """All training slides of CAMELYON16 or 17 in a standard layout; see `all_in_folders` and `datasets.camelyon`.

    `formats` are those of slides and labels.
    """
    sets = camelyon(which, root, centers, label_format=formats[1], slide_format=formats[0])
    return Slides(sets.train, None, [*sets.notes, *known_problems(sets.train)])


def _pairs(source: Source) -> list[Case]:
    return pair(source.slide_path, source.label_path, source.slide_format, source.label_format)


def _split_if_needed(chosen: tuple[list[Case], list[Case] | None, list[str]], val_share: float, seed: int) -> Chosen:
    """Hold out a share of the training slides where no validation slides were chosen."""
    train, val, notes = chosen
    if val is None:
        train, val = split(train, val_share, seed)
    return _finish(train, val, notes)


def _finish(train: list[Case], val: list[Case], notes: list[str]) -> Chosen:
    """Refuse slides that are in both sets (the score would be a lie); warn of known problem slides."""
    both = sorted({case.slide_path.resolve() for case in train} & {case.slide_path.resolve() for case in val})
    if both:
        raise ValueError(f"{len(both)} slides are in training and in validation, first {both[0]}: take them out of one")
    return train, val, [*notes, *known_problems([*train, *val])]
