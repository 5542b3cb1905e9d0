"""The demo of whole slides: its options fit what the generator writes, and its command runs from slides to report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from options.train_classifier import classifier_options
from slides.synthetic.fine import SETS, SIDE, UM_PX, make_fine
from tests.support.paths import ROOT

ARGS = "experiments/streaming_demo.args"
FOLDER = "runs/streaming_demo"


@pytest.mark.kind("streaming demo")
def test_options_of_the_demo_fit_its_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = classifier_options([f"@{ARGS}"])
    folder = Path(FOLDER) / SETS[0]
    assert found.labels.train_csv == folder / "train.csv"
    assert found.labels.val_csv == folder / "val.csv"
    assert found.images.slide_path == folder / "slides"
    assert (found.images.resolution, found.images.image_size) == (UM_PX, SIDE)


@pytest.mark.slow
@pytest.mark.kind("streaming demo")
def test_the_command_of_the_demo_runs_with_few_slides(tmp_path: Path) -> None:
    """Four slides, one epoch: what it learns, docs/results/2026-12-01-streaming-demo.md has."""
    make_fine(tmp_path, 0, train=4, val=2, sets=SETS[:1])
    folder, log = tmp_path / SETS[0], tmp_path / "log"
    words = [sys.executable, "train_classifier.py", f"@{ARGS}", "--epochs", "1", "--validation_interval", "1"]
    words += ["--train_csv", folder / "train.csv", "--val_csv", folder / "val.csv", "--slide_path", folder / "slides"]
    words += ["--log_dir", log]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((log / "scores.json").read_text())
    assert scores
    assert len((log / "predictions.csv").read_text().splitlines()) == 3
    assert (log / "report.html").stat().st_size > 10_000
