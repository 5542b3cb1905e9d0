"""The command line: defaults, what is derived, and what is refused at the door."""

from fractions import Fraction
from pathlib import Path

import pytest

from options.train import as_json, train_options

DATA = ("--slide_path", "S", "--label_path", "L")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command line is refused with."""
    with pytest.raises(SystemExit) as stopped:
        train_options(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["train.py --help lists all options"]
    return said[0].removeprefix("train.py: error: ")


def test_defaults_are_the_documented_ones():
    opts = train_options(DATA)
    names = (
        "img_size", "batch_size", "num_steps", "val_split", "no_cuda", "horovod", "fp16_allreduce", "train_centers",
        "val_centers", "hard_mining", "weights_path", "slide_format", "label_format", "valid_slide_format",
        "valid_label_format", "data_sampler", "bb_downsample", "sample_processes", "resolution", "label_map", "log_dir",
        "log_every", "validate_every", "debug", "pos_pixel_weight", "neg_pixel_weight",
    )  # fmt: skip
    assert [getattr(opts, name) for name in names] == [
        1024, 2, 50000, 0.15, False, True, False, [-1],
        [-1], False, None, "tif", "tif", "tif",
        "tif", "radboud", 7, 1, 0.25, None, None,
        128, 2048, False, 1.0, 1.0,
    ]  # fmt: skip
    assert (opts.warmup, opts.checkpoint_every) == (2500, 2048)


def test_validation_data_looks_like_training_data_unless_said_otherwise():
    opts = train_options([*DATA, "--slide_format", "svs", "--label_format", "xml"])
    assert (opts.valid_slide_format, opts.valid_label_format) == ("svs", "xml")
    opts = train_options([*DATA, "--label_format", "xml", "--valid_label_format", "tif"])
    assert (opts.label_format, opts.valid_label_format) == ("xml", "tif")
    assert train_options(["--dataset", "16", "--data_root", "D"]).label_format == "xml"


def test_debug_is_short():
    opts = train_options([*DATA, "--debug"])
    assert (opts.num_steps, opts.log_every, opts.validate_every, opts.val_patches) == (100, 20, 50, 8)
    assert opts.checkpoint_every == 50
    assert train_options([*DATA, "--debug", "--num_steps", "7"]).num_steps == 7


def test_mined_places_need_draws_without_tumour(capsys):
    mined = (*DATA, "--mine_from", "E")
    assert train_options([*mined, "--hard_mining"]).mine_from == Path("E")
    assert refused(capsys, *mined).startswith("--mine_from is for --hard_mining")
    for words in (["--data_sampler", "surf"], ["--batch_tumor_ratio", "1"]):
        assert "draws none" in refused(capsys, *mined, "--hard_mining", *words)
    words = ["--data_sampler", "surf", "--batch_tumor_ratio", "0.5"]
    assert train_options([*mined, "--hard_mining", *words]).mine_from == Path("E")


def test_words_can_come_from_a_file(tmp_path: Path):
    file = tmp_path / "a b.args"
    file.write_text('--slide_path "with blank" --label_path L  # a comment\n\n--img_size 256\n', encoding="utf-8")
    opts = train_options([f"@{file}", "--img_size", "384"])
    assert (opts.slide_path, opts.img_size) == (Path("with blank"), 384)


def test_shares_are_exact():
    assert train_options([*DATA, "--batch_tumor_ratio", "0.1"]).batch_tumor_ratio == Fraction(1, 10)
    assert train_options([*DATA, "--batch_tumor_ratio", "1/3"]).batch_tumor_ratio == Fraction(1, 3)


def test_label_map_and_skipped_groups():
    opts = train_options([*DATA, "--label_map", "_0:1", "Tumor:1", "_2:0", "none:0"])
    assert list(opts.label_map.items()) == [("_0", 1), ("tumor", 1), ("_2", 0), ("none", 0)]
    assert opts.ignore_groups == ("none",)
    # a group to skip leaves the default map, or skipping it would do nothing
    opts = train_options([*DATA, "--ignore_groups", "_1", "Necrosis"])
    assert opts.label_map == {"_0": 1, "tumor": 1, "metastases": 1, "_2": 0, "exclusion": 0, "normal": 0}
    assert opts.ignore_groups == ("_1", "necrosis")


def test_options_become_json():
    opts = train_options([*DATA, "--batch_tumor_ratio", "0.5", "--mask_values", "0:0", "7:1"])
    stored = as_json(opts)
    assert (stored["slide_path"], stored["batch_tumor_ratio"], stored["ignore_groups"]) == ("S", "1/2", ["none"])
    assert stored["mask_values"] == {0: 0, 7: 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no training data: give --slide_path and --label_path, or --dataset 16 or 17 with --data_root"),
        (("--slide_path", "S"), "no training data: give --slide_path and --label_path"),
        ((*DATA, "--valid_slide_path", "V"), "--valid_slide_path and --valid_label_path go together"),
        ((*DATA, "--dataset", "16"), "--dataset takes the place of the four path options"),
        ((*DATA, "--img_size", "1000"), "--img_size 1000: a multiple of 128 is needed, e.g. 896 or 1024"),
        ((*DATA, "--img_size", "-128"), "--img_size -128: a multiple of 128 is needed, e.g. 128 or 256"),
        ((*DATA, "--val_split", "1"), "--val_split 1: a share between 0 and 1 (both excluded) is needed"),
        ((*DATA, "--val_split", "nan"), "--val_split nan: a share between 0 and 1"),
        ((*DATA, "--resolution", "0"), "argument --resolution: 0 given, a number above 0 needed"),
        ((*DATA, "--resolution", "abc"), "argument --resolution: invalid number value: 'abc'"),
        ((*DATA, "--batch_size", "0"), "argument --batch_size: 0 given, at least 1 needed"),
        ((*DATA, "--batch_size", "1e3"), "argument --batch_size: invalid whole number value: '1e3'"),
        ((*DATA, "--seed", "4294967296"), "argument --seed: 4294967296 given, at least 0 and at most 4294967295"),
        ((*DATA, "--batch_tumor_ratio", "1.5"), "argument --batch_tumor_ratio: 1.5 given, a share between 0 and 1"),
        ((*DATA, "--label_map", "_0"), "argument --label_map: '_0' is not NAME:CLASS, e.g. _0:1"),
        ((*DATA, "--label_map", "_0:1", "_0:0"), "--label_map: group '_0' twice; name each group once"),
        ((*DATA, "--label_map", "a:1", "--ignore_groups", "A"), "--label_map: group 'a' is in --ignore_groups, too"),
        ((*DATA, "--label_map", "_0:255", "_2:0"), "--label_map: no group has a class from 1 to 254"),
        ((*DATA, "--mask_values", "300:1"), "--mask_values 300: mask values are whole numbers from 0 to 255"),
        ((*DATA, "--pos_pixel_weight", "0", "--neg_pixel_weight", "0"), "--pos_pixel_weight and --neg_pixel_weight"),
        ((*DATA, "--class_weights", "0", "0"), "--class_weights are all 0: nothing would be learnt"),
        ((*DATA, "--classes", "1"), "argument --classes: 1 given, at least 2 and at most 255 needed"),
        ((*DATA, "--label_smoothing", "1"), "argument --label_smoothing: 1 given, a share of at least 0 and below 1"),
        ((*DATA, "--focal_gamma", "3"), "--focal_gamma is for --loss focal; --loss ce has none"),
        ((*DATA, "--loss", "dice", "--label_smoothing", "0.1"), "--label_smoothing is for ce and focal"),
        ((*DATA, "--freeze_bn"), "--freeze_bn and --freeze_backbone keep what was trained before: give --weights_path"),
        ((*DATA, "--sync_bn", "--freeze_bn", "--weights_path", "w"), "--freeze_bn and --sync_bn: frozen statistics"),
        ((*DATA, "--resume"), "--resume auto looks for checkpoints in --log_dir, which is not given"),
        ((*DATA, "--img_siz", "256"), "unrecognized arguments: --img_siz 256"),
        (("@missing.args",), "[Errno 2] No such file or directory: 'missing.args'"),
    ],
)  # fmt: skip
def test_bad_command_lines(words, message, capsys):
    assert refused(capsys, *words).startswith(message)
