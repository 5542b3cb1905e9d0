"""train_classifier.py as its users start it: ranks, ends in the middle, resuming, phases, evaluation."""

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from artifacts.checkpoints import read_arrays
from tests.support.paths import ROOT
from tests.support.tiny import environment, run_train
from tests.support.warm import warm

SCRIPT = str(ROOT / "train_classifier.py")
ENDED = str(ROOT / "tests" / "integration" / "ended_classifier.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten small images, the odd ones with a dark spot; six to train on, four to validate on."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(10):
        image_HWC = rng.integers(180, 220, (70 + 3 * number, 90, 3)).astype(np.uint8)
        if number % 2:
            image_HWC[20:50, 30:60] = (60, 20, 120)
        cv2.imwrite(str(folder / "images" / f"s{number}.png"), image_HWC)
        rows.append((f"s{number}", number % 2))
    for name, part in (("train", rows[:6]), ("val", rows[6:])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("slide_id", "label"), *part])
    return folder


def words(data: Path, *more: str | Path, **changed: str | Path) -> list[str]:
    options = {
        "train_csv": data / "train.csv", "val_csv": data / "val.csv", "data_dir": data / "images", "image_size": "96",
        "tile_size": "128", "model": "resnet18", "width": "4", "batch_size": "4", "epochs": "2", "lr": "0.001",
        "log_every": "4",
    }  # fmt: skip
    listed = [word for name, value in (options | changed).items() for word in (f"--{name}", str(value))]
    return [*listed, "--no_cuda", *map(str, more)]


def run(data: Path, *more: str | Path, code: int = 0, script: str = SCRIPT, end: str = "", **changed: str | Path):
    done = warm.run(script, words(data, *more, **changed), environment(END=end))
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def on_two(
    data: Path, *more: str | Path, script: str = SCRIPT, end: str = "", ranks: int = 2, **changed: str | Path
) -> subprocess.CompletedProcess[str]:
    return run_train(*words(data, *more, **changed), NP=str(ranks), SCRIPT=script, OMP_NUM_THREADS="1", END=end)


def rows(log_dir: Path, kind: str) -> list[dict]:
    """metrics.jsonl without what differs between runs."""
    lines = (log_dir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    times = ("seconds", "images_per_s", "input_wait", "time")
    return [{k: v for k, v in row.items() if k not in times} for row in found if row["kind"] == kind]


def weights(path: Path) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in read_arrays(path).items() if not name.startswith(("state", "extra/seen"))}


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """A run without an end in its middle, with an average of the weights."""
    log_dir = data / "whole"
    run(data, "--weight_averaging", log_dir=log_dir)
    return log_dir


def test_a_run_leaves_what_its_users_look_for(whole):
    names = {path.name for path in whole.iterdir()} | {path.name for path in (whole / "checkpoints").iterdir()}
    assert {
        "options.json", "metrics.jsonl", "final.keras", "final_savedmodel", "final.json", "report.html", "scores.json",
        "predictions.csv", "thumbnails", "best.npz", "final.npz", "epoch-0001.npz", "epoch-0002.npz",
        "images-000000008.npz", "images-000000012.npz",
    } <= names  # fmt: skip
    # Six images in steps of four: an epoch ends with the second step, the last step has what is left.
    assert [row["images"] for row in rows(whole, "train")] == [4, 8, 12]
    assert [row["images"] for row in rows(whole, "val")] == [8, 12]
    assert {"loss", "auc", "own_loss", "own_auc"} <= set(rows(whole, "val")[0])
    with (whole / "predictions.csv").open() as file:
        assert [(row["slide_id"], row["label"]) for row in csv.DictReader(file)] == [
            ("s6", "0"), ("s7", "1"), ("s8", "0"), ("s9", "1"),
        ]  # fmt: skip
    info = json.loads((whole / "final.json").read_text())
    assert (info["format"], info["outputs"], info["images"]) == ("widefov classifier 1", ["0", "1"], 12)


def test_the_exported_network_is_the_one_that_was_scored(data, whole):
    import keras

    import models  # noqa: F401  # its layers

    model = keras.models.load_model(whole / "final.keras")
    image_HWC = np.full((96, 96, 3), 255, np.uint8)
    shown_HWC = cv2.imread(str(data / "images" / "s6.png"))[..., ::-1]
    height, width = shown_HWC.shape[:2]
    top, left = (96 - height + 1) // 2, (96 - width + 1) // 2
    image_HWC[top : top + height, left : left + width] = shown_HWC
    logits_K = model(image_HWC[None].astype(np.float32) / 127.5 - 1)[0].numpy()
    with (whole / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))
    np.testing.assert_allclose(logits_K, [float(first["logit_0"]), float(first["logit_1"])], rtol=1e-3, atol=1e-4)


def test_a_killed_run_resumes_to_the_same_weights_and_scores(data, whole, tmp_path):
    log_dir = tmp_path / "log"
    run(data, "--weight_averaging", code=-signal.SIGKILL, script=ENDED, end=f"3 {int(signal.SIGKILL)}", log_dir=log_dir)
    assert not (log_dir / "final.keras").exists()
    done = run(data, "--weight_averaging", "--resume", log_dir=log_dir)
    assert "at image 8" in done.stdout
    for name in ("epoch-0001.npz", "images-000000012.npz"):
        assert weights(log_dir / "checkpoints" / name) == weights(whole / "checkpoints" / name)
    for kind in ("train", "val"):
        assert rows(log_dir, kind) == rows(whole, kind)
    assert (log_dir / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


def test_a_preempted_run_leaves_with_code_75_and_resumes(data, whole, tmp_path):
    log_dir = tmp_path / "log"
    done = run(data, "--weight_averaging", code=75, script=ENDED, end=f"1 {int(signal.SIGUSR1)}", log_dir=log_dir)
    assert "preempted   SIGUSR1 at image 8 of 12; --resume auto continues" in done.stdout
    run(data, "--weight_averaging", "--resume", log_dir=log_dir)
    last = "images-000000012.npz"
    assert weights(log_dir / "checkpoints" / last) == weights(whole / "checkpoints" / last)


def test_an_epoch_of_another_run_goes_on(data, whole, tmp_path):
    log_dir = tmp_path / "log"
    done = run(data, "--weight_averaging", "--resume_name", whole, "--resume_epoch", "1", log_dir=log_dir)
    assert f"{whole}/checkpoints/epoch-0001.npz at image 8" in done.stdout
    last = "images-000000012.npz"
    assert weights(log_dir / "checkpoints" / last) == weights(whole / "checkpoints" / last)


def test_another_set_of_slides_is_not_resumed(data, whole, tmp_path):
    fewer = tmp_path / "train.csv"
    fewer.write_text("".join((data / "train.csv").read_text().splitlines(keepends=True)[:5]))
    done = run(data, "--resume", whole, code=2, train_csv=fewer, log_dir=tmp_path / "log")
    assert "--slides 6 slides" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_evaluated_by_itself_to_the_same_predictions(data, whole, tmp_path):
    out = tmp_path / "eval"
    only = ["--val_csv", str(data / "val.csv"), "--data_dir", str(data / "images"), "--image_size", "96"]
    more = ["--tile_size", "96", "--model", "resnet18", "--width", "4", "--no_cuda", "--only_eval"]
    done = warm.run(SCRIPT, [*only, *more, "--train_from_transfer", str(whole), "--log_dir", str(out)], environment())
    assert done.returncode == 0, done.stdout + done.stderr
    best = read_arrays(whole / "checkpoints" / "best.npz")
    last = read_arrays(whole / "checkpoints" / "final.npz")
    names = [name for name in best if name.startswith("model/")]
    if all(np.array_equal(best[name], last[name]) for name in names):
        assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    assert {"scores.json", "predictions.csv", "report.html", "thumbnails"} <= {path.name for path in out.iterdir()}


def test_two_ranks_train_as_one_and_resume_after_a_kill(data, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(data, log_dir=alone)
    killed = on_two(data, "--log_dir", together, script=ENDED, end=f"3 {int(signal.SIGKILL)}")
    assert killed.returncode not in (0, 75), killed.stdout + killed.stderr
    done = on_two(data, "--log_dir", together, "--resume")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "at image 8" in done.stdout
    for kind in ("train", "val"):
        one, two = rows(alone, kind), rows(together, kind)
        assert [row["images"] for row in one] == [row["images"] for row in two]
        np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=2e-4)
    with (together / "predictions.csv").open() as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == ["s6", "s7", "s8", "s9"]


def test_an_image_that_cannot_be_read_is_one_line(data, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (data / "images").iterdir():
        os.link(path, images / path.name)
    (images / "s3.png").unlink()
    # Cut in the middle: its head is whole, so that it shows when px are read.
    (images / "s3.png").write_bytes((data / "images" / "s3.png").read_bytes()[:9000])
    done = run(data, code=2, data_dir=images)
    assert "s3.png" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def first_loss(log_dir: Path) -> float:
    return rows(log_dir, "val")[0]["loss"]


def test_three_phases_start_from_the_same_logits(data, whole, tmp_path):
    """Features, training on them, training of all layers: each begins with what the one before ended with."""
    archive = tmp_path / "features.tar"
    still = ["--train_from_transfer", whole, "--augment", "none"]
    run(data, *still, "--extract_features", "--save_path", archive, "--features_dtype", "float32", epochs="1")
    images = tmp_path / "images"
    run(data, *still, "--no-train_streaming_layers", log_dir=images, epochs="1")
    maps = words(data, *still, "--train_with_features", data_tar=archive, log_dir=tmp_path / "maps", epochs="1")
    at = maps.index("--data_dir")
    del maps[at : at + 2]
    done = warm.run(SCRIPT, maps, environment())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # The same steps from maps as from images.
    for kind in ("train", "val"):
        one, two = rows(images, kind), rows(tmp_path / "maps", kind)
        np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-5)
    # All layers, from where training on maps ended: its predictions are those of the network that is loaded.
    more = ["--only_eval", "--train_from_transfer", tmp_path / "maps"]
    run(data, *more, log_dir=tmp_path / "eval")
    best = rows(tmp_path / "maps", "val")
    assert first_loss(tmp_path / "eval") == pytest.approx(max(best, key=lambda row: row["auc"])["loss"], rel=1e-5)


def test_features_of_other_weights_are_refused(data, whole, tmp_path):
    archive = tmp_path / "features.tar"
    run(data, "--extract_features", "--save_path", archive, epochs="1")
    more = words(data, "--train_with_features", "--train_from_transfer", whole, data_tar=archive)
    at = more.index("--data_dir")
    del more[at : at + 2]
    done = warm.run(SCRIPT, more, environment())
    assert done.returncode == 2
    assert "do not fit: weights: SHA-256" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_ranks_share_slides_and_evaluate_alike(data, whole, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    tiles = {"epochs": "1", "image_size": "192", "tile_size": "128"}
    # With as many threads: the first statistics of a thin network make 1e-3 of what threads round differently.
    done = on_two(data, ranks=1, log_dir=alone, **tiles)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    done = on_two(data, "--share_slide", log_dir=shared, **tiles)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for kind in ("train", "val"):
        one, two = rows(alone, kind), rows(shared, kind)
        np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=2e-4)
    sizes = {"image_size": "192", "tile_size": "128", "log_dir": tmp_path / "eval"}
    done = on_two(data, "--only_eval", "--train_from_transfer", alone, **sizes)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert first_loss(tmp_path / "eval") == pytest.approx(first_loss(alone), rel=1e-5)
