"""Programs of a study: what they refuse is known before the first trial."""

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tuning import programs, space

TRAIN = ROOT / "train.py"
GIVEN = ("--slide_path", "slides", "--label_path", "labels")


def checked(text: str, path: Path = TRAIN, arguments: tuple[str, ...] = GIVEN) -> str:
    return programs.check(path, arguments, space.parse(text, programs.switches(path)))


def test_a_space_that_the_program_takes() -> None:
    text = "--base_lr log 1e-5 1e-2\n--loss in ce focal\n--focal_gamma 0.5 5 if --loss focal\n--qc in on off\n"
    assert checked(text) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--learning_rate 1e-5 1e-2", "train.py refuses --learning_rate 1e-05: unrecognized arguments"),
        ("--val_split 0.1 1.5", "train.py refuses --val_split 1.5: --val_split 1.5: must be above 0"),
        ("--optimizer in adam rmsprop", "train.py refuses --optimizer rmsprop: argument --optimizer: invalid choice"),
        ("--loss in ce focal\n--focal_gamma 0.5 5", "--focal_gamma applies to --loss focal"),
        ("--slide_path in a b", "--slide_path is searched, and also given behind --"),
        ("--log_dir in a b", "--log_dir: tune.py gives every trial its own"),
        ("--qc 0 1", "--qc takes no value"),
    ],
)
def test_a_space_that_it_does_not_take(text: str, message: str) -> None:
    with pytest.raises(space.SpaceError) as error:
        checked(text)
    assert message in str(error.value)


def test_options_in_files_count(tmp_path: Path) -> None:
    path = tmp_path / "my.args"
    path.write_text("--slide_path 'a b' --label_path c\n--base_lr 0.1  # mine\n")
    with pytest.raises(space.SpaceError, match="--base_lr is searched, and also given"):
        checked("--base_lr 0.1 0.2", arguments=(f"@{path}",))


def test_the_classifier_is_known() -> None:
    path = programs.find(Path("train_classifier.py"))
    arguments = ("--train_csv", "a.csv", "--data_dir", "images", "--epochs", "1")
    assert checked("--lr log 1e-5 1e-2\n--weighted_sampler in on off", path, arguments) == ""
    with pytest.raises(space.SpaceError, match=r"train_classifier\.py refuses --model resnet19"):
        checked("--model in resnet18 resnet19", path, arguments)


def test_other_programs_are_not_checked(tmp_path: Path) -> None:
    other = tmp_path / "train.py"
    other.touch()
    assert "is not a program of widefov" in checked("--anything 0 1", other)
    with pytest.raises(ValueError, match=r"no such file; give one of train\.py, train_classifier\.py"):
        programs.find(tmp_path / "absent.py")
