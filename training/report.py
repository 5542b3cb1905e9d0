"""A training run as one HTML file, `report.html` in its `--log_dir`: no network, no scripts, no further files.

    python -m training.report LOG_DIR       writes it again, also for a run of an earlier version

It is made from what the run left in its folder: metrics.jsonl, options.json, environment.json, samples, pictures,
sampling maps. Parts that are missing are omitted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pages.charts import chart, nice_axis
from pages.frame import card, image, named, number, options, page, table
from pages.pictures import file_uri
from system.atomic_files import write_bytes
from training.environment import read_starts

NAME = "report.html"
SHEET_PX, SHEET_BYTES = 1000, 200_000
MAP_PX, MAP_BYTES, MAPS = 480, 50_000, 24
# Larger sample logs are not counted: the page is written at every validation.
SAMPLES_BYTES = 64 * 2**20
SLIDES = 100

Row = dict[str, Any]
Points = list[tuple[float, float]]

# Chart, name in metrics.jsonl, whether it is a share (0 to 1), whether its scale is logarithmic.
CURVES = (
    ("loss", "loss", False, False),
    ("mIoU", "miou", True, False),
    ("Dice of class 1", "dice", True, False),
    ("AUC", "auc", True, False),
    ("learning rate", "learning_rate", False, True),
    ("images/s", "images_per_s", False, False),
    ("share of time waiting for patches", "input_wait", True, False),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after one line that describes the error."""
    parser = argparse.ArgumentParser(prog="training.report", description="Write the page of a training run again.")
    parser.add_argument("log_dir", type=Path, help="--log_dir of the run")
    opts = parser.parse_args(argv)
    try:
        sys.stdout.write(f"written to  {write(opts.log_dir)}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"training.report: error: {error}\n")
        return 2
    return 0


def write(folder: Path) -> Path:
    """Write the report of a run, completely or not at all; returns its path.

    Args:
        folder: the run's `--log_dir`.

    Raises:
        ValueError: no run wrote the folder.
        OSError: a file cannot be read, or the report cannot be written.
    """
    if not (folder / "options.json").is_file():
        raise ValueError(f"{folder} has no options.json: give the --log_dir of a run")
    write_bytes(folder / NAME, html(folder).encode("utf-8", "replace"))
    return folder / NAME


def html(folder: Path) -> str:
    """Return the report of a run as HTML; `folder` is its `--log_dir`.

    Raises:
        ValueError: its options.json is damaged.
        OSError: it cannot be read.
    """
    given = read_options(folder)
    rows = read_rows(folder)
    train, val = ([row for row in rows if row.get("kind") == kind] for kind in ("train", "val"))
    names = _class_names(folder, rows)
    return page(
        f"Training: {folder.resolve().name}",
        [
            f"<h1>Training: {escape(folder.resolve().name)}</h1>",
            _about(folder, given, rows, names),
            f'<div class="numbers">{"".join(_numbers(train, val))}</div>',
            curves(CURVES, train, val),
            _classes(val, names),
            _sheets(folder, val),
            _samples(folder, names),
            _maps(folder),
            environment(folder),
            "<h2>Options</h2>",
            options("options of train.py", given),
        ],
    )


def read_options(folder: Path) -> Row:
    """Read options.json of a run.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        return dict(json.loads((folder / "options.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'options.json'} is damaged: {error}") from error


def read_rows(folder: Path) -> list[Row]:
    """Read metrics.jsonl of a run; lines that a full disk cut short are omitted."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("images"), int):
            rows.append(row)
    return rows


def _class_names(folder: Path, rows: Sequence[Row]) -> list[str]:
    count = 0
    while any(f"iou_{count}" in row for row in rows):
        count += 1
    stored: Any = _final(folder).get("class_names") or []
    stored = list(stored.values()) if isinstance(stored, dict) else list(stored)
    if len(stored) == count:
        return [str(name) for name in stored]
    return ["normal", "tumor"] if count == 2 else [f"class {cls}" for cls in range(count)]


def _final(folder: Path) -> Row:
    """Read final.json, which the end of a run writes; empty without it."""
    path = folder / "final.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stored if isinstance(stored, dict) else {}


def _about(folder: Path, given: Mapping[str, Any], rows: Sequence[Row], names: Sequence[str]) -> str:
    images, length = max((row["images"] for row in rows), default=0), given.get("num_steps")
    final = _final(folder)
    done = "finished" if final and length and images >= length else "not finished"
    seconds = max((row.get("seconds") or 0.0 for row in rows), default=0.0)
    size, um_px = given.get("img_size"), given.get("resolution")
    view = (
        f", field of view {size} px at {um_px:g} um/px = {size * um_px:.0f} um"
        if size and isinstance(um_px, float | int)
        else ""
    )
    data = given.get("manifest") or given.get("slide_path") or f"CAMELYON{given.get('dataset')}"
    labels = f"{given.get('label_path') or ''} {given.get('label_format') or ''}".strip()
    groups = given.get("label_map") or given.get("mask_values")
    return named(
        [
            ("folder", str(folder.resolve())),
            ("state", f"{done}: {images} of {length} images in {duration(seconds)}"),
            ("model", f"{given.get('model') or final.get('network') or 'the default'}{view}"),
            ("slides", str(data)),
            ("labels", labels),
            ("validation", str(given.get("valid_slide_path") or f"a share of {given.get('val_split')} of the slides")),
            ("classes", ", ".join(f"{cls} {name}" for cls, name in enumerate(names))),
            ("groups or values", json.dumps(groups) if groups else ""),
            ("sampler", f"{given.get('data_sampler', '')}, augmentation {given.get('augment', '')}"),
            ("widefov", str(given.get("widefov_version", ""))),
        ]
    )


def duration(seconds: float) -> str:
    """Format a time in minutes or hours."""
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _numbers(train: Sequence[Row], val: Sequence[Row]) -> list[str]:
    cards = []
    if val:
        scored = [row for row in val if row.get("miou") is not None]
        best = max(scored, key=lambda row: float(row["miou"])) if scored else None
        if best is not None:
            cards.append(card("Best val mIoU", number(best["miou"]), f"at image {best['images']}"))
        last = val[-1]
        for name, key in (("Val mIoU", "miou"), ("Val Dice", "dice"), ("Val AUC", "auc"), ("Val loss", "loss")):
            cards.append(_card(name, last.get(key), f"at image {last['images']}, the last"))
    for name, key, unit in (
        ("Speed", "images_per_s", "images/s"),
        ("Waiting for patches", "input_wait", "of the time"),
    ):
        values = sorted(row[key] for row in train if row.get(key) is not None)
        if values:
            shown = f"{values[len(values) // 2]:.1%}" if key == "input_wait" else f"{values[len(values) // 2]:.2f}"
            rank = "; rank 0" if key == "input_wait" else ""
            cards.append(card(name, shown, f"{unit}, median{rank}"))
    return cards or [card("Images", "0", "nothing logged yet")]


def _card(name: str, value: float | None, what: str) -> str:
    return card(name, number(value), escape(what), defined=value is not None)


def curves(wanted: Sequence[tuple[str, str, bool, bool]], train: Sequence[Row], val: Sequence[Row]) -> str:
    """Draw what was logged over the images trained, as HTML; quantities that were not logged are omitted.

    Args:
        wanted: title, name in metrics.jsonl, whether it is a share (0 to 1), whether its scale is logarithmic.
        train: rows of the training.
        val: rows of validations.
    """
    figures = []
    for title, key, share, log in wanted:
        first, second = _points(train, key), _points(val, key)
        if not first and not second:
            continue
        x = nice_axis("images trained", [px for px, _ in first + second], low=0)
        values = [py for _, py in first + second]
        y = nice_axis("", values, low=0 if not log else None, high=1 if share else None, log=log)
        drawn = chart(first, x, y, title, second=second)
        keys = '<span class="key" style="--key:var(--blue)">training</span>' if first else ""
        keys += '<span class="key" style="--key:var(--orange)">validation</span>' if second else ""
        figures.append(f'<figure><figcaption>{escape(title)}</figcaption>{drawn}<p class="legend">{keys}</p></figure>')
    return f'<h2>Curves</h2><div class="pair">{"".join(figures)}</div>' if figures else ""


def _points(rows: Sequence[Row], key: str) -> Points:
    return [(float(row["images"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def _classes(val: Sequence[Row], names: Sequence[str]) -> str:
    if not val or not names:
        return ""
    last = val[-1]
    rows = [
        (f"{cls} {name}", number(last.get(f"iou_{cls}")), number(last.get(f"dice_{cls}")))
        for cls, name in enumerate(names)
    ]
    return f"<h2>Classes, last validation</h2>{table(('class', 'IoU', 'Dice'), rows)}"


def _sheets(folder: Path, val: Sequence[Row]) -> str:
    """Return the pictures of the last, the best and the first validation."""
    found = sorted((folder / "pictures").glob("val-*.png"))
    if not found:
        return ""
    scored = [row for row in val if row.get("miou") is not None]
    best = max(scored, key=lambda row: float(row["miou"]))["images"] if scored else -1
    wanted = {"last": found[-1], "best": folder / "pictures" / f"val-{best:09d}.png", "first": found[0]}
    shown: dict[Path, list[str]] = {}
    for what, path in wanted.items():
        shown.setdefault(path, []).append(what)
    figures = []
    for path, which in shown.items():
        uri = file_uri(path, SHEET_PX, SHEET_BYTES)
        if uri:
            at = f"{' and '.join(which)}: image {int(path.stem.removeprefix('val-'))}"
            figures.append(f"<figure>{image(uri, f'validation, {at}')}<figcaption>{escape(at)}</figcaption></figure>")
    return (
        '<h2>Validation pictures</h2><p class="soft">Patch, truth, prediction; green normal, red tumor, gray ignored; '
        f'patches of most mixed truth.</p><div class="sheets">{"".join(figures)}</div>'
        if figures
        else ""
    )


def _samples(folder: Path, names: Sequence[str]) -> str:
    """Return how many patches of each class were trained from each slide."""
    paths = sorted((folder / "samples").glob("rank-*.csv"))
    if sum(path.stat().st_size for path in paths) > SAMPLES_BYTES:
        return f'<h2>Samples</h2><p class="soft">Not counted: {len(paths)} large files in samples.</p>'
    counts: Counter[tuple[str, str]] = Counter()
    origins: Counter[str] = Counter()
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                # A last row that a crash cut short lacks its loss.
                if row.get("loss"):
                    counts[row["slide"], row["cls"]] += 1
                    origins[row["origin"]] += 1
    if not counts:
        return ""
    classes = sorted({cls for _, cls in counts}, key=int)
    of_slide: Counter[str] = Counter()
    for (slide, _), count in counts.items():
        of_slide[slide] += count
    head = ["slide", *(names[int(c)] if 0 <= int(c) < len(names) else f"class {c}" for c in classes), "all"]
    rows = [
        [slide, *(str(counts[slide, cls]) for cls in classes), str(count)]
        for slide, count in of_slide.most_common(SLIDES)
    ]
    total = [
        "all slides",
        *(str(sum(counts[s, cls] for s in of_slide)) for cls in classes),
        str(sum(of_slide.values())),
    ]
    more = f" The {SLIDES} most frequent of {len(of_slide)} slides." if len(of_slide) > SLIDES else ""
    drawn = ", ".join(f"{name} {count}" for name, count in origins.most_common())
    return (
        f'<h2>Patches trained</h2><p class="soft">By the class they were drawn for. Origin: {escape(drawn)}.{more}</p>'
        f"{table(head, [total, *rows])}"
    )


def _maps(folder: Path) -> str:
    found = sorted((folder / "sampling").glob("*.png"))
    figures = []
    for path in found[:MAPS]:
        uri = file_uri(path, MAP_PX, MAP_BYTES)
        if uri:
            name = path.stem.encode("utf-8", "replace").decode()
            figures.append(
                f"<figure>{image(uri, f'sampled places of {name}')}<figcaption>{escape(name)}</figcaption></figure>"
            )
    if not figures:
        return ""
    more = f" The first {MAPS} of {len(found)}." if len(found) > MAPS else ""
    return (
        '<h2>Sampled places</h2><p class="soft">Windows by loss, blue (low) to red; tissue outlined in green, tumor in '
        f'red.{more}</p><div class="maps">{"".join(figures)}</div>'
    )


def environment(folder: Path) -> str:
    """Show where a run was started, as HTML; empty where nothing was recorded."""
    starts = read_starts(folder)
    if not starts:
        return ""
    last = starts[-1]
    rows = [(str(key), ", ".join(map(str, one)) if isinstance(one, list) else str(one)) for key, one in last.items()]
    times = ", ".join(f"{start.get('time')} at image {start.get('images')}" for start in starts[-10:])
    return f"<h2>Environment</h2>{named([*rows, ('starts', times if len(starts) > 1 else '')])}"


def attempt(folder: Path, write: Callable[[Path], object] = write, module: str = "training.report") -> str:
    """Write the report of a run that goes on whatever happens; returns a warning, or "".

    A page must not end a training run, so every error becomes a warning.

    Args:
        folder: the run's `--log_dir`.
        write: writes the page of a folder.
        module: what writes it later from the command line.
    """
    try:
        write(folder)
    except Exception as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else f"{error}"
        again = f"python -m {module} {folder}"
        return (
            f"WARNING     {folder / NAME} is not up to date ({reason}); the run continues, and {again} writes it later"
        )
    return ""


if __name__ == "__main__":
    sys.exit(main())
