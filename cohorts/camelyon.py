"""CAMELYON16 and CAMELYON17 as downloaded: slides, labels and centers from the standard folder layouts."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cohorts.pairing import (
    LABEL_SUFFIXES,
    Case,
    center_of,
    ids_of_label,
    list_files,
    named,
    pair_files,
    slides_and_masks,
)
from slides.names import id_of
from slides.truth.label import OUTLINE_SUFFIXES
from system.csv_tables import counted

ALL_CENTERS = -1


@dataclass(frozen=True)
class Sets:
    """Slides of a data set.

    Attributes:
        train: slides to train on.
        val: slides to validate on; None if a share of `train` is to be held out.
        notes: slides left out, and why, for the user.
    """

    train: list[Case]
    val: list[Case] | None
    notes: list[str]


@dataclass(frozen=True)
class _Layout:
    """Folders below the root: all existing folders of `slides` are used, of `xml` and `tif` (labels) the only one."""

    slides: tuple[str, ...]
    xml: tuple[str, ...]
    tif: tuple[str, ...]


_FLAT = _Layout(("images",), ("annotations",), ("masks",))
# Sources: READMEs of both data sets (GigaDB 100439), the older Google Drive folders, the Registry of Open Data on AWS.
_LAYOUTS = {
    "16": (
        _Layout(
            ("training/tumor", "training/normal"),
            ("training/lesion_annotations",),
            ("training/tumor_mask", "training/tumor_masks", "training/lesion_masks", "training/mask", "training/masks"),
        ),
        _Layout(
            ("TrainingData/Train_Tumor", "TrainingData/Train_Normal"),
            ("TrainingData/Ground_Truth/XML",),
            ("TrainingData/Ground_Truth/Mask", "TrainingData/Ground_Truth/Masks"),
        ),
        _FLAT,
    ),
    "17": (
        _Layout(
            ("training",),
            ("training/lesion_annotations", "lesion_annotations"),
            ("training/lesion_masks", "training/mask", "training/masks"),
        ),
        _FLAT,
    ),
}
_TEST = {"16": re.compile(r"test_\d", re.IGNORECASE), "17": re.compile(r"patient_1\d\d(?:_|$)", re.IGNORECASE)}
_STAGE_TABLES = ("training/stage_labels.csv", "stage_labels.csv", "stages.csv", "training/stages.csv")
_NODE_CLASSES = ("negative", "itc", "micro", "macro")


def camelyon(
    which: str,
    root: Path,
    train_centers: Sequence[int] = (ALL_CENTERS,),
    val_centers: Sequence[int] = (ALL_CENTERS,),
    label_format: str = "tif",
    slide_format: str = "tif",
) -> Sets:
    """Training slides of CAMELYON16 or 17 below a root, without the test slides of the challenges.

    A CAMELYON17 slide without a label is normal only if the table of stages calls it negative: most slides with tumor
    were never annotated. Masks of CAMELYON16's normal slides are not used: such a slide is class 0 everywhere.

    Args:
        which: `16` or `17`.
        root: folder of the data set, or the folder that holds it as `CAMELYON16` / `CAMELYON17`.
        train_centers: centers to train on; -1 for all. File names of CAMELYON16 do not give the center.
        val_centers: centers to validate on, which are then not trained on; -1 leaves `Sets.val` None.
        label_format: a key of `pairing.LABEL_SUFFIXES`.
        slide_format: suffix of the slides.

    Returns:
        The sets, both sorted by slide id.

    Raises:
        ValueError: the root has no standard layout, or more than one; labels are missing or do not pair (see
            `pairing.pair`); the table of stages is malformed; a center has no slides.
    """
    if which not in _LAYOUTS:
        raise ValueError(f"dataset {which!r} is unknown; choose one of {', '.join(_LAYOUTS)}")
    base = _base(root, which)
    slides, masks, labels = _files(which, base, slide_format, label_format)
    notes = []
    is_test = _TEST[which]
    test = [path for path in slides if is_test.match(path.name)]
    if test:
        notes.append(f"left out: {counted(len(test), 'test slide')} of CAMELYON{which}: {named(test)}")
    slides, masks, labels = (
        [path for path in paths if not is_test.match(path.name)] for paths in (slides, masks, labels)
    )
    # Labels are a small download, slides a large one: labels of centers that are not used need no slides.
    if ALL_CENTERS not in train_centers:
        ids = {id_of(path) for path in slides}
        wanted = {*train_centers, *val_centers}
        labels = [path for path in labels if center_of(path) in wanted or ids.intersection(ids_of_label(path))]
    cases = pair_files(slides, labels, masks)
    cases, more = _camelyon16_truth(cases) if which == "16" else _camelyon17_truth(cases, base)
    train, val, removed = by_centers(cases, train_centers, val_centers)
    return Sets(train, val, [*notes, *more, *removed])


def by_centers(
    cases: Sequence[Case], train_centers: Sequence[int], val_centers: Sequence[int]
) -> tuple[list[Case], list[Case] | None, list[str]]:
    """Training and validation slides by center; no slide is in both.

    Args:
        cases: all slides.
        train_centers: centers to train on; -1 for all.
        val_centers: centers to validate on; -1: none are held out.

    Returns:
        Training cases; validation cases, None if `val_centers` is -1; notes for the user.

    Raises:
        ValueError: see `filter_centers`; or no slide is left to train on.
    """
    train = filter_centers(cases, train_centers)
    if list(val_centers) == [ALL_CENTERS]:
        return train, None, []
    val = filter_centers(cases, val_centers)
    held = {case.slide_id for case in val}
    rest = [case for case in train if case.slide_id not in held]
    if not rest:
        raise ValueError(
            f"val_centers {_numbers(val_centers)} hold every slide of train_centers {_numbers(train_centers)}, so none "
            "is left to train on; choose other centers, or leave val_centers at -1 to hold out a share of the slides"
        )
    shared = len(train) - len(rest)
    note = f"not trained on: {counted(shared, 'slide')} of validation centers {_numbers(val_centers)}"
    return rest, val, [note] if shared else []


def filter_centers(cases: Sequence[Case], centers: Sequence[int]) -> list[Case]:
    """Slides of some medical centers.

    Args:
        cases: slides.
        centers: numbers of centers; -1 alone for all.

    Returns:
        The slides of these centers, in their order.

    Raises:
        ValueError: -1 beside other centers, a slide whose center is unknown, or a center without slides.
    """
    if list(centers) == [ALL_CENTERS]:
        return list(cases)
    if ALL_CENTERS in centers:
        raise ValueError(f"centers {_numbers(centers)} name all (-1) and single ones; give -1 alone, or omit it")
    unknown = [case.slide_path for case in cases if case.center is None]
    if unknown:
        raise ValueError(
            f"centers {_numbers(centers)} were requested, but the center of {named(unknown)} is unknown: it comes from "
            "a folder called center_K or from the number in patient_NNN; move the slides, or request all centers (-1)"
        )
    existing = sorted({case.center for case in cases if case.center is not None})
    absent = sorted(set(centers).difference(existing))
    if absent or not centers:
        raise ValueError(
            f"no slides of center {_numbers(absent)}; there are slides of centers {_numbers(existing)}; -1 is all"
        )
    return [case for case in cases if case.center in centers]


def read_stages(path: Path) -> dict[str, str]:
    """Read node classes from CAMELYON17's table of stages.

    Args:
        path: CSV with columns `patient` and `stage`; rows `patient_NNN_node_M.tif,CLASS` beside rows of patients.

    Returns:
        Slide id -> `negative`, `itc`, `micro` or `macro`.

    Raises:
        ValueError: a column is missing, a class is unknown, or a slide has two classes.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if not {"patient", "stage"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} must have the columns patient and stage, not {reader.fieldnames}; restore the original file"
            )
        rows = [
            (reader.line_num, (row["patient"] or "").strip(), (row["stage"] or "").strip().lower()) for row in reader
        ]
    class_of: dict[str, str] = {}
    for line, name, node_class in rows:
        if not name.lower().endswith((".tif", ".tiff")):
            continue
        if node_class not in _NODE_CLASSES:
            raise ValueError(
                f"{path}, line {line}: class {node_class!r} of {name} must be one of {', '.join(_NODE_CLASSES)}"
            )
        slide_id = id_of(Path(name))
        if class_of.setdefault(slide_id, node_class) != node_class:
            raise ValueError(
                f"{path}, line {line}: {slide_id} is both {class_of[slide_id]} and {node_class}; keep one row"
            )
    return class_of


def _camelyon16_truth(cases: Iterable[Case]) -> tuple[list[Case], list[str]]:
    """Drop the labels of slides called normal."""
    cases = list(cases)
    normal = [case for case in cases if case.labeled and case.slide_id.lower().startswith("normal_")]
    note = f"{len(normal)} labels of normal slides are not used: a normal slide is class 0 everywhere"
    return [replace(case, label_path=None) if case in normal else case for case in cases], [note] if normal else []


def _camelyon17_truth(cases: Iterable[Case], base: Path) -> tuple[list[Case], list[str]]:
    """Drop slides without a label that are not known to be negative."""
    table = next((path for name in _STAGE_TABLES if (path := _find(base, name)) is not None), None)
    class_of = read_stages(table) if table else {}
    source = table.name if table else f"there is no {' or '.join(dict.fromkeys(_STAGE_TABLES))} in {base}"
    kept, notes = [], []
    left_out: dict[str, list[Path]] = {}
    for case in cases:
        node_class = class_of.get(case.slide_id)
        if case.labeled or node_class == "negative":
            kept.append(case)
        else:
            left_out.setdefault(node_class or "unknown", []).append(case.slide_path)
        if case.labeled and node_class == "negative":
            notes.append(f"{case.slide_path} has a label but is negative in {source}; the label is used")
    notes += [
        f"left out: {counted(len(paths), 'slide')} without a label, of class {node_class} ({source}): {named(paths)}"
        for node_class, paths in sorted(left_out.items())
    ]
    if not kept:
        raise ValueError(f"no slide in {base} has a label or is known to be negative: {'; '.join(notes)}")
    return kept, notes


def _files(which: str, base: Path, slide_format: str, label_format: str) -> tuple[list[Path], list[Path], list[Path]]:
    """Slides, masks beside the slides, and labels of the only layout found."""
    there = [layout for layout in _LAYOUTS[which] if _existing(base, layout.slides)]
    if len(there) != 1:
        looked = "; ".join(" and ".join(layout.slides) for layout in _LAYOUTS[which])
        found = ", ".join(folder for layout in there for folder in layout.slides)
        problem = (
            f"has more than one layout of CAMELYON{which} ({found})" if there else f"is not a CAMELYON{which} folder"
        )
        raise ValueError(
            f"{base} {problem}: looked for {looked}; found {named(_children(base)) or 'nothing'}; set data_root to the "
            "folder above them, or give slide and label paths instead"
        )
    layout = there[0]
    outlines = set(LABEL_SUFFIXES.get(label_format.lower().lstrip("."), ())) <= set(OUTLINE_SUFFIXES)
    candidates = layout.xml if outlines else layout.tif
    folders = _existing(base, candidates)
    slide_folders = _existing(base, layout.slides)
    if len(folders) != 1:
        above = dict.fromkeys(path.parent for path in slide_folders)
        raise ValueError(
            f"{base} has {'more than one folder' if folders else 'no folder'} of {label_format} labels: looked for "
            f"{', '.join(candidates)}; found {named(path for folder in above for path in _children(folder))}; "
            "rename folders so that one of these remains, or set label_format to the format of the labels"
        )
    slides, masks = [], []
    for folder in slide_folders:
        more_slides, more_masks = slides_and_masks(folder, slide_format)
        slides += more_slides
        masks += more_masks
    return slides, masks, list_files(folders[0], label_format, "label")


def _base(root: Path, which: str) -> Path:
    if not root.is_dir():
        raise ValueError(f"data_root {root} is not a folder; set it to the folder of CAMELYON{which}")
    return _find(root, f"CAMELYON{which}") or root


def _existing(base: Path, names: Iterable[str]) -> list[Path]:
    found = (_find(base, name) for name in names)
    return [path for path in found if path is not None and path.is_dir()]


def _find(base: Path, name: str) -> Path | None:
    """A path below the base, ignoring case; ValueError if names differ only in case."""
    for part in name.split("/"):
        matches = [child for child in _children(base) if child.name.lower() == part.lower()]
        if not matches:
            return None
        if len(matches) > 1:
            raise ValueError(f"{named(matches)} differ only in case; keep one of them in {base}")
        base = matches[0]
    return base


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _numbers(centers: Iterable[int]) -> str:
    return " ".join(str(center) for center in centers) or "(none)"
