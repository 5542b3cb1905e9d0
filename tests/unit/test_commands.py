"""Every public command: it starts, explains itself, and does not load TensorFlow for that."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from preprocessing.steps import NAMES
from tests.support.paths import ROOT
from tests.support.sources import our_sources

PROGRAMS = ("train.py", "train_classifier.py", "predict.py", "evaluate.py", "export.py", "tune.py")
MODULES = (
    "preprocessing",
    *(f"preprocessing.{step}" for step in NAMES),
    "preprocessing.cut_labeled",
    "preprocessing.mask_to_xml",
    "preprocessing.pack",
    "samplers.replay",
    "slides.synthetic",
    "slides.context",
    "slides.synthetic.fine",
    "streaming.plan",
    "streaming.statistics",
    "preprocessing.folds",
    "training.report",
    "classification.report",
    "doctor",
)
SCRIPTS = ("run_train.sh", "run_prepro.sh", "run_tests.sh", "setup_env.sh", "check.sh")
COMMANDS = tuple(dict.fromkeys((*PROGRAMS, *MODULES)))
# Of each program one that is its own, as it stands in the help.
SOME = {
    "train.py": ("--batch_tumor_ratio",),
    "train_classifier.py": ("--train_from_transfer", "--weighted_sampler"),
    "predict.py": ("--overlap",),
    "evaluate.py": ("--froc_threshold",),
    "export.py": ("--input_range LOW HIGH",),
    "preprocessing.trim_tissue": ("--trim_um_px",),
    "preprocessing.pack": ("--shard_gb",),
}
# Started by other programs, or tools of this repository.
INTERNAL = ("tests/", "benchmarks/", "launch/", ".ci/")


@pytest.fixture(scope="module")
def helps() -> dict[str, dict]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.help_of", *COMMANDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str, helps: dict[str, dict]) -> None:
    found = helps[command]
    assert (found["code"], found["errors"], found["heavy"]) == (0, "", [])
    assert found["text"].startswith("usage: ")
    assert re.search(r"^  -h, --help", found["text"], re.MULTILINE)
    for option in SOME.get(command, ()):
        assert option in found["text"]


def environment() -> dict[str, str]:
    """So that the scripts use this Python and set nothing up."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"WIDEFOV_ENV": "active", "PATH": path}


@pytest.mark.parametrize(
    ("words", "first"),
    [(name, None) for name in SCRIPTS] + [("run_train.sh --doctor", "usage: ")],
)
def test_a_script_explains_itself(words: str, first: str | None) -> None:
    name, *more = words.split()
    done = subprocess.run(
        [str(ROOT / name), *more, "--help"],
        cwd="/", env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 4
    if first is not None:
        assert done.stdout.startswith(first)


def test_every_program_is_in_the_list() -> None:
    found = set()
    for name, text in our_sources().items():
        path = PurePosixPath(name)
        if name.startswith(INTERNAL):
            continue
        if path.name == "__main__.py":
            found.add(".".join(path.parent.parts))
        elif re.search(r"^if __name__ == ", text, re.MULTILINE):
            found.add(name if "/" not in name else ".".join(path.with_suffix("").parts))
    assert found == set(COMMANDS)
