"""The command line: defaults, what is derived, and what is refused at the door."""

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from pathlib import Path

import pytest

from options.fields import as_json, free_options, stream_options
from options.parser import OptionError
from options.train import train_options
from tests.support.paths import ROOT

DATA = ("--slide_path", "S", "--label_path", "L")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command line is refused with."""
    with pytest.raises(SystemExit) as stopped:
        train_options(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["train.py --help lists all options"]
    return said[0].removeprefix("train.py: error: ")


# What a checkpoint stores of a run with two paths.
DEFAULTS = {
    "slide_path": "S", "label_path": "L", "label_format": "tif", "valid_slide_path": None, "valid_label_path": None,
    "dataset": None, "data_root": None, "slide_format": "tif", "recursive": False,
    "mpp": None, "mpp_table": None, "manifest": None, "slide_root": None,
    "valid_slide_format": "tif", "valid_label_format": "tif", "train_centers": [-1], "val_centers": [-1],
    "val_split": 0.15, "stage_dir": None, "stage_gb": 200.0,
    "label_map": None, "ignore_groups": ["none"], "mask_values": None, "classes": None,
    "bb_downsample": 7, "img_size": 1024, "resolution": 0.25, "resolution_tolerance": 0.0,
    "data_sampler": "radboud", "batch_tumor_ratio": None,
    "hard_mining": False, "hard_fraction": "1/4", "hard_pool": 256, "mine_from": None, "qc": True,
    "stain_norm": "none", "augment": "none",
    "context_spacing": None, "max_unreadable": "1/100", "val_patches": 256,
    "model": None, "weights_path": None, "norm": "batch",
    "sync_bn": False, "freeze_bn": False, "freeze_backbone": False,
    "recompute": "none", "stream": None, "mixed_precision": "float32", "networks": ["effdetd0"],
    "batch_size": 2, "accumulate_batch": 1, "num_steps": 50000, "loss": "ce", "label_smoothing": 0.0,
    "focal_gamma": 2.0, "pos_pixel_weight": 1.0, "neg_pixel_weight": 1.0, "class_weights": None, "seed": 0,
    "fp16_allreduce": False, "optimizer": "adam", "base_lr": 0.001, "lr_scaling": "linear", "warmup": 2500,
    "lr_schedule": "constant", "lr_cycle": 5000, "momentum": 0.9, "weight_decay": None,
    "plan": False, "memory_check": True, "log_dir": None, "log_every": 128, "validate_every": 2048,
    "checkpoint_every": 2048, "resume": None, "elastic": False, "debug": False,
    "sample_processes": 1, "tile_cache": 128, "no_cuda": False, "horovod": True, "stall_timeout": 60.0,
}  # fmt: skip


def test_defaults_are_the_documented_ones(monkeypatch):
    monkeypatch.delenv("CAMELYON_ROOT", raising=False)
    stored = as_json(train_options(DATA))
    assert stored == DEFAULTS
    assert json.loads(json.dumps(stored)) == stored


@pytest.mark.parametrize(
    ("optimizer", "rate", "decay"),
    [("adam", 0.001, None), ("adamw", 0.001, 0.01), ("sgd", 0.01, 0.0), ("lars", 1.0, 1e-4), ("lamb", 0.001, 0.01)],
)
def test_defaults_of_optimizers(optimizer, rate, decay):
    chosen = train_options([*DATA, "--optimizer", optimizer]).optimization
    assert (chosen.base_lr, chosen.weight_decay, chosen.momentum) == (rate, decay, 0.9)


def test_weights_tell_the_network_unless_model_does():
    assert train_options([*DATA, "--weights_path", "w"]).network.networks == ("effdetd0", "effdetd4", "deeplab")
    assert train_options([*DATA, "--weights_path", "w", "--model", "deeplab"]).network.networks == ("deeplab",)


def test_weights_of_classes():
    training = train_options([*DATA, "--pos_pixel_weight", "3", "--neg_pixel_weight", "2"]).training
    assert training.weights_of(3) == (2.0, 3.0, 3.0)
    assert train_options([*DATA, "--class_weights", "1", "2"]).training.weights_of(2) == (1.0, 2.0)


def test_data_root_comes_from_the_environment(tmp_path: Path):
    # Read when the module is loaded, as the help shows it.
    code = "from options.train import train_options; print(train_options(['--dataset', '16']).slides.data_root)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"CAMELYON_ROOT": "/data/c 16"}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "/data/c 16\n"


def test_a_plan_needs_no_data_and_the_machine_none_either():
    opts = train_options(["--plan", "--img_size", "256", "--no-horovod", "--no-memory_check", "--no-qc"])
    assert opts.run.plan
    assert (opts.machine.horovod, opts.run.memory_check, opts.sampling.qc) == (False, False, False)


def test_options_are_frozen_and_checked_when_changed():
    opts = train_options(DATA)
    with pytest.raises(FrozenInstanceError):
        opts.training.seed = 1
    with pytest.raises(ValueError, match="--img_size 100: must be a multiple of 128"):
        replace(opts.sampling, img_size=100)
    assert replace(opts, training=replace(opts.training, seed=3)).training.seed == 3


def test_a_wrong_command_line_can_raise(capsys):
    with pytest.raises(OptionError, match=r"^--img_size 100: must be a multiple of 128"):
        train_options([*DATA, "--img_size", "100"], raises=True)
    with pytest.raises(OptionError, match=r"^argument --batch_size: 0 given"):
        train_options([*DATA, "--batch_size", "0"], raises=True)
    assert capsys.readouterr().err == ""


def test_elastic_needs_an_elastic_launcher_and_resumes(capsys, monkeypatch):
    assert refused(capsys, *DATA, "--elastic", "--log_dir", "G").startswith("--elastic needs an elastic launcher")
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    assert train_options([*DATA, "--elastic", "--log_dir", "G"]).run.resume == "auto"
    assert train_options([*DATA, "--elastic", "--log_dir", "G", "--resume", "x"]).run.resume == "x"
    assert refused(capsys, *DATA, "--elastic").startswith("--elastic needs --log_dir")


def test_errors_appear_on_the_first_rank_only(capsys, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        train_options([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ""


def test_validation_data_looks_like_training_data_unless_said_otherwise():
    opts = train_options([*DATA, "--slide_format", "svs", "--label_format", "xml"])
    assert (opts.slides.valid_slide_format, opts.slides.valid_label_format) == ("svs", "xml")
    opts = train_options([*DATA, "--label_format", "xml", "--valid_label_format", "tif"])
    assert (opts.slides.label_format, opts.slides.valid_label_format) == ("xml", "tif")
    assert train_options(["--dataset", "16", "--data_root", "D"]).slides.label_format == "xml"


def test_debug_is_short():
    opts = train_options([*DATA, "--debug"])
    assert (opts.training.num_steps, opts.run.log_every, opts.run.validate_every) == (100, 20, 50)
    assert (opts.sampling.val_patches, opts.run.checkpoint_every) == (8, 50)
    # 5 and 10 % of the shorter run
    assert (opts.optimization.warmup, opts.optimization.lr_cycle) == (5, 10)
    assert train_options([*DATA, "--debug", "--num_steps", "7"]).training.num_steps == 7


def test_mined_places_need_draws_without_tumor(capsys):
    mined = (*DATA, "--mine_from", "E")
    assert train_options([*mined, "--hard_mining"]).sampling.mine_from == Path("E")
    assert refused(capsys, *mined).startswith("--mine_from needs --hard_mining")
    for words in (["--data_sampler", "surf"], ["--batch_tumor_ratio", "1"]):
        assert "draws none" in refused(capsys, *mined, "--hard_mining", *words)
    words = ["--data_sampler", "surf", "--batch_tumor_ratio", "0.5"]
    assert train_options([*mined, "--hard_mining", *words]).sampling.mine_from == Path("E")


def test_words_can_come_from_a_file(tmp_path: Path):
    file = tmp_path / "a b.args"
    file.write_text('--slide_path "with blank" --label_path L  # a comment\n\n--img_size 256\n', encoding="utf-8")
    opts = train_options([f"@{file}", "--img_size", "384"])
    assert (opts.slides.slide_path, opts.sampling.img_size) == (Path("with blank"), 384)


def test_shares_are_exact():
    assert train_options([*DATA, "--batch_tumor_ratio", "0.1"]).sampling.batch_tumor_ratio == Fraction(1, 10)
    assert train_options([*DATA, "--batch_tumor_ratio", "1/3"]).sampling.batch_tumor_ratio == Fraction(1, 3)


def test_label_map_and_skipped_groups():
    opts = train_options([*DATA, "--label_map", "_0:1", "Tumor:1", "_2:0", "none:0"])
    assert list(opts.labels.label_map.items()) == [("_0", 1), ("tumor", 1), ("_2", 0), ("none", 0)]
    assert opts.labels.ignore_groups == ("none",)
    # a group to skip leaves the default map, or skipping it would do nothing
    opts = train_options([*DATA, "--ignore_groups", "_1", "Necrosis"])
    assert opts.labels.label_map == {"_0": 1, "tumor": 1, "metastases": 1, "_2": 0, "exclusion": 0, "normal": 0}
    assert opts.labels.ignore_groups == ("_1", "necrosis")


@pytest.mark.parametrize(
    "words",
    [
        ("--mask_values", "0:0", "7:1"),
        ("--label_map", "_0:1", "_2:0", "--ignore_groups", "x"),
        ("--batch_tumor_ratio", "1/3", "--hard_mining"),
    ],
)
def test_a_resumed_run_finds_its_options_as_they_were(words):
    opts = train_options([*DATA, *words])
    stored = json.loads(json.dumps(as_json(opts)))
    assert stored == as_json(opts)
    assert {name: stored[name] for name in stream_options(opts)} == stream_options(opts)


def test_what_decides_the_stream_and_what_is_free():
    opts = train_options(DATA)
    assert set(stream_options(opts)) == {
        "seed", "data_sampler", "batch_tumor_ratio", "img_size", "resolution",
        "resolution_tolerance", "bb_downsample", "mpp", "label_map",
        "ignore_groups", "mask_values", "hard_mining", "hard_fraction", "hard_pool", "qc", "augment", "context_spacing",
    }  # fmt: skip
    assert free_options(opts) == {
        "resume", "log_dir", "plan", "memory_check", "stall_timeout", "stage_dir", "stage_gb", "tile_cache", "horovod",
        "sample_processes", "networks", "batch_size", "accumulate_batch", "log_every", "checkpoint_every", "elastic",
    }  # fmt: skip


def test_options_become_json():
    opts = train_options([*DATA, "--batch_tumor_ratio", "0.5", "--mask_values", "0:0", "7:1"])
    stored = as_json(opts)
    assert (stored["slide_path"], stored["batch_tumor_ratio"], stored["ignore_groups"]) == ("S", "1/2", ["none"])
    # As JSON gives them back, or a resumed run would seem to have others.
    assert stored["mask_values"] == {"0": 0, "7": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no training data: give --slide_path and --label_path, or --dataset 16 or 17 with --data_root"),
        (("--slide_path", "S"), "no training data: give --slide_path and --label_path"),
        ((*DATA, "--valid_slide_path", "V"), "--valid_slide_path and --valid_label_path must be given together"),
        ((*DATA, "--dataset", "16"), "--dataset replaces the four path options"),
        ((*DATA, "--img_size", "1000"), "--img_size 1000: must be a multiple of 128, e.g. 896 or 1024"),
        ((*DATA, "--img_size", "-128"), "--img_size -128: must be a multiple of 128, e.g. 128 or 256"),
        ((*DATA, "--val_split", "1"), "--val_split 1: must be above 0 and below 1"),
        ((*DATA, "--val_split", "nan"), "--val_split nan: must be above 0 and below 1"),
        ((*DATA, "--resolution", "0"), "argument --resolution: 0 given, must be above 0"),
        ((*DATA, "--resolution", "abc"), "argument --resolution: invalid number value: 'abc'"),
        ((*DATA, "--batch_size", "0"), "argument --batch_size: 0 given, must be at least 1"),
        ((*DATA, "--batch_size", "1e3"), "argument --batch_size: invalid whole number value: '1e3'"),
        ((*DATA, "--seed", "4294967296"), "argument --seed: 4294967296 given, must be at least 0 and at most"),
        ((*DATA, "--batch_tumor_ratio", "1.5"), "argument --batch_tumor_ratio: 1.5 given, must be between 0 and 1"),
        ((*DATA, "--label_map", "_0"), "argument --label_map: '_0' is not NAME:CLASS, e.g. _0:1"),
        ((*DATA, "--label_map", "_0:1", "_0:0"), "--label_map: group '_0' twice; name each group once"),
        ((*DATA, "--label_map", "a:1", "--ignore_groups", "A"), "--label_map: group 'a' is in --ignore_groups, too"),
        ((*DATA, "--label_map", "_0:255", "_2:0"), "--label_map: no group has a class from 1 to 254"),
        ((*DATA, "--mask_values", "300:1"), "--mask_values 300: mask values are whole numbers from 0 to 255"),
        ((*DATA, "--pos_pixel_weight", "0", "--neg_pixel_weight", "0"), "--pos_pixel_weight and --neg_pixel_weight"),
        ((*DATA, "--class_weights", "0", "0"), "--class_weights are all 0: nothing would be learned"),
        ((*DATA, "--classes", "1"), "argument --classes: 1 given, must be at least 2 and at most 255"),
        ((*DATA, "--label_smoothing", "1"), "argument --label_smoothing: 1 given, must be at least 0 and below 1"),
        ((*DATA, "--focal_gamma", "3"), "--focal_gamma applies to --loss focal; --loss ce has none"),
        ((*DATA, "--loss", "dice", "--label_smoothing", "0.1"), "--label_smoothing applies to ce and focal"),
        ((*DATA, "--freeze_bn"), "--freeze_bn and --freeze_backbone need trained weights: give --weights_path"),
        ((*DATA, "--sync_bn", "--freeze_bn", "--weights_path", "w"), "--freeze_bn and --sync_bn: frozen statistics"),
        ((*DATA, "--freeze_backbone"), "--freeze_bn and --freeze_backbone need trained weights"),
        ((*DATA, "--dataset", "18"), "argument --dataset: invalid choice: '18' (choose from '16', '17')"),
        (("--dataset", "16"), "--dataset 16 needs --data_root (or $CAMELYON_ROOT)"),
        (("--manifest", "M", *DATA), "--manifest replaces the four path options and --dataset"),
        ((*DATA, "--slide_root", "R"), "--slide_root is the folder of a manifest's files"),
        ((*DATA, "--mask_values", "7:1", "7:0"), "--mask_values 7:1 7:0: name each value once"),
        ((*DATA, "--stall_timeout", "-1"), "argument --stall_timeout: -1 given, must be at least 0"),
        ((*DATA, "--optimizer", "adam", "--weight_decay", "0.1"), "--weight_decay: --optimizer adam has none"),
        ((*DATA, "--optimizer", "lamb", "--momentum", "0.1"), "--momentum applies to sgd and lars; --optimizer lamb"),
        ((*DATA, "--lr_cycle", "9"), "--lr_cycle applies to --lr_schedule cyclic; constant has no cycle"),
        ((*DATA, "--context_spacing", "0.25"), "--context_spacing 0.25: the second view must be coarser than"),
        ((*DATA, "--model", "unet"), "argument --model: invalid choice: 'unet' (choose from 'effdetd0', 'effdetd4',"),
        ((*DATA, "--resume"), "--resume auto looks for checkpoints in --log_dir, which is not given"),
        ((*DATA, "--img_siz", "256"), "unrecognized arguments: --img_siz 256"),
        (("@missing.args",), "[Errno 2] No such file or directory: 'missing.args'"),
    ],
)  # fmt: skip
def test_bad_command_lines(words, message, capsys):
    assert refused(capsys, *words).startswith(message)


@pytest.mark.parametrize("flag", ["--log_dir", "--weights_path", "--resume", "--slide_root", "--valid_slide_format"])
def test_an_empty_value_is_no_value(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    # A variable of a job script that is not set: --log_dir "$OUT" was the working directory.
    for empty in ("", " "):
        said = refused(capsys, *DATA, flag, empty)
        assert said == f"argument {flag}: the value is empty; give one, or omit the option"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--norm", "group"), "--stream: --norm group needs all px of a patch at once; use --norm batch"),
        (("--sync_bn",), "--stream and --sync_bn: statistics are those of a rank's own patches; omit one"),
        (("--recompute", "fine"), "--stream computes all tiles again by itself; omit --recompute fine"),
    ],
)
def test_what_a_streamed_network_cannot_be(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert train_options([*DATA, "--stream", "1024"]).network.stream == 1024
    assert refused(capsys, *DATA, "--stream", "1024", *words) == said
