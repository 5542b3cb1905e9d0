"""Inputs of an evaluation: folders of predictions, with the slide and label of each.

H rows, W columns of a map. Map px [r, c] covers level-0 x from c * step_x and y from r * step_y on.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import metadata
from cohorts.pairing import Case, ids_of_label, is_mask, list_files, named, pair, pair_files
from cohorts.spacings import with_spacings
from inference.maps import MapPyramid, Maps
from inference.summary import CUT
from slides.names import composed
from slides.truth.label import has_outlines

SUMMARY = "summary.json"
DETECTIONS = "detections.csv"
# Key of predictions made before version 0.1.0.
OLD_PROBABILITY = "tumour_probability"  # old spelling
# What a prediction that was not finished, or lost its summary, has of these.
RESULTS = ("label.tif", "probability*.tif", "polygons.*", DETECTIONS)
DETECTIONS_HEADER = ["probability", "x", "y"]


@dataclass(frozen=True)
class Prediction:
    """Contents of a prediction's summary.json.

    Attributes:
        folder: folder of the prediction.
        slide_id: id of the slide.
        slide_path: path of the slide when it was predicted.
        size_xy_l0: size of the slide, level-0 px.
        um_px_xy_l0: micrometers per level-0 px.
        step_xy_l0: level-0 px per px of the maps.
        size_xy: size of the maps, px.
        classes: number of classes K.
        class_names: names of the K classes.
        tumor_probability: tumor probability of the slide.
        model: the model's file when the slide was predicted; empty where the summary does not say.
        options: options of the prediction that determine its result.
    """

    folder: Path
    slide_id: str
    slide_path: Path
    size_xy_l0: tuple[int, int]
    um_px_xy_l0: tuple[float, float]
    step_xy_l0: tuple[float, float]
    size_xy: tuple[int, int]
    classes: int
    class_names: tuple[str, ...]
    tumor_probability: float
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uncut(self) -> bool:
        """Whether only tissue was predicted, but the maps were not cut to it, as before version 0.2."""
        return bool(self.options.get("tissue_only")) and not self.options.get(CUT)


@dataclass(frozen=True)
class Found:
    """Predictions to evaluate.

    Attributes:
        pairs: predictions with their slides and labels, by slide id.
        left_out: slide id -> reason why it is not evaluated.
        notes: further remarks for the user.
    """

    pairs: list[tuple[Prediction, Case]]
    left_out: dict[str, str]
    notes: list[str]


def read_prediction(folder: Path) -> Prediction:
    """Read and check a prediction's summary.json.

    Raises:
        ValueError: it cannot be read, is incomplete, or contradicts itself.
    """
    path = folder / SUMMARY
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if OLD_PROBABILITY in stored:
            stored.setdefault("tumor_probability", stored[OLD_PROBABILITY])
        classes = int(stored["classes"])
        names = stored.get("class_names") or {}
        class_names = metadata.current_names([str(names.get(str(cls), f"class {cls}")) for cls in range(classes)])
        found = Prediction(
            folder=folder,
            slide_id=composed(str(stored["slide_id"])),
            slide_path=Path(stored["slide_path"]),
            size_xy_l0=_two_positive(stored["size_xy_l0"], int),
            um_px_xy_l0=_two_positive(stored["um_px_xy_l0"], float),
            step_xy_l0=_two_positive(stored["step_xy_l0"], float),
            size_xy=_two_positive(stored["size_xy"], int),
            classes=classes,
            class_names=class_names,
            tumor_probability=float(stored["tumor_probability"]),
            model=str(stored.get("model") or ""),
            options=dict(stored.get("options") or {}),
        )
    except KeyError as error:
        raise ValueError(f"{path} has no {error}: predict this slide again") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): predict this slide again") from error
    expected = tuple(math.ceil(size / step) for size, step in zip(found.size_xy_l0, found.step_xy_l0, strict=True))
    # One px of tolerance for the rounding of a fractional step.
    if any(abs(a - b) > 1 for a, b in zip(expected, found.size_xy, strict=True)):
        raise ValueError(f"{path}: maps of {found.size_xy} px, but slide and step give {expected}")
    if not 0 <= found.tumor_probability <= 1:
        raise ValueError(f"{path}: tumor_probability {found.tumor_probability} is not within [0, 1]")
    if len(set(found.class_names)) < found.classes:
        raise ValueError(f"{path}: two classes of one name among {list(found.class_names)}")
    if found.classes < 2:
        raise ValueError(f"{path}: {found.classes} classes, at least 2 are needed")
    return found


def _two_positive(values: Sequence[Any], kind: type) -> tuple[Any, Any]:
    x, y = (kind(value) for value in values)
    if not (0 < x < math.inf and 0 < y < math.inf):
        raise ValueError(f"{list(values)}: two numbers above 0 are needed")
    return x, y


def pair_predictions(
    folder: Path,
    slide_path: Path | None,
    label_path: Path,
    slide_format: str,
    label_format: str,
    classes: int,
    recursive: bool = False,
    mpp_table: Path | None = None,
) -> Found:
    """Pair predictions with slides and labels.

    Args:
        folder: folder with one folder per predicted slide.
        slide_path: folder or file of slides; None for the slides that the predictions name.
        label_path: folder or file of labels.
        slide_format: suffix of slides.
        label_format: a key of `cohorts.pairing.LABEL_SUFFIXES`.
        classes: number of classes of the truth.
        recursive: search all folders below those of slides and labels, too.
        mpp_table: spacings of slides (`cohorts.spacings`); None for those that the predictions state.

    Raises:
        ValueError: there is no prediction, labels do not pair, or numbers of classes differ.
    """
    found = Found([], {}, [])
    predictions = _predictions(folder, found)
    if slide_path is not None:
        cases = {case.slide_id: case for case in pair(slide_path, label_path, slide_format, label_format, recursive)}
    else:
        cases = _cases_of_predictions(folder, label_path, label_format, predictions, found, recursive)
    cases = {case.slide_id: case for case in with_spacings(mpp_table, list(cases.values()))[0]}
    for slide_id, case in sorted(cases.items()):
        if slide_id in predictions:
            found.pairs.append((predictions[slide_id], case))
        elif slide_id not in found.left_out:
            found.left_out[slide_id] = f"no prediction of {case.slide_path} in {folder}"
    extra = sorted(set(predictions) - set(cases) - set(found.left_out))
    if extra:
        found.notes.append(f"predictions of slides that are not in --slide_path, left alone: {', '.join(extra[:10])}")
    if not found.pairs:
        reasons = "; ".join(list(found.left_out.values())[:3])
        raise ValueError(f"nothing to evaluate in {folder}: {reasons or 'no prediction belongs to a slide'}")
    _check_classes(classes, [prediction for prediction, _ in found.pairs])
    return found


def _predictions(folder: Path, found: Found) -> dict[str, Prediction]:
    """Read predictions by slide id; unreadable ones are added to `found.left_out`."""
    if not folder.is_dir():
        raise ValueError(f"--predictions {folder} is not a folder: give the one that predict.py wrote")
    if (folder / SUMMARY).is_file():
        folders = [folder]
    else:
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    predictions: dict[str, Prediction] = {}
    for path in folders:
        if not (path / SUMMARY).is_file():
            # Results of an evaluation, for one, may lie among predictions.
            if any(any(path.glob(name)) for name in RESULTS):
                found.left_out[path.name] = f"{path} has no {SUMMARY}: its prediction was not finished"
            continue
        try:
            prediction = read_prediction(path)
        except ValueError as error:
            found.left_out[path.name] = str(error)
            continue
        if prediction.slide_id in predictions:
            both = named([predictions[prediction.slide_id].folder, path])
            raise ValueError(f"two predictions of slide {prediction.slide_id}: {both}; keep one")
        predictions[prediction.slide_id] = prediction
    if not predictions and not found.left_out:
        raise ValueError(f"--predictions {folder} has no folder with a {SUMMARY}: give what predict.py wrote")
    return predictions


def _cases_of_predictions(
    folder: Path,
    label_path: Path,
    label_format: str,
    predictions: dict[str, Prediction],
    found: Found,
    recursive: bool,
) -> dict[str, Case]:
    """Take slides from the predictions; labels of other slides are noted as missing predictions."""
    there: dict[str, Path] = {}
    for slide_id, prediction in predictions.items():
        if prediction.slide_path.is_file():
            there[slide_id] = prediction.slide_path
        else:
            found.left_out[slide_id] = (
                f"slide {prediction.slide_path} of {prediction.folder / SUMMARY} does not exist: give --slide_path"
            )
    taken = {path.resolve() for path in there.values()}
    folders = {path.parent for path in taken}
    labels: list[Path] = []
    for path in list_files(label_path, label_format, "label", recursive):
        ids = ids_of_label(path)
        # Slides and masks may share a folder; in it, only files named as masks are labels.
        beside = path.resolve().parent in folders and not has_outlines(path)
        if path.resolve() in taken or (beside and not is_mask(path)):
            continue
        if any(name in there for name in ids):
            labels.append(path)
        elif not any(name in found.left_out for name in ids):
            found.left_out[ids[1 if is_mask(path) else 0]] = f"no prediction in {folder} for the slide of {path}"
    return {case.slide_id: case for case in pair_files(there.values(), labels)}


def _check_classes(classes: int, predictions: Sequence[Prediction]) -> None:
    """Check that all predictions and the truth have the same number of classes.

    Raises:
        ValueError: they differ.
    """
    first = predictions[0]
    other = next((one for one in predictions if one.classes != first.classes), None)
    if other is not None:
        raise ValueError(
            f"predictions of different models: {first.folder} has {first.classes} classes, {other.folder} "
            f"{other.classes}; evaluate them separately"
        )
    if classes != first.classes:
        raise ValueError(
            f"the model has {first.classes} classes ({', '.join(first.class_names)}), the truth {classes}: give the "
            "--label_map or --mask_values that it was trained with, or --classes where the truth lacks some"
        )


def open_maps(prediction: Prediction) -> tuple[MapPyramid, MapPyramid]:
    """Open a prediction's maps of classes and of probabilities.

    Raises:
        ValueError: a map is missing or unreadable, or differs in size or kind from the summary.
    """
    names = dict(enumerate(prediction.class_names))
    try:
        maps = Maps(prediction.folder, prediction.size_xy_l0, prediction.um_px_xy_l0, prediction.step_xy_l0, names)
    except ValueError as error:
        raise ValueError(f"{error}; predict this slide again") from error
    for found in (maps.label, maps.probability):
        if found.levels[0].size_xy != prediction.size_xy:
            raise ValueError(
                f"{found.path} has {found.levels[0].size_xy} px; its {SUMMARY} says {prediction.size_xy}: predict this "
                "slide again"
            )
    return maps.label, maps.probability


def read_detections(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read probabilities (D,) and places (D, 2), level-0 px (x, y), of a prediction's detections.

    Raises:
        ValueError: the file is unreadable, or its header or cells are invalid.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _detections(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}): predict this slide again") from error


def _detections(rows: Iterable[list[str]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    header, *body = [row for row in rows if row] or [[]]
    if header != DETECTIONS_HEADER:
        raise ValueError(f"the header is {','.join(header)[:80]!r}, not {','.join(DETECTIONS_HEADER)!r}")
    if any(len(row) != len(DETECTIONS_HEADER) for row in body):
        raise ValueError("rows of three cells are needed")
    values = np.array(body, np.float64).reshape(-1, 3)
    return values[:, 0], values[:, 1:]


def sources(pairs: Sequence[tuple[Prediction, Case]], evaluated: Collection[str]) -> dict[str, Any]:
    """Return what was evaluated, JSON types.

    Args:
        pairs: predictions with their slides and labels.
        evaluated: ids of those that count.

    Returns:
        `models`: model, options and number of slides of each kind of prediction, the most frequent first;
        `slide_folders`: where the slides lie.
    """
    kinds: dict[str, dict[str, Any]] = {}
    folders = set()
    for one, case in pairs:
        if one.slide_id in evaluated:
            folders.add(str(case.slide_path.parent))
            kind = json.dumps([one.model, one.options], sort_keys=True)
            kinds.setdefault(kind, {"model": one.model, "slides": 0, "options": dict(one.options)})["slides"] += 1
    return {"models": sorted(kinds.values(), key=lambda kind: -int(kind["slides"])), "slide_folders": sorted(folders)}
