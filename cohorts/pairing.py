"""Pairs slides with labels by exact slide id, never by sort order or similarity.

The id of a slide is its file name without the last suffix, in Unicode's composed form. The label of slide `tumor_001`
is `tumor_001.xml`, `tumor_001.geojson` (or `tumor_001.svs.geojson`), `tumor_001_Mask.tif`, `tumor_001_mask.png` or,
outside the folder of the slides, `tumor_001.tif`.
Files that do not pair are an error that names them. OME-TIFF has `.ome` before the suffix: a label may omit it, or have
it after `_mask`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slides.geometry import Pair
from slides.names import id_of
from slides.truth.label import MASK_SUFFIXES, has_outlines

# Not DICOM: a slide there consists of many .dcm files.
SLIDE_SUFFIXES: dict[str, tuple[str, ...]] = {"tif": (".tif", ".tiff"), "tiff": (".tif", ".tiff")} | {
    name: (f".{name}",) for name in ("svs", "ndpi", "mrxs", "vms", "vmu", "scn", "bif", "svslide", "czi")
}
SLIDE_SUFFIXES |= {"ome.tif": (".ome.tif", ".ome.tiff"), "ome.tiff": (".ome.tif", ".ome.tiff")}
ALL_SLIDE_SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in SLIDE_SUFFIXES.values() for suffix in suffixes))
LABEL_SUFFIXES: dict[str, tuple[str, ...]] = {
    "tif": (".tif", ".tiff"),
    "tiff": (".tif", ".tiff"),
    "xml": (".xml",),
    "geojson": (".geojson",),
    "png": (".png",),
}

# Source: notes of the CAMELYON16 organizers (README of the data set).
_KNOWN_PROBLEMS = {
    "normal_086": "is called normal but contains tumor, which would be learned as normal tissue",
    "test_049": "is a duplicate of another test slide, so it counts twice in an evaluation",
    "test_114": "is not annotated completely, so tumor found outside its annotation would count as a false positive",
}
_CENTER_FOLDER = re.compile(r"cent(?:er|re)_(\d+)", re.IGNORECASE)
_PATIENT = re.compile(r"(patient_(\d{3}))(?:_|$)", re.IGNORECASE)
_MASK_ENDING = "_mask"
_OME = ".ome"
# Files of folders that preprocessing or prediction wrote, where masks and maps would be taken for slides.
_OWN_OUTPUT = ((".done",), ("summary.json", "label.tif"))
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Case:
    """One slide with its label.

    Attributes:
        slide_id: file name of the slide without its last suffix, composed (see `slides.names`).
        slide_path: the slide.
        label_path: ASAP XML, QuPath GeoJSON or a mask; None for a normal slide, which is class 0 everywhere.
        patient: `patient_NNN` if the slide's name begins with it, else None.
        center: number of the medical center; None if unknown.
        um_px: spacing of level 0 along x and y, um per px, in place of every other; None if not given for the slide.
    """

    slide_id: str
    slide_path: Path
    label_path: Path | None
    patient: str | None = None
    center: int | None = None
    um_px: Pair | None = None

    @property
    def labeled(self) -> bool:
        """Whether the slide has a label file."""
        return self.label_path is not None


def pair(
    slide_path: Path,
    label_path: Path | None,
    slide_format: str = "tif",
    label_format: str = "tif",
    recursive: bool = False,
) -> list[Case]:
    """Pair slides with their labels; a slide without a label counts as normal.

    For slides whose truth is unknown (prediction), use `find_slides`.

    Args:
        slide_path: one file; or a folder: its top level, or its `center_K` folders if the top level has no such file.
        label_path: the same for the labels; may be the folder of the slides; None if all slides are normal.
        slide_format: a key of `SLIDE_SUFFIXES`; `tif` also takes `.tiff`.
        label_format: a key of `LABEL_SUFFIXES`.
        recursive: search all folders below, too; one of the labels inside that of the slides holds no slides.

    Returns:
        One case per slide, sorted by id.

    Raises:
        ValueError: a path is missing, empty or without files of its format; two slides share an id; a slide has two
            labels; a label has no slide; a CAMELYON16 `tumor_*` slide has no label; a label path was given but nothing
            pairs; none was given but masks lie beside the slides.
    """
    slides, masks = slides_and_masks(slide_path, slide_format, recursive, label_path)
    if label_path is None:
        if masks:
            raise ValueError(
                f"masks beside the slides, but no label path: {named(masks)}; give {slide_path} as label path too, "
                "or move the masks elsewhere if all slides are normal"
            )
        return pair_files(slides, [])
    neighbors = slides_and_masks(slide_path.parent, slide_format)[0] if slide_path.is_file() else slides
    taken = {path.resolve() for path in neighbors}
    found = list_files(label_path, label_format, "label", recursive)
    labels = [path for path in found if path.resolve() not in taken]
    # A single slide of a data set: the labels of the other slides are not orphans.
    if slide_path.is_file() and label_path.is_dir():
        labels = [path for path in labels if id_of(slides[0]) in ids_of_label(path)]
    used = {path.resolve() for path in labels}
    cases = pair_files(slides, labels, [path for path in masks if path.resolve() not in used])
    if not any(case.labeled for case in cases):
        raise ValueError(
            f"no label in {label_path} belongs to a slide of {slide_path}: the slides are {named(slides)}; the files "
            f"in the label path are {named(found)}; name a label <slide id>.xml, <slide id>.geojson or "
            f"<slide id>{_MASK_ENDING}.tif, or omit the label path if all slides are normal"
        )
    return cases


def find_slides(slide_path: Path, slide_format: str = "tif", recursive: bool = False) -> list[Case]:
    """Find slides whose truth is unknown, for prediction; `label_path` is None without meaning "normal".

    Args:
        slide_path: a folder or one file, as in `pair`.
        slide_format: a key of `SLIDE_SUFFIXES`.
        recursive: search all folders below, too.

    Returns:
        One case per slide, sorted by id, without the masks beside the slides.

    Raises:
        ValueError: as in `pair`, for the errors that concern slides.
    """
    slides, masks = slides_and_masks(slide_path, slide_format, recursive)
    by_id = _slides_by_id(slides)
    _labels_by_id(by_id, masks)
    return [case_of(slide_id, path, None) for slide_id, path in sorted(by_id.items())]


def pair_files(slides: Iterable[Path], labels: Iterable[Path], masks_beside: Iterable[Path] = ()) -> list[Case]:
    """Pair given slide files with given label files; for folders use `pair`.

    Args:
        slides: slide files.
        labels: label files, in any order.
        masks_beside: masks, by name, in the folder of the slides that are not used as labels: each needs a slide too.

    Returns:
        One case per slide, sorted by id.

    Raises:
        ValueError: as in `pair`.
    """
    by_id = _slides_by_id(slides)
    _labels_by_id(by_id, masks_beside)
    labels_of = _labels_by_id(by_id, labels)
    doubled = [path for paths in labels_of.values() if len(paths) > 1 for path in paths]
    if doubled:
        raise ValueError(f"more than one label for a slide: {named(doubled)}; keep one label per slide")
    unlabeled = sorted(slide_id for slide_id in by_id if slide_id not in labels_of)
    bare = [by_id[slide_id] for slide_id in unlabeled if slide_id.lower().startswith("tumor_")]
    if bare:
        raise ValueError(
            f"tumor slides without a label: {named(bare)}; by their CAMELYON16 names they are not normal slides: "
            "give the folder with their labels, add the missing files, or remove these slides"
        )
    return [
        case_of(slide_id, path, labels_of[slide_id][0] if slide_id in labels_of else None)
        for slide_id, path in sorted(by_id.items())
    ]


def list_files(path: Path, file_format: str, what: str, recursive: bool = False) -> list[Path]:
    """List the files of one format at a path, sorted.

    Args:
        path: one file; or a folder: its top level, or its `center_K` folders if the top level has no such file.
        file_format: a key of `SLIDE_SUFFIXES` or `LABEL_SUFFIXES`, upper or lower case, with or without a leading dot.
        what: `slide` or `label`: selects the allowed formats and names the option in messages.
        recursive: search all folders below, too, but hidden ones and those that preprocessing or prediction wrote.

    Returns:
        At least one file; never folders (such as the data folders of MRXS) or hidden files.

    Raises:
        ValueError: unknown format, missing path, empty folder, no file of the format, a dangling link, or a name that
            is not UTF-8.
    """
    allowed = SLIDE_SUFFIXES if what == "slide" else LABEL_SUFFIXES
    suffixes = allowed.get(file_format.lower().lstrip("."))
    if suffixes is None:
        raise ValueError(f"{what}_format {file_format!r} is unknown; choose one of {', '.join(allowed)}")
    if path.is_file():
        if not path.name.lower().endswith(suffixes):
            raise ValueError(
                f"{what}_path {path} is not a {' or '.join(suffixes)} file; set {what}_format to its format"
            )
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"{what}_path {path} does not exist; give a folder of {' or '.join(suffixes)} files, or one such file"
        )
    entries = sorted(_below(path, set())) if recursive else _entries(path)
    found = _of_format(entries, suffixes)
    if not found and not recursive:
        centers = [entry for entry in entries if entry.is_dir() and _CENTER_FOLDER.fullmatch(entry.name)]
        entries = entries + [entry for center in centers for entry in _entries(center)]
        found = _of_format(entries, suffixes)
    if not found:
        there = sorted({entry.suffix.lower() or "files without a suffix" for entry in entries if entry.is_file()})
        held = f"it has {', '.join(there)}" if there else ("only folders" if entries else "it is empty")
        searched = (
            f"all folders in it were searched; check the path and {what}_format"
            if recursive
            else f"only its top level and folders called center_K are searched (--recursive: all folders in it); check "
            f"the path and {what}_format"
        )
        raise ValueError(f"{what}_path {path} has no {' or '.join(suffixes)} file ({held}); {searched}")
    dangling = [entry for entry in found if not entry.exists()]
    if dangling:
        raise ValueError(
            f"{what}_path {path} has links to files that do not exist: {named(dangling)}; repair or remove them"
        )
    strange = [entry for entry in found if not _has_text_name(entry)]
    if strange:
        raise ValueError(
            f"file names that are not UTF-8: {', '.join(map(repr, map(str, strange[:10])))}; rename the files"
        )
    return found


def known_problems(cases: Iterable[Case]) -> list[str]:
    """Warnings for CAMELYON16 slides with known faults; no slide is dropped.

    Args:
        cases: the slides in use.

    Returns:
        One sentence per slide with a fault, in the order of the cases.
    """
    return [
        f"{case.slide_path} {_KNOWN_PROBLEMS[case.slide_id.lower()]}; it is used as it is: remove it if that matters"
        for case in cases
        if case.slide_id.lower() in _KNOWN_PROBLEMS
    ]


def center_of(slide_path: Path) -> int | None:
    """Medical center of a slide.

    Args:
        slide_path: the nearest parent called `center_K`, in either spelling, gives K; otherwise the patient number of
            CAMELYON17 does: 20 patients per center, training patients 000-099 and test patients 100-199, each beginning
            at center 0.

    Returns:
        Number of the center; None if unknown. Source: file layout of CAMELYON17.
    """
    for part in reversed(slide_path.absolute().parts[:-1]):
        folder = _CENTER_FOLDER.fullmatch(part)
        if folder:
            return int(folder[1])
    patient = _PATIENT.match(slide_path.name.split(".")[0])
    number = int(patient[2]) if patient else -1
    return number % 100 // 20 if number in range(200) else None


def case_of(slide_id: str, slide_path: Path, label_path: Path | None) -> Case:
    """A case with the patient and center that its name gives."""
    patient = _PATIENT.match(slide_id)
    return Case(slide_id, slide_path, label_path, patient[1].lower() if patient else None, center_of(slide_path))


def slides_and_masks(
    slide_path: Path, slide_format: str, recursive: bool = False, label_path: Path | None = None
) -> tuple[list[Path], list[Path]]:
    """Slides at a path, and masks (by name) among its files; a folder of labels below it holds neither."""
    found = list_files(slide_path, slide_format, "slide", recursive)
    if label_path is not None and label_path.is_dir() and slide_path.resolve() in label_path.resolve().parents:
        found = [path for path in found if label_path.resolve() not in path.resolve().parents]
    masks = [path for path in found if is_mask(path) or path.stem.lower().endswith(_MASK_ENDING)]
    slides = [path for path in found if path not in masks]
    if not slides:
        held = f"only masks: {named(masks)}" if masks else f"files of slides only in the label path {label_path}"
        raise ValueError(f"slide_path {slide_path} has {held}; give the folder of the slides")
    return slides, masks


def _slides_by_id(slides: Iterable[Path]) -> dict[str, Path]:
    paths_of: dict[str, list[Path]] = {}
    for path in slides:
        paths_of.setdefault(id_of(path), []).append(path)
    doubled = [path for paths in paths_of.values() if len(paths) > 1 for path in paths]
    if doubled:
        raise ValueError(f"more than one slide with the same id: {named(doubled)}; keep one file per slide id")
    return {slide_id: paths[0] for slide_id, paths in paths_of.items()}


def is_mask(path: Path) -> bool:
    """Whether a file name is that of a mask: `x_mask.tif`, `x_Mask.ome.tif`."""
    return path.suffix.lower() in MASK_SUFFIXES and _without_ome(path.stem).lower().endswith(_MASK_ENDING)


def ids_of_label(path: Path) -> list[str]:
    """Slide ids that a label may belong to: its name, its name without `_mask` for a mask, and both with `.ome`."""
    stem = id_of(path)
    names = [stem]
    if has_outlines(path):
        # QuPath's scripts often keep the suffix of the slide: x.svs.geojson.
        names += [stem[: -len(suffix)] for suffix in ALL_SLIDE_SUFFIXES if stem.lower().endswith(suffix)]
    if is_mask(path):
        names.append(_without_ome(stem)[: -len(_MASK_ENDING)])
    elif path.suffix.lower() in MASK_SUFFIXES:
        names.append(_without_ome(stem))
    # `x.ome` is the id of slide x.ome.tif; people and programs name its label after `x`.
    return list(dict.fromkeys([*names, *(one + _OME for one in names if _without_ome(one) == one)]))


def _without_ome(stem: str) -> str:
    return stem[: -len(_OME)] if stem.lower().endswith(_OME) else stem


def _labels_by_id(by_id: dict[str, Path], labels: Iterable[Path]) -> dict[str, list[Path]]:
    """Labels by slide id; ValueError if a label has no slide."""
    labels_of: dict[str, list[Path]] = {}
    orphans = []
    for path in sorted(labels):
        slide_id = next((name for name in ids_of_label(path) if name in by_id), None)
        if slide_id is None:
            orphans.append(path)
        else:
            labels_of.setdefault(slide_id, []).append(path)
    if not orphans:
        return labels_of
    lower = {slide_id.lower(): slide_id for slide_id in by_id}
    near = {lower[name.lower()] for path in orphans for name in ids_of_label(path) if name.lower() in lower}
    hint = f"; these slides differ from them only in case: {', '.join(sorted(near))}" if near else ""
    raise ValueError(
        f"labels without a slide: {named(orphans)}{hint}; a label is called <slide id>.xml, "
        f"<slide id>.geojson or <slide id>{_MASK_ENDING}.tif: add the slides, or rename or remove the labels"
    )


def _has_text_name(path: Path) -> bool:
    """Whether a file name is valid UTF-8, so that tables can hold it."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _entries(folder: Path) -> list[Path]:
    # Hidden files: macOS leaves `._tumor_001.tif` beside `tumor_001.tif` on network drives.
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be listed: {error.strerror}; check its permissions") from error


def _below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Files in a folder and in all below it; each folder once, whatever links lead to it."""
    where = folder.resolve()
    if where in seen or (seen and any(all((folder / name).exists() for name in names) for names in _OWN_OUTPUT)):
        return
    seen.add(where)
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(entry, seen)
        else:
            yield entry


def _of_format(entries: Iterable[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return [entry for entry in entries if entry.name.lower().endswith(suffixes) and not entry.is_dir()]


def named(items: Iterable[Path | str]) -> str:
    """Up to ten names as text, and the number of the others."""
    names = [str(item) for item in items]
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more
