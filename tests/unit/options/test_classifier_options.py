"""The options of train_classifier.py: what follows from them, what cannot be, and flags of other programs."""

from pathlib import Path

import pytest

from options.fields import as_json, free_options, stream_options
from options.other_flags import REPLACED
from options.parser import OptionError
from options.train_classifier import ClassifierOptions, classifier_options

DATA = ["--train_csv", "train.csv", "--data_dir", "images"]


def options(*words: str, data: list[str] = DATA) -> ClassifierOptions:
    return classifier_options([*data, *words], raises=True)


def refused(*words: str, data: list[str] = DATA) -> str:
    with pytest.raises(OptionError) as error:
        options(*words, data=data)
    return str(error.value)


def test_defaults_are_those_of_whole_slide_pipelines():
    found = as_json(options())
    wanted = {
        "image_size": 16384, "epochs": 50, "lr": 1e-4, "batch_size": 16, "accumulate_batch": 1, "optimizer": "sgd",
        "momentum": 0.9, "weight_decay": 0.0, "model": "resnet34", "pool": "max", "validation_interval": 1,
        "train_streaming_layers": True, "mixed_precision": "float32", "weight_averaging": None, "resume": None,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_batches_are_of_all_ranks_and_passes():
    assert options("--batch_size", "4", "--accumulate_batch", "3").training.joint_batch == 12


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], None),
        (["--multilabel"], "multilabel"),
        (["--regression"], "regression"),
        (["--target_kind", "classes"], "classes"),
    ],
)
def test_kinds_of_labels(words, kind):
    assert options(*words).labels.target_kind == kind


def test_images_of_training_or_epochs():
    assert options("--num_steps", "40").training.epochs is None
    assert options("--epochs", "3").training.epochs == 3
    assert refused("--epochs", "3", "--num_steps", "40") == (
        "--epochs and --num_steps are both the length of the training: omit one"
    )


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        (["--resume_epoch", "7", "--log_dir", "runs/a"], "runs/a/checkpoints/epoch-0007.npz"),
        (["--resume_name", "runs/b", "--log_dir", "runs/a"], "runs/b"),
        (["--resume_name", "runs/b", "--resume_epoch", "2"], "runs/b/checkpoints/epoch-0002.npz"),
        (["--resume", "--log_dir", "runs/a"], "auto"),
    ],
)
def test_a_name_and_an_epoch_are_a_checkpoint(words, resume):
    assert options(*words).run.resume == resume


def test_a_run_beside_this_one_is_found_by_its_name(tmp_path):
    (tmp_path / "b").mkdir()
    found = options("--resume_name", "b", "--log_dir", str(tmp_path / "a"))
    assert found.run.resume == str(tmp_path / "b")


def test_averaging_with_and_without_a_number():
    assert options("--weight_averaging").training.weight_averaging == 0.99
    assert options("--weight_averaging", "0.5").training.weight_averaging == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--multilabel", "--regression"], "labels are of one kind, multilabel and regression are given; omit one"),
        (
            ["--data_tar", "a.tar"],
            "images come from one of --data_dir, --data_tar and --slide_path: --data_dir and --data_tar",
        ),
        (
            ["--resolution", "2"],
            "--resolution is that of --slide_path; images have the one they were written with: omit it",
        ),
        (["--extract_features"], "--extract_features and --save_path FILE.tar must be given together"),
        (
            ["--train_with_features"],
            "--train_with_features reads the features of --extract_features: give --data_tar FILE.tar",
        ),
        (["--only_eval"], "--only_eval needs a trained network: --resume, --resume_name or --train_from_transfer"),
        (["--resume"], "--resume auto looks for checkpoints in --log_dir, which is not given"),
        (["--resume_epoch", "3"], "--resume_epoch needs --log_dir or --resume_name, the run that it is an epoch of"),
        (
            ["--train_from_transfer", "a", "--weights_path", "b"],
            "--train_from_transfer and --weights_path are both where weights come from: omit one",
        ),
        (
            ["--width", "8", "--weights_path", "w"],
            "--width makes a thinner ResNet, which --weights_path is not of: omit one of the two",
        ),
        (["--class_weights", "0", "0"], "--class_weights are all 0: nothing would be learned"),
        (["--momentum", "0.5", "--optimizer", "adam"], "--momentum applies to sgd and lars; --optimizer adam has none"),
        (["--saliency", "gradient"], "--saliency writes into --log_dir, which is not given"),
        (
            ["--weighted_sampler", "--regression"],
            "--weighted_sampler balances classes or answers; numbers have none: omit it",
        ),
    ],
)
def test_what_cannot_be_is_one_line(words, message):
    assert refused(*words) == message


def test_images_and_labels_are_needed():
    assert refused(data=["--train_csv", "a.csv"]) == (
        "images come from one of --data_dir, --data_tar and --slide_path: none is given"
    )
    assert refused(data=["--data_dir", "a"]) == "no labels: give --train_csv (and --val_csv, or --val_split of it)"
    assert refused(data=["--train_csv", "a.csv", "--slide_path", "s"]) == (
        "--slide_path needs --resolution, um per px of what the network sees, e.g. 2"
    )


@pytest.mark.parametrize("flag", sorted(REPLACED))
def test_flags_of_other_pipelines_name_what_is_here(flag):
    message = refused(flag, "x")
    assert message == f"{flag}: {REPLACED[flag]}"
    names = {f"--{name}" for name in as_json(options())} | {f"--no-{name}" for name in as_json(options())}
    mentioned = {word.strip(".,;:") for word in REPLACED[flag].split() if word.startswith("--")}
    assert mentioned <= names


def test_an_evaluation_needs_no_labels_to_train_on():
    found = options("--only_eval", "--train_from_transfer", "run", data=["--val_csv", "v.csv", "--data_dir", "i"])
    assert found.phases.transfer_from(found.run.resume, found.run.log_dir) == Path("run")
    again = options("--only_eval", "--resume", "--log_dir", "run", data=["--val_csv", "v.csv", "--data_dir", "i"])
    assert again.phases.transfer_from(again.run.resume, again.run.log_dir) == Path("run")


def test_what_decides_the_views_is_of_the_stream_and_places_are_free():
    stream, free = stream_options(options()), free_options(options())
    assert {"image_size", "augment", "color", "seed", "weighted_sampler", "val_split", "resolution"} <= set(stream)
    assert {"log_dir", "resume", "read_ahead", "stage_dir"} <= free
    assert not set(stream) & free
