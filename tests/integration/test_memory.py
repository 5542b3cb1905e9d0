"""Recomputation, precision, the planner, more than two classes: train.py as a user starts it."""

import json
import re
from pathlib import Path

import cv2
import numpy as np

from slides.synthetic.demo import write_asap
from tests.support.small_runs import rows_of, small
from tests.support.tiny import SMALL, THIN, TRAIN, TUMOR_XY, TinySet, environment
from tests.support.warm import warm


def test_plan_needs_no_data_and_names_sizes_that_fit() -> None:
    asked = ["--plan", "--model", "deeplab", "--img_size", "2048", "--batch_size", "1", "--no_cuda"]
    done = warm.run(TRAIN, asked, environment())
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^([* ]) (none|blocks|fine) +([\d.]+) GiB +([\d.]+) s +[\d.]+ +(yes|just|no) +(\d+)$",
                      done.stdout, re.MULTILINE)  # fmt: skip
    assert [(row[0], row[1]) for row in rows] == [("*", "none"), (" ", "blocks"), (" ", "fine")]
    gib = [float(row[2]) for row in rows]
    assert gib[0] > 2 * gib[1] > 2 * gib[2]
    sizes = [int(row[5]) for row in rows]
    assert sizes == sorted(sizes)
    assert all(size > 0 and size % 128 == 0 for size in sizes)


def test_what_cannot_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    done = warm.run(TRAIN, tiny.arguments("--recompute", "blocks", img_size="65536"), environment())
    assert done.returncode == 12
    assert not tiny.log_dir.exists()
    errors = re.findall(r"^train\.py: error: (.*)$", done.stderr, re.MULTILINE)
    assert len(errors) == 1, done.stderr
    found = re.fullmatch(
        r"a step needs about (\d+)\.\d GiB per rank, [\d.]+ are available\. On this machine fit: --recompute none: "
        r"up to --img_size (\d+); .*; --recompute fine: up to --img_size (\d+) .*--no-memory_check starts it anyway",
        errors[0],
    )
    assert found, errors[0]
    assert int(found[1]) > 1000
    assert 128 <= int(found[2]) < int(found[3]) < 65536


def test_recomputed_bfloat16_run_leaves_a_float32_model(tmp_path: Path) -> None:
    import keras

    import models  # noqa: F401  # registers its layers

    tiny = TinySet(tmp_path)
    words = ["--recompute", "fine", "--mixed_precision", "bfloat16", "--model", "effdetd0", "--base_lr", "1e-5"]
    done = warm.run(THIN, tiny.arguments(*words, batch_size="2"), environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(np.isfinite(row["loss"]) for row in rows_of(tiny.log_dir) if row["kind"] == "train")
    loaded = keras.models.load_model(tiny.log_dir / "final.keras")
    assert loaded.get_layer("block3a_dwconv").compute_dtype == "float32"
    assert loaded.name == "effdetd0"
    with np.load(tiny.log_dir / "checkpoints" / "final.npz") as stored:
        np.testing.assert_array_equal(loaded.get_layer("stem_conv").kernel, stored["model/stem_conv/kernel"])


def test_float16_run_keeps_its_loss_scale_over_a_resume(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    small(tiny, "--mixed_precision", "float16", num_steps="4")
    file = tiny.log_dir / "checkpoints" / "images-000000004.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    assert arrays["extra/loss_scale"].tolist() == [2.0**15, 2.0]
    # As if it had grown for long: the next step overflows, is left out, and the run goes on.
    arrays["extra/loss_scale"] = np.array([2.0**126, 1999.0])
    np.savez(file, **arrays)
    done = small(tiny, "--mixed_precision", "float16", "--resume", num_steps="8")
    assert re.search(r"^float16 +\d steps? skipped, whose gradient overflowed; loss scale now ", done.stdout, re.M)
    with np.load(tiny.log_dir / "checkpoints" / "images-000000008.npz") as stored:
        assert stored["extra/loss_scale"][0] < 2.0**126
    # Neither are NaN in the sample log, nor in the pool that is drawn from.
    assert "nan" not in (tiny.log_dir / "samples" / "rank-0.csv").read_text(encoding="utf-8")


def test_three_classes_end_to_end(tmp_path: Path) -> None:
    """Group `_0` is class 1, `stroma` class 2, `unclear` ignored; scores, weights and pictures know all three."""
    tiny = TinySet(tmp_path)
    stroma_XY = TUMOR_XY + np.array([125, 0])
    for part, names in (("train", ("tumor_001", "tumor_002")), ("val", ("tumor_101",))):
        for name in names:
            areas = [("_0", TUMOR_XY), ("stroma", stroma_XY), ("unclear", TUMOR_XY / 4)]
            write_asap(tiny.label(name, part), areas)
    words = ["--label_map", "_0:1", "stroma:2", "unclear:255", "--classes", "3", "--class_weights", "1", "2", "0.5"]
    done = small(tiny, *words, num_steps="6", val_patches="0")
    rows = [row for row in rows_of(tiny.log_dir) if row["kind"] == "val"]
    assert {"iou_0", "iou_1", "iou_2", "dice_2"} <= set(rows[-1])
    assert all(rows[-1][f"iou_{cls}"] is not None for cls in (0, 1, 2))
    options = json.loads((tiny.log_dir / "options.json").read_text(encoding="utf-8"))
    assert (options["classes"], options["class_weights"]) == (3, [1.0, 2.0, 0.5])
    assert "stroma" in done.stdout
    assert re.search(r"^memory +about [\d.]+ GiB per rank; ", done.stdout, re.MULTILINE)
    picture = sorted((tiny.log_dir / "pictures").iterdir())[-1]
    sheet_HWC = cv2.imread(str(picture)).astype(int)
    # Truth is half the patch and half the class's color. Blue, BGR (220, 120, 40), is the third class.
    color_HWC = 2 * sheet_HWC[:, 322:642] - sheet_HWC[:, 2:322]
    shares = [
        float((np.abs(color_HWC - color).max(axis=2) < 12).mean())
        for color in ((80, 170, 60), (60, 60, 220), (220, 120, 40))
    ]
    assert min(shares) > 0.01, shares


def test_wrong_number_of_class_weights_is_refused(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    done = warm.run(SMALL, tiny.arguments("--classes", "3", "--class_weights", "1", "2"), environment())
    assert done.returncode == 2
    assert "--class_weights" in done.stderr
