"""What a run leaves behind, and how a run goes on: train.py as a process.

EfficientDet takes about a minute to start, so one run checks all that a run leaves; the others, which look at how runs
follow each other, train two convolutions (small_train.py).
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.support.paths import ROOT
from tests.support.tiny import TinySet, environment, tissue, train

SCORES = {"loss", "miou", "dice", "auc", "accuracy", "iou_0", "dice_0", "iou_1", "dice_1"}
OPTION_FLAGS = (
    "--img_size --batch_size --num_steps --val_split --model --no_cuda --horovod --no-horovod --fp16_allreduce "
    "--train_centers --val_centers --hard_mining --slide_path --label_path --valid_slide_path --valid_label_path "
    "--dataset --data_root --weights_path --slide_format --label_format --valid_slide_format --valid_label_format "
    "--data_sampler --bb_downsample --batch_tumor_ratio --sample_processes --resolution --label_map --ignore_groups "
    "--mask_values --mpp --log_dir --log_every --validate_every --resume --debug --pos_pixel_weight --neg_pixel_weight"
)


def rows_of(log_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def samples_of(log_dir: Path) -> list[dict[str, str]]:
    with (log_dir / "samples" / "rank-0.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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


# ------------------------------------------------------------------------------------------------ a run of its own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinySet, subprocess.CompletedProcess[str]]:
    """Ten images of EfficientDet-D0 by batches of 2, told from a file; the log folder is made with its parents.

    The learning rate is low, so that the run is far from anything that could diverge.
    """
    tiny = TinySet(tmp_path_factory.mktemp("with blank"))
    tiny.log_dir = tiny.folder / "runs" / "été 1"
    lines = ["# the words of a run", *(f"'{word}'" for word in tiny.arguments(batch_size="2", num_steps="10"))]
    lines += [
        "--log_every 4 --validate_every 6  # 6 and the end",
        "--checkpoint_every 4 --seed 3 --model effdetd0 --base_lr 1e-5",
    ]
    file = tiny.folder / "tiny.args"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # From another folder: train.py finds its modules wherever it is started.
    done = train([f"@{file}"], timeout=600, cwd=tiny.folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return tiny, done


def test_run_says_what_it_does(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    tiny, done = run
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert said[0].startswith("ranks 1 x batch 2 = 2 images a step, ")
    assert said[1:3] == ["view 128 px at 2 um/px = 256 um of tissue", "length 10 images = 5 steps"]
    assert "training 3 slides, 2 of them with tumour: normal_001, tumor_001, tumor_002" in said
    assert "validation 1 slides, 1 of them with tumour: tumor_101" in said
    assert str(tiny.log_dir / "final.keras") in done.stdout
    assert [line.split()[:2] for line in said if line.startswith(("train ", "val "))] == [
        ["train", "4"], ["val", "6"], ["train", "8"], ["train", "10"], ["val", "10"], ["val", "mIoU"],
    ]  # fmt: skip


def test_run_keeps_its_options(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    tiny, _ = run
    stored = json.loads((tiny.log_dir / "options.json").read_text(encoding="utf-8"))
    names = ("model", "img_size", "batch_size", "num_steps", "resolution", "log_every", "warmup", "seed", "log_dir")
    assert {name: stored[name] for name in names} == {
        "model": "effdetd0", "img_size": 128, "batch_size": 2, "num_steps": 10, "resolution": 2.0, "log_every": 4,
        "warmup": 0, "seed": 3, "log_dir": str(tiny.log_dir),
    }  # fmt: skip


def test_run_writes_metrics(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    rows = rows_of(run[0].log_dir)
    assert [(row["kind"], row["images"]) for row in rows] == [
        ("train", 4), ("val", 6), ("train", 8), ("train", 10), ("val", 10),
    ]  # fmt: skip
    always = {"kind", "images", "seconds"} | SCORES
    assert [set(row) for row in rows if row["kind"] == "val"] == [always] * 2
    assert [set(row) for row in rows if row["kind"] == "train"] == [always | {"learning_rate", "images_per_s"}] * 3
    assert [row["learning_rate"] for row in rows if row["kind"] == "train"] == [1e-5] * 3
    # Two classes from scratch: not far from log(2), and never 0. (Validation uses BatchNorm's statistics, which five
    # steps on maps of 1 px give no meaning.)
    losses = np.array([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses.min() > 0.05
    assert losses.max() < 5
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_run_writes_checkpoints(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    folder = run[0].log_dir / "checkpoints"
    counters = {}
    for path in folder.iterdir():
        with np.load(path) as file:
            counters[path.name] = json.loads(file["state"].tobytes())["images"]
    best = max((row for row in rows_of(run[0].log_dir) if row["kind"] == "val"), key=lambda row: row["miou"])
    assert counters == {
        "images-000000004.npz": 4,
        "images-000000008.npz": 8,
        "images-000000010.npz": 10,
        "best.npz": best["images"],
        "final.npz": 10,
    }
    leftovers = [path.name for path in run[0].log_dir.rglob("*") if path.name.startswith(".") or ".part" in path.name]
    assert leftovers == []


def test_run_writes_every_sample(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    tiny, _ = run
    samples = samples_of(tiny.log_dir)
    assert [int(row["index"]) for row in samples] == list(range(10))
    # Radboud's balanced rounds: each pair of indices holds both classes.
    classes = [int(row["cls"]) for row in samples]
    assert [sorted(classes[i : i + 2]) for i in range(0, 10, 2)] == [[0, 1]] * 5
    assert {row["slide"] for row in samples if row["cls"] == "1"} <= {"tumor_001", "tumor_002"}
    # Windows of 128 px lie inside slides of 287 to 311 x 263 to 301 px.
    centres = np.array([(float(row["x_l0"]), float(row["y_l0"])) for row in samples])
    assert centres.min() >= 64
    assert (centres.max(axis=0) <= (311 - 64, 301 - 64)).all()
    drawn = {path.stem for path in (tiny.log_dir / "sampling").iterdir()}
    assert drawn == {row["slide"] for row in samples}


def test_run_draws_pictures(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    log_dir = run[0].log_dir
    pictures = sorted((log_dir / "pictures").iterdir())
    assert [path.name for path in pictures] == ["val-000000006.png", "val-000000010.png"]
    # Four patches, each 320 px beside truth and prediction, with borders of 2 px. (imread takes no such path.)
    sheet_HWC = cv2.imdecode(np.fromfile(pictures[1], np.uint8), cv2.IMREAD_COLOR)
    assert sheet_HWC.shape == (4 * 324, 3 * 320 + 4, 3)
    map_HWC = cv2.imdecode(np.fromfile(next((log_dir / "sampling").iterdir()), np.uint8), cv2.IMREAD_COLOR)
    # Windows are drawn in colours that tissue does not have: blue to red, saturated.
    assert (map_HWC.max(axis=2).astype(int) - map_HWC.min(axis=2) > 200).sum() > 100


def test_run_writes_tensorboard_events(run: tuple[TinySet, subprocess.CompletedProcess[str]]) -> None:
    files = list(run[0].log_dir.glob("events.out.tfevents.*"))
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


def test_final_models_load_and_agree(run: tuple[TinySet, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    log_dir = run[0].log_dir
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


# --------------------------------------------------------------------------------------- runs that follow each other


def small(tiny: TinySet, *more: str, code: int = 0, **changed: str) -> subprocess.CompletedProcess[str]:
    """A run of the small network by batches of 2, with hard mining, which makes a resume harder."""
    settings = {"batch_size": "2", "log_every": "2", "hard_fraction": "1/2", "checkpoint_every": "2", "seed": "3"}
    words = tiny.arguments("--hard_mining", *more, **(settings | changed))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/integration/small_train.py"), *words],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def test_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    # 13 images by batches of 2 are 14. Warm-up and schedule follow num_steps, so they are given.
    fixed = ("--warmup", "4", "--validate_every", "100")
    small(tiny, *fixed, num_steps="13", log_dir=str(tmp_path / "whole"))
    small(tiny, *fixed, num_steps="8")
    first = samples_of(tiny.log_dir)
    assert [int(row["index"]) for row in first] == list(range(8))
    newest = tiny.log_dir / "checkpoints" / "images-000000008.npz"
    newest.write_bytes(newest.read_bytes()[:-1000])

    done = small(tiny, *fixed, "--resume", "auto", num_steps="13")
    assert f"{newest}: damaged checkpoint" in done.stdout
    assert f"resume      {newest.with_name('images-000000006.npz')} at image 6, best val mIoU " in done.stdout

    whole, resumed = samples_of(tmp_path / "whole"), samples_of(tiny.log_dir)
    assert [int(row["index"]) for row in resumed] == list(range(14))
    assert "hard" in {row["origin"] for row in resumed[6:]}
    places = [{name: text for name, text in row.items() if name != "loss"} for row in (*whole, *resumed)]
    assert places[:14] == places[14:]
    # Same weights, optimizer and pool: the same losses, but for the order in which threads add.
    np.testing.assert_allclose(
        [float(row["loss"]) for row in resumed], [float(row["loss"]) for row in whole], rtol=1e-4
    )

    done = small(tiny, *fixed, "--resume", num_steps="13")
    assert "done        nothing to do: the checkpoint is at image 14 of 13" in done.stdout
    assert [int(row["index"]) for row in samples_of(tiny.log_dir)] == list(range(14))

    done = small(tiny, *fixed, "--resume", num_steps="20", img_size="256", code=2)
    assert "was trained with --img_size 128. Resume with the same" in done.stderr


def test_fresh_run_sets_an_earlier_one_aside_and_debug_is_short(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    tiny.log_dir.mkdir()
    (tiny.log_dir / "notes.txt").write_text("mine", encoding="utf-8")
    small(tiny, num_steps="4")
    kept = (tiny.log_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert not (tiny.log_dir / "previous-1").exists()

    done = small(tiny, "--debug", batch_size="25", num_steps="50000", log_every="128")
    assert f"{tiny.log_dir} held an earlier run, moved to {tiny.log_dir / 'previous-1'}" in done.stdout
    earlier = tiny.log_dir / "previous-1"
    assert (earlier / "metrics.jsonl").read_text(encoding="utf-8") == kept
    assert [int(row["index"]) for row in samples_of(earlier)] == list(range(4))
    assert (tiny.log_dir / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert "length      100 images = 4 steps" in done.stdout
    assert [(row["kind"], row["images"]) for row in rows_of(tiny.log_dir)] == [
        ("train", 25), ("train", 50), ("val", 50), ("train", 75), ("train", 100), ("val", 100),
    ]  # fmt: skip


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    done = small(tiny, base_lr="1e30", num_steps="40", checkpoint_every="40", code=2)
    assert "Traceback" not in done.stderr
    # The first step is taken at a sane weight; the second one, images 2 and 3, sees what it did.
    assert "in the step at image 2" in done.stderr
    assert "[2, 3]" in done.stderr
    assert "--base_lr" in done.stderr
    assert not (tiny.log_dir / "checkpoints").exists()
    assert not (tiny.log_dir / "final.keras").exists()


# ------------------------------------------------------------------------------------------------------------- help


def test_help_lists_every_option_without_tensorflow() -> None:
    code = """
import sys, train
try:
    train.main(["--help"])
except SystemExit as left:
    heavy = sorted({"tensorflow", "keras", "horovod", "pyvips", "cv2"} & set(sys.modules))
    print("LOADED", heavy, left.code)
"""
    done = python(code)
    assert "LOADED [] 0" in done.stdout, done.stderr
    listed = done.stdout.replace(",", " ").split()
    assert [flag for flag in OPTION_FLAGS.split() if flag not in listed] == []
