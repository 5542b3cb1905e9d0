"""How a run resumes, sets an earlier one aside, or stops: train.py as a process, training two convolutions."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.paths import ROOT
from tests.support.small_runs import rows_of, samples_of, small
from tests.support.tiny import TinySet

OPTION_FLAGS = (
    "--img_size --batch_size --num_steps --val_split --model --no_cuda --horovod --no-horovod --fp16_allreduce "
    "--train_centers --val_centers --hard_mining --slide_path --label_path --valid_slide_path --valid_label_path "
    "--dataset --data_root --weights_path --slide_format --label_format --valid_slide_format --valid_label_format "
    "--data_sampler --bb_downsample --batch_tumor_ratio --sample_processes --resolution --label_map --ignore_groups "
    "--mask_values --mpp --log_dir --log_every --validate_every --resume --debug --pos_pixel_weight --neg_pixel_weight"
)


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


def test_a_run_resumed_with_another_batch_per_rank_keeps_its_rate(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    fixed = ("--warmup", "0", "--validate_every", "100")
    settings = {"base_lr": "0.002", "log_every": "4"}
    # Passes or ranks: what counts is the joint batch.
    small(tiny, *fixed, "--accumulate_batch", "2", batch_size="1", num_steps="4", **settings)
    done = small(tiny, *fixed, "--resume", batch_size="2", num_steps="8", **settings)
    assert "learning rate" not in done.stdout
    rates = [(row["images"], row["learning_rate"]) for row in rows_of(tiny.log_dir) if row["kind"] == "train"]
    assert rates == [(4, 0.004), (8, 0.004)]

    done = small(tiny, *fixed, "--resume", batch_size="3", num_steps="12", **settings)
    assert "resume      the joint batch was 2 (1 rank), is 3 (1 rank)" in done.stdout
    assert "resume      the learning rate was 0.004, is 0.006" in done.stdout


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
    # A batch log: whole lines, no bar, nothing of libraries; the first step is not timed.
    assert done.stderr == ""
    assert "\r" not in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("train ")] == [
        "25",
        "50",
        "75",
        "100",
    ]
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("val ")][:2] == ["50", "100"]
    assert done.stdout.count("not timed") == 1
    assert "nan images" not in done.stdout
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
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert "LOADED [] 0" in done.stdout, done.stderr
    listed = done.stdout.replace(",", " ").split()
    assert [flag for flag in OPTION_FLAGS.split() if flag not in listed] == []
