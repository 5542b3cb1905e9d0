"""Runs of train.py with a network of two convolutions (small_train.py), and what a run has left."""

import csv
import json
import subprocess
from pathlib import Path

from tests.support.tiny import SMALL, TinySet, environment
from tests.support.warm import warm


def rows_of(log_dir: Path) -> list[dict]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def samples_of(log_dir: Path) -> list[dict[str, str]]:
    """What all ranks were trained on, by index."""
    rows: list[dict[str, str]] = []
    for path in sorted((log_dir / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return sorted(rows, key=lambda row: int(row["index"]))


def small(tiny: TinySet, *more: str, code: int = 0, **changed: str) -> subprocess.CompletedProcess[str]:
    """A run of the small network by batches of 2, with hard mining, which makes a resume harder."""
    settings = {"batch_size": "2", "log_every": "2", "hard_fraction": "1/2", "checkpoint_every": "2", "seed": "3"}
    words = tiny.arguments("--hard_mining", *more, **(settings | changed))
    done = warm.run(SMALL, words, environment())
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done
