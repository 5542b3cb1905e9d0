"""A run of the whole-slide classifier as one HTML file, `report.html` in its folder: no network, no scripts.

    python -m classification.report FOLDER       writes it again

It is made from what the run left in its folder: options.json, metrics.jsonl, environment.json, scores.json,
predictions.csv, thumbnails/SLIDE.jpg and saliency/SLIDE/overlay.png. Parts that are missing are omitted.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from classification.predictions import PREDICTIONS
from classification.scores import SCORES, TITLES
from pages.charts import SHARE_TICKS, Axis, chart, matrix, nice_axis
from pages.frame import card, counted, image, named, number, options, page, table
from pages.pictures import file_uri
from system.atomic_files import write_bytes
from training import report as training
from training.report import NAME

THUMBNAILS, SALIENCY, OVERLAY = "thumbnails", "saliency", "overlay.png"
PICTURE_PX, PICTURE_BYTES = 640, 60_000
# Slides with pictures; all others are in predictions.csv.
SLIDES = 60
FEW_PATIENTS = 20

# Chart, name in metrics.jsonl, whether it is a share (0 to 1), whether its scale is logarithmic.
CURVES = (
    ("loss", "loss", False, False),
    ("accuracy", "accuracy", True, False),
    ("AUC", "auc", True, False),
    ("quadratic kappa", "kappa", False, False),
    ("calibration error", "calibration_error", True, False),
    ("mean absolute error", "mae", False, False),
    ("Spearman correlation", "spearman", False, False),
    ("learning rate", "learning_rate", False, True),
    ("images/s", "images_per_s", False, False),
)
# Name of an option -> row of the table at the top.
STATED = {
    "model": "network",
    "train_csv": "labels",
    "val_csv": "validation",
    "data_dir": "images",
    "data_tar": "images",
    "slide_path": "slides",
    "train_from_transfer": "weights of",
    "widefov_version": "widefov",
}

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after one line that describes the error."""
    parser = argparse.ArgumentParser(prog="classification.report", description="Write the page of a run again.")
    parser.add_argument("folder", type=Path, help="folder of the run")
    opts = parser.parse_args(argv)
    try:
        sys.stdout.write(f"written to  {write(opts.folder)}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"classification.report: error: {error}\n")
        return 2
    return 0


def write(folder: Path) -> Path:
    """Write the report of a run, completely or not at all; returns its path.

    Args:
        folder: of the run.

    Raises:
        ValueError: no run wrote the folder, or options.json or scores.json is damaged.
        OSError: a file cannot be read, or the report cannot be written.
    """
    if not (folder / "options.json").is_file():
        raise ValueError(f"{folder} has no options.json: give the folder of a run")
    write_bytes(folder / NAME, html(folder).encode("utf-8", "replace"))
    return folder / NAME


def attempt(folder: Path) -> str:
    """Write the report of a run that continues whatever happens; returns a warning, or ""."""
    return training.attempt(folder, write, "classification.report")


def html(folder: Path) -> str:
    """Return the report of a run as HTML; `folder` is that of the run.

    Raises:
        ValueError: options.json or scores.json is damaged.
        OSError: a file cannot be read.
    """
    given, rows = training.read_options(folder), training.read_rows(folder)
    train, val = ([row for row in rows if row.get("kind") == kind] for kind in ("train", "val"))
    scores, predicted = _scores(folder), _predictions(folder)
    title = f"Whole-slide classifier: {folder.resolve().name}"
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            _about(folder, given, rows, scores),
            _notes(scores),
            f'<div class="numbers">{"".join(_cards(scores, val))}</div>',
            _small_set(scores),
            # One validation alone has no course.
            training.curves(CURVES, train, val) if train or len(val) > 1 else "",
            *(_of_scores(scores, predicted) if scores else []),
            _slides(folder, scores, predicted) if scores else "",
            training.environment(folder),
            "<h2>Options</h2>",
            options("options of train_classifier.py", given),
        ],
    )


def _scores(folder: Path) -> Row:
    """Read scores.json; empty before the first validation."""
    path = folder / SCORES
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; validate again with --only_eval") from error


def _predictions(folder: Path) -> list[Row]:
    """Read predictions.csv, the largest loss first; slides without a finite loss before all others."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    return sorted(rows, key=lambda row: (-_worse(row["loss"]), row["slide_id"]))


def _worse(loss: str) -> float:
    value = float(loss)
    return value if math.isfinite(value) else math.inf


# ------------------------------------------------------------------------------------------------------------ the top


def _about(folder: Path, given: Mapping[str, Any], rows: Sequence[Row], scores: Row) -> str:
    images = max((row["images"] for row in rows), default=0)
    seconds = max((row.get("seconds") or 0.0 for row in rows), default=0.0)
    trained = f"{counted(images, 'image')} in {training.duration(seconds)}" if images else ""
    stated = {name: str(given[key]) for key, name in STATED.items() if given.get(key)}
    size, um_px = given.get("image_size"), given.get("resolution")
    if given.get("variable_input_shapes"):
        stated["field of view"] = "whole images"
    elif isinstance(size, int):
        at = f" at {um_px:g} um/px = {size * um_px / 1000:.2f} mm" if isinstance(um_px, float | int) and um_px else ""
        stated["field of view"] = f"{size} px{at}"
    outputs = scores.get("outputs", [])
    of = {"classes": "classes", "multilabel": "labels", "regression": "predicts"}.get(scores.get("kind", ""), "classes")
    names = ", ".join(f"{one['name']} ({one['slides']})" for one in outputs)
    validated = f"{counted(scores['slides'], 'slide')} of {counted(scores['patients'], 'patient')}" if scores else ""
    return named(
        [
            ("folder", str(folder.resolve())),
            ("trained", trained),
            ("scored", validated),
            (of, "numbers" if of == "predicts" else names),
            *stated.items(),
        ]
    )


def _notes(scores: Row) -> str:
    if not scores.get("notes"):
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in scores["notes"])
    return f'<div class="warning"><ul>{items}</ul></div>'


def _cards(scores: Row, val: Sequence[Row]) -> list[str]:
    if not scores:
        return [card("Validation", "none", "no slide has been scored yet", defined=False)]
    cards = []
    for name, score in scores["values"].items():
        title = TITLES[name] if TITLES[name][0].isupper() else TITLES[name].capitalize()
        about = _interval(score) or escape(score["why"])
        if name == "auc":
            about += ("<br>" if about else "") + escape(_auc_of(scores))
        cards.append(card(title, number(score["value"]), about, defined=score["value"] is not None))
    finite = [row for row in val if isinstance(row.get("loss"), int | float)]
    if len(finite) > 1:
        best = min(finite, key=lambda row: float(row["loss"]))
        cards.append(card("Lowest val loss", number(best["loss"]), f"at image {best['images']}"))
    return cards


def _auc_of(scores: Row) -> str:
    outputs = scores["outputs"]
    if scores["kind"] == "classes" and len(outputs) == 2:
        return f"of {outputs[1]['name']}, {outputs[1]['slides']} of {counted(scores['slides'], 'slide')}"
    noun = {"classes": "classes", "multilabel": "labels"}[scores["kind"]]
    defined = sum(one["values"]["auc"]["value"] is not None for one in outputs)
    return f"mean over {defined} of {len(outputs)} {noun}"


def _interval(score: Mapping[str, Any]) -> str:
    return "" if score["low"] is None else f"({number(score['low'])} to {number(score['high'])})"


def _small_set(scores: Row) -> str:
    if not scores:
        return ""
    if scores["patients"] < 2:
        return '<p class="soft">No intervals: they need slides of at least two patients.</p>'
    if all(score["low"] is None for score in scores["values"].values()):
        return ""
    few = " With so few patients they are unreliable." if scores["patients"] < FEW_PATIENTS else ""
    return (
        f'<p class="soft">In brackets: 95% bootstrap intervals over {counted(scores["patients"], "patient")}.{few}</p>'
    )


# ----------------------------------------------------------------------------------------------------------- of scores


def _of_scores(scores: Row, predicted: Sequence[Row]) -> list[str]:
    if scores["kind"] == "regression":
        return [_scatter(scores, predicted)]
    outputs = scores["outputs"]
    two = scores["kind"] == "classes" and len(outputs) == 2
    shown = outputs[1:] if two else outputs
    figures = [_roc(one, _noun(scores)) for one in shown]
    wide = "pair" if len(figures) < 3 else "maps"
    return [
        f'<h2>ROC</h2><div class="{wide}">{"".join(figures)}</div>',
        '<p class="soft">One against the others; dashed: chance.</p>' if len(shown) > 1 else "",
        _table(scores, shown),
        _confusion(scores),
        _calibration(scores, two),
    ]


def _noun(scores: Row) -> str:
    return "class" if scores["kind"] == "classes" else "label"


def _roc(one: Row, noun: str) -> str:
    axes = Axis("others called positive", 0, 1, SHARE_TICKS), Axis("called positive", 0, 1, SHARE_TICKS)
    score = one["values"]["auc"]
    points = [(float(x), float(y)) for x, y in one.get("roc", [])]
    below = f"Area {number(score['value'])} {_interval(score)}" if score["value"] is not None else score["why"]
    drawn = chart(points, *axes, f"ROC curve of {one['name']}", diagonal=True)
    head = f"<figcaption>{noun} {escape(one['name'])}</figcaption>"
    return f'<figure>{head}{drawn}<p class="soft">{escape(below)}</p></figure>'


def _table(scores: Row, shown: Sequence[Row]) -> str:
    columns = [name for name in TITLES if any(name in one["values"] for one in shown)]
    head = [_noun(scores), "slides", *(TITLES[name] for name in columns)]
    rows = []
    for one in shown:
        cells = [one["values"].get(name) for name in columns]
        texts = [_cell(score) if score else "" for score in cells]
        rows.append([one["name"], f"{one['slides']} of {scores['slides']}", *texts])
    what = "Classes" if scores["kind"] == "classes" else "Labels"
    return f"<h2>{what}</h2>{table(head, rows)}"


def _cell(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "not defined"
    return f"{number(score['value'])} {_interval(score)}".strip()


def _confusion(scores: Row) -> str:
    names = [one["name"] for one in scores["outputs"]]
    if scores["confusion"]:
        figures = [matrix(scores["confusion"], names, "Classes", "slides")]
    else:
        with_counts = [one for one in scores["outputs"] if one["confusion"]]
        figures = [
            matrix(one["confusion"], ("without", "with"), f"label {one['name']}", "slides") for one in with_counts
        ]
    return f'<h2>Confusion</h2><div class="pair">{"".join(figures)}</div>' if figures else ""


def _calibration(scores: Row, two: bool) -> str:
    """Show reliability diagrams: of the second of two classes, of the predicted one of more, or of every label."""
    outputs = scores["outputs"]
    if two:
        parts = [(f"probability of {outputs[1]['name']}", "share of slides that have it", scores["reliability"])]
    elif scores["kind"] == "classes":
        parts = [("probability of the predicted class", "share of slides where it is right", scores["reliability"])]
    else:
        parts = [
            (f"probability of {one['name']}", "share of slides that have it", one["reliability"]) for one in outputs
        ]
    figures = []
    for stated, observed, bins in parts:
        points = [(float(x), float(y)) for _, x, y in bins]
        drawn = chart(points, Axis(stated, 0, 1, SHARE_TICKS), Axis(observed, 0, 1, SHARE_TICKS), stated, points, True)
        counts = ", ".join(f"{x:.2f}: {count}" for count, x, _ in bins)
        figures.append(
            f"<figure><figcaption>{escape(stated)}</figcaption>{drawn}"
            f'<p class="soft">Slides by mean probability of their bin: {counts}.</p></figure>'
        )
    if not any(bins for *_, bins in parts):
        return ""
    wide = "pair" if len(figures) < 3 else "maps"
    return (
        f'<h2>Calibration</h2><div class="{wide}">{"".join(figures)}</div>'
        '<p class="soft">Ten bins of equal width; dashed: probabilities as often right as they state.</p>'
    )


def _scatter(scores: Row, predicted: Sequence[Row]) -> str:
    pairs = [(float(row["label"]), float(row["prediction"])) for row in predicted if row["prediction"]]
    if not pairs:
        return ""
    both = nice_axis("", [value for pair in pairs for value in pair])
    x, y = (Axis(title, both.low, both.high, both.ticks) for title in ("label", "prediction"))
    drawn = chart([], x, y, "predictions against labels", pairs, diagonal=True)
    below = f"{counted(scores['slides'], 'slide')}; dashed: equal."
    return f'<h2>Predictions</h2><div class="pair"><figure>{drawn}<p class="soft">{below}</p></figure></div>'


# -------------------------------------------------------------------------------------------------------------- slides


def _slides(folder: Path, scores: Row, predicted: Sequence[Row]) -> str:
    if not predicted:
        return ""
    more = f" The first {SLIDES} of {len(predicted)}; all are in {PREDICTIONS}." if len(predicted) > SLIDES else ""
    shown = [_slide(folder, scores, row) for row in predicted[:SLIDES]]
    return f'<h2>Slides, worst first</h2><p class="soft">By loss.{more}</p><div class="slides">{"".join(shown)}</div>'


def _slide(folder: Path, scores: Row, row: Row) -> str:
    name = row["slide_id"]
    pictures = [
        ("image", folder / THUMBNAILS / f"{name}.jpg"),
        ("saliency", folder / SALIENCY / name / OVERLAY),
    ]
    uris = [(what, file_uri(path, PICTURE_PX, PICTURE_BYTES)) for what, path in pictures]
    figures = [
        f"<figure>{image(uri, f'{what} of {name}')}<figcaption>{what}</figcaption></figure>"
        for what, uri in uris
        if uri
    ]
    drawn = f'<div class="beside">{"".join(figures)}</div>' if figures else '<div class="none">no picture</div>'
    listed = "".join(f"<dt>{escape(what)}</dt><dd>{value}</dd>" for what, value in _facts(scores, row))
    return f'<article class="slide"><h3>{escape(name)}</h3>{drawn}<dl>{listed}</dl></article>'


def _facts(scores: Row, row: Row) -> list[tuple[str, str]]:
    """Names and values of a slide, as HTML."""
    label, prediction = row["label"], row["prediction"] or "not defined"
    shown = escape(prediction)
    if scores["kind"] == "regression":
        return [("label", escape(label)), ("prediction", shown), ("loss", _finite(row["loss"])), *_patient(row)]
    if prediction != label:
        shown = f'<span class="bad">{shown}</span>'
    facts = [("label", escape(label)), ("prediction", shown)]
    if scores["kind"] == "classes":
        facts.append((f"probability of {label}", _probability(row, label)))
    else:
        facts += [(f"probability of {one['name']}", _probability(row, one["name"])) for one in scores["outputs"]]
    return [*facts, ("loss", _finite(row["loss"])), *_patient(row)]


def _probability(row: Row, name: str) -> str:
    return _finite(row.get(f"probability_{name}") or "nan")


def _finite(text: str) -> str:
    value = float(text)
    return number(value if math.isfinite(value) else None)


def _patient(row: Row) -> list[tuple[str, str]]:
    return [] if row["patient"] == row["slide_id"] else [("patient", escape(row["patient"]))]


if __name__ == "__main__":
    sys.exit(main())
