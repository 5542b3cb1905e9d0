"""The folder of a run, `--log_dir`: made ready for it, and what an earlier run left there set aside.

The folder may hold other files of the user, such as slides in `samples/`: only what a run wrote is moved.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from system.atomic_files import write_bytes
from system.version import __version__

# What a run writes under names that nothing else has, and under common ones, which a run would overwrite or append to.
_OWN = (
    "checkpoints/images-*.npz", "checkpoints/abandoned-images-*.npz", "checkpoints/best.npz", "checkpoints/final.npz",
    "checkpoints/epoch-*.npz", "checkpoints/abandoned-epoch-*.npz",
    "samples/rank-*.csv", "samples/unreadable-rank-*.csv", "pictures/val-*.png", "events.out.tfevents.*",
)  # fmt: skip
_COMMON = (
    "options.json", "metrics.jsonl", "samples/slides.json", "final.keras", "final.json", "final_savedmodel",
    "report.html", "environment.json", "scores.json", "predictions.csv", "thumbnails", "saliency", "eval",
)  # fmt: skip
# Named after slides, or by `samplers.replay`.
_OF_SLIDES = ("sampling/{}.png", "replay/{}.xml", "replay/{}.geojson")
_REPLAYED = "replay/index-*.png"
_FOLDERS = ("checkpoints", "samples", "pictures", "sampling", "replay")


def prepare_folder(folder: Path, resumed: bool, options: Mapping[str, Any]) -> list[str]:
    """Make `folder` ready for a run: set an earlier run aside unless this one resumes it; write options.json.

    Ranks: only rank 0 may call this.

    Args:
        folder: the run's `--log_dir`; made where it is missing.
        resumed: whether this run resumes the one in the folder.
        options: options of this run, JSON types.

    Returns:
        Notes for the user.

    Raises:
        ValueError: the folder has files that this run would overwrite and that no run wrote.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = [] if resumed else _set_aside(folder)
    stored = {"widefov_version": __version__} | dict(options)
    write_bytes(folder / "options.json", (json.dumps(stored, indent=1) + "\n").encode())
    return notes


def trim_metrics(folder: Path, images: int) -> None:
    """Drop the rows of `metrics.jsonl` after an image counter, since that part of the run will be repeated.

    Rows that a full disk or a crash of the machine has damaged are dropped, too.

    Ranks: only rank 0 may call this.
    """
    path = folder / "metrics.jsonl"
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _images(line) <= images]
        write_bytes(path, "".join(kept).encode())


def _images(line: str) -> float:
    """The image counter of a row; infinite if the row is damaged."""
    try:
        # A line cut short by a full disk has no end.
        return int(json.loads(line)["images"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _set_aside(folder: Path) -> list[str]:
    """Move the files of an earlier run to `folder/previous-N`, so that two runs never mix."""
    found = _matching(folder, _OWN)
    common = [folder / name for name in _COMMON if (folder / name).exists()]
    if not _is_run(folder):
        # Without its options an earlier run cannot be told from files of the user.
        if common:
            names = ", ".join(str(path.relative_to(folder)) for path in common)
            raise ValueError(
                f"--log_dir {folder} has {names}, which no run of this program wrote: move them away, or choose "
                "another folder"
            )
    else:
        named = [folder / pattern.format(slide) for pattern in _OF_SLIDES for slide in sorted(_slides(folder))]
        found += [*common, *(path for path in named if path.exists()), *_matching(folder, [_REPLAYED])]
    if not found:
        return []
    number = next(n for n in itertools.count(1) if not (folder / f"previous-{n}").exists())
    target = folder / f"previous-{number}"
    for path in found:
        moved = target / path.relative_to(folder)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    for name in _FOLDERS:
        # Others may have files in it.
        with suppress(OSError):
            (folder / name).rmdir()
    return [f"note        {folder} held an earlier run, moved to {target}; --resume would have continued it"]


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _is_run(folder: Path) -> bool:
    """Whether a run wrote the options in a folder."""
    try:
        options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(options, dict) and any({"num_steps", size} <= set(options) for size in ("img_size", "image_size"))


def _slides(folder: Path) -> set[str]:
    """Slides in the sample log of a run."""
    slides: set[str] = set()
    for path in folder.glob("samples/rank-*.csv"):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            slides |= {row["slide"] for row in csv.DictReader(file) if row.get("slide")}
    return slides
