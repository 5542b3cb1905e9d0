"""experiments/end_to_end.sh with EfficientDet-D0 on two ranks: train, predict, evaluate with one command.

EfficientDet takes a minute to start, so one run shows all that a training leaves behind; the other files train two
convolutions (small_train.py).
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from system.version import __version__
from tests.support.paths import ROOT
from tests.support.small_runs import rows_of, samples_of
from tests.support.tiny import TinySet, environment, tissue

# One process: the run is made once.
pytestmark = pytest.mark.xdist_group("end to end")
SCORES = {"loss", "miou", "dice", "auc", "accuracy", "iou_0", "dice_0", "iou_1", "dice_1"}


@dataclass
class Whole:
    """Ten images, prediction and evaluation.

    Attributes:
        tiny: the slides.
        command: the command line.
        out: folder of results.
        log_dir: of the training.
        done: the command's end.
    """

    tiny: TinySet
    command: list[str]
    out: Path
    log_dir: Path
    done: subprocess.CompletedProcess[str]

    def lines(self) -> list[str]:
        """What the training printed, by single blanks."""
        return [" ".join(line.split()) for line in self.done.stdout.split("TensorBoard ")[0].splitlines()]


def end_to_end(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment(NP="2"), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """From another folder, options of the training from a file; the log folder is made with its parents.

    The learning rate is low, so that the run is far from anything that could diverge.
    """
    folder = tmp_path_factory.mktemp("with blank")
    tiny = TinySet(folder, val={"tumor_101": (323, 259), "normal_102": (290, 305)})
    file = folder / "tiny.args"
    lines = ["# options of a run", "'--img_size' '128'", "'--resolution' '2' --no_cuda --batch_size 1 --num_steps 10"]
    lines += ["--log_every 4 --validate_every 6  # 6 and the end"]
    lines += ["--checkpoint_every 4 --seed 3 --model effdetd0 --base_lr 1e-5"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = folder / "runs" / "été 1"
    command = [str(ROOT / "experiments" / "end_to_end.sh"), str(folder), str(out), f"@{file}"]
    done = end_to_end(command, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return Whole(tiny, command, out, out / "training", done)


def test_run_says_what_it_does(whole: Whole) -> None:
    said = whole.lines()
    assert said[0] == "ranks 2 x batch 1 = 2 images a step"
    assert said[1:3] == ["view 128 px at 2 um/px = 256 um of tissue", "length 10 images = 5 steps"]
    assert "training 3 slides, 2 of them with tumor: normal_001, tumor_001, tumor_002" in said
    assert "validation 2 slides, 1 of them with tumor: normal_102, tumor_101" in said
    assert str(whole.log_dir / "final.keras") in whole.done.stdout
    assert [line.split()[:2] for line in said if line.startswith(("train ", "val "))] == [
        ["train", "4"], ["val", "6"], ["train", "8"], ["train", "10"], ["val", "10"], ["val", "mIoU"],
    ]  # fmt: skip


def test_run_keeps_its_options(whole: Whole) -> None:
    stored = json.loads((whole.log_dir / "options.json").read_text(encoding="utf-8"))
    names = ("model", "img_size", "batch_size", "num_steps", "resolution", "log_every", "warmup", "seed", "log_dir")
    assert {name: stored[name] for name in names} == {
        "model": "effdetd0", "img_size": 128, "batch_size": 1, "num_steps": 10, "resolution": 2.0, "log_every": 4,
        "warmup": 0, "seed": 3, "log_dir": str(whole.log_dir),
    }  # fmt: skip
    assert stored["widefov_version"] == __version__


def test_run_writes_its_page(whole: Whole) -> None:
    html = (whole.log_dir / "report.html").read_text(encoding="utf-8")
    for part in (
        "finished: 10 of 10 images",
        "Best val mIoU",
        "Validation pictures",
        "Patches trained",
        "Sampled places",
    ):
        assert part in html
    starts = json.loads((whole.log_dir / "environment.json").read_text(encoding="utf-8"))["starts"]
    assert [(start["ranks"], start["images"]) for start in starts] == [(2, 0)]


def test_run_writes_metrics(whole: Whole) -> None:
    rows = rows_of(whole.log_dir)
    assert [(row["kind"], row["images"]) for row in rows] == [
        ("train", 4), ("val", 6), ("train", 8), ("train", 10), ("val", 10),
    ]  # fmt: skip
    always = {"kind", "images", "seconds"} | SCORES
    assert [set(row) for row in rows if row["kind"] == "val"] == [always] * 2
    timed = {"learning_rate", "images_per_s", "input_wait"}
    assert [set(row) for row in rows if row["kind"] == "train"] == [always | timed] * 3
    # --base_lr times two ranks
    assert [row["learning_rate"] for row in rows if row["kind"] == "train"] == [2e-5] * 3
    # Two classes from scratch: not far from log(2), and never 0. (Validation uses BatchNorm's statistics, which five
    # steps on maps of 1 px give no meaning.)
    losses = np.array([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses.min() > 0.05
    assert losses.max() < 5
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_run_writes_checkpoints(whole: Whole) -> None:
    folder = whole.log_dir / "checkpoints"
    counters = {}
    for path in folder.iterdir():
        with np.load(path) as file:
            counters[path.name] = json.loads(file["state"].tobytes())["images"]
    best = max((row for row in rows_of(whole.log_dir) if row["kind"] == "val"), key=lambda row: row["miou"])
    assert counters == {
        "images-000000004.npz": 4,
        "images-000000008.npz": 8,
        "images-000000010.npz": 10,
        "best.npz": best["images"],
        "final.npz": 10,
    }
    leftovers = [path.name for path in whole.log_dir.rglob("*") if path.name.startswith(".") or ".part" in path.name]
    assert leftovers == []


def test_run_writes_every_sample(whole: Whole) -> None:
    samples = samples_of(whole.log_dir)
    assert [int(row["index"]) for row in samples] == list(range(10))
    # Radboud's balanced rounds: each pair of indices holds both classes.
    classes = [int(row["cls"]) for row in samples]
    assert [sorted(classes[i : i + 2]) for i in range(0, 10, 2)] == [[0, 1]] * 5
    assert {row["slide"] for row in samples if row["cls"] == "1"} <= {"tumor_001", "tumor_002"}
    # Windows of 128 px lie inside slides of 287 to 311 x 263 to 301 px.
    centers = np.array([(float(row["x_l0"]), float(row["y_l0"])) for row in samples])
    assert centers.min() >= 64
    assert (centers.max(axis=0) <= (311 - 64, 301 - 64)).all()
    drawn = {path.stem for path in (whole.log_dir / "sampling").iterdir()}
    assert drawn == {row["slide"] for row in samples}


def test_run_draws_pictures(whole: Whole) -> None:
    log_dir = whole.log_dir
    pictures = sorted((log_dir / "pictures").iterdir())
    assert [path.name for path in pictures] == ["val-000000006.png", "val-000000010.png"]
    # Four patches, each 320 px beside truth and prediction, with borders of 2 px. (imread takes no such path.)
    sheet_HWC = cv2.imdecode(np.fromfile(pictures[1], np.uint8), cv2.IMREAD_COLOR)
    assert sheet_HWC.shape == (4 * 324, 3 * 320 + 4, 3)
    map_HWC = cv2.imdecode(np.fromfile(next((log_dir / "sampling").iterdir()), np.uint8), cv2.IMREAD_COLOR)
    # Windows are drawn in colors that tissue does not have: blue to red, saturated.
    assert (map_HWC.max(axis=2).astype(int) - map_HWC.min(axis=2) > 200).sum() > 100


def test_run_writes_tensorboard_events(whole: Whole) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = list(whole.log_dir.glob("events.out.tfevents.*"))
    assert len(files) == 1
    found: dict[str, list[int]] = {}
    for event in EventFileLoader(str(files[0])).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(event.step)
    assert {tag for tag in found if tag.startswith("val/")} == {f"val/{name}" for name in SCORES} | {
        "val/patch_truth_prediction"
    }
    assert found["train/loss"] == [4, 8, 10]
    assert found["val/miou"] == found["val/patch_truth_prediction"] == [6, 10]


def python(code: str, *words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A fresh Python that sees only what its folder holds."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


OWN = """
import sys, numpy as np, models, keras
x = np.load(sys.argv[2])
np.save(sys.argv[3], np.asarray(keras.models.load_model(sys.argv[1])(x, training=False)))
"""

FOREIGN = """
import sys, numpy as np
try:
    import models
except ImportError:
    pass
else:
    raise SystemExit("our code was found")
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[3], loaded.serve(np.load(sys.argv[2])).numpy())
"""


def test_final_models_load_and_agree(whole: Whole, tmp_path: Path) -> None:
    log_dir = whole.log_dir
    x_BHWC = np.stack([tissue((128, 128), seed) for seed in range(3)]).astype(np.float32) / 127.5 - 1
    np.save(tmp_path / "x.npy", x_BHWC)
    done = python(OWN, log_dir / "final.keras", tmp_path / "x.npy", tmp_path / "own.npy")
    assert done.returncode == 0, done.stderr[-3000:]
    done = python(FOREIGN, log_dir / "final_savedmodel", tmp_path / "x.npy", tmp_path / "foreign.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    own_BHWK, foreign_BHWK = np.load(tmp_path / "own.npy"), np.load(tmp_path / "foreign.npy")
    assert own_BHWK.shape == (3, 128, 128, 2)
    assert own_BHWK.std() > 1e-3
    # The same weights through two graphs: float32 rounding, relative to the spread of the logits.
    assert np.abs(own_BHWK - foreign_BHWK).max() < 1e-4 * np.abs(own_BHWK).max()


# ------------------------------------------------------------------------------------------ prediction and evaluation


def test_predictions_are_evaluated(whole: Whole) -> None:
    predicted = sorted(path.parent.name for path in whole.out.glob("predictions/*/summary.json"))
    assert predicted == ["normal_102", "tumor_101"]
    metrics = json.loads((whole.out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    # Ten images teach little, but all tissue of both slides is scored once: what the grid of maps has, 2 um/px.
    confusion = metrics["pixels"]["confusion"]
    assert sum(map(sum, confusion)) > 0.8 * (323 * 259 + 290 * 305)
    assert sum(confusion[1]) == 120 * 130
    report = (whole.out / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "tumor_101" in report
    assert "normal_102" in report


def test_a_second_call_predicts_nothing_again(whole: Whole) -> None:
    again = end_to_end(whole.command, cwd=whole.tiny.folder)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-3000:]
    assert "done nothing to do: the checkpoint is at image 10 of 10" in " ".join(again.stdout.split())
    assert "2 of them done before" in again.stdout
    assert whole.tiny.log_dir.exists() is False
