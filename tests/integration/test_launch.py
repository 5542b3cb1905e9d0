"""The launches, for real: none, mpirun, mpiexec.hydra, horovodrun; a tiny training each. And a signal to the script.

All train a network of two convolutions (small_train.py); test_end_to_end.py launches EfficientDet.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.stub_launchers import heed_interrupts
from tests.support.tiny import SMALL, environment, run_train

pytestmark = pytest.mark.xdist_group("launch")


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's slides: train/ and val/ with images and annotations."""
    out = tmp_path_factory.mktemp("slides")
    subprocess.run([sys.executable, "-m", "slides.synthetic", "--out", str(out)], cwd=ROOT, check=True, timeout=300)
    return out


def arguments(slides: Path, log_dir: Path, batch: int, images: int = 8) -> list[str]:
    words = f"--img_size 128 --num_steps {images} --batch_size {batch} --val_patches 4 --validate_every {images}"
    words += f" --log_every 4 --seed 3 --no_cuda --log_dir {log_dir} --label_format xml --valid_label_format xml"
    for prefix, part in (("", "train"), ("valid_", "val")):
        words += f" --{prefix}slide_path {slides}/{part}/images --{prefix}label_path {slides}/{part}/annotations"
    return words.split()


def train(slides: Path, log_dir: Path, batch: int, **given: str) -> tuple[str, list[dict[str, float]]]:
    """Runs the launcher; what it printed, and the lines of metrics.jsonl."""
    done = run_train(*arguments(slides, log_dir, batch), timeout=600, **given)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return done.stdout, [json.loads(line) for line in lines]


def check_trained(said: str, metrics: list[dict[str, float]], ranks: int, batch: int) -> None:
    assert f"{ranks} x batch {batch} = 2 images a step" in said
    assert max(line["images"] for line in metrics) == 8


def test_no_launcher(slides: Path, tmp_path: Path) -> None:
    check_trained(*train(slides, tmp_path / "log", 2, NP="1", SCRIPT=SMALL), 1, 2)


def test_mpirun(slides: Path, tmp_path: Path, open_mpi: dict[str, str]) -> None:
    check_trained(*train(slides, tmp_path / "log", 1, NP="2", SCRIPT=SMALL, **open_mpi), 2, 1)


DEVICES = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from parallel import job
from system.placement import threads_per_rank

def story(ranks):
    sizes = ranks.comm.gather(1)  # the first message between ranks starts TensorFlow
    said = ranks.use_devices()
    import tensorflow as tf
    threading = tf.config.threading
    expected = threads_per_rank(len(sizes))
    assert threading.get_intra_op_parallelism_threads() == expected, threading.get_intra_op_parallelism_threads()
    assert threading.get_inter_op_parallelism_threads() == 2
    assert said.startswith(f"{{expected}} CPU thread")
    return 7

sys.exit(job.run(story, job.Settings(no_cuda=True)))
"""


def test_threads_are_set_before_the_first_message_between_ranks(open_mpi: dict[str, str]) -> None:
    """As mpirun starts train.py by hand: the program alone says how many threads there are."""
    unset = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    env = {name: value for name, value in environment().items() if name not in unset}
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2"]
    done = subprocess.run(
        [*command, sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 7, done.stdout[-2000:] + done.stderr[-2000:]


def test_horovodrun(slides: Path, tmp_path: Path) -> None:
    check_trained(*train(slides, tmp_path / "log", 1, NP="2", LAUNCHER="horovodrun", SCRIPT=SMALL), 2, 1)


def test_hydra(slides: Path, tmp_path: Path, mpich: dict[str, str]) -> None:
    check_trained(*train(slides, tmp_path / "log", 1, NP="2", SCRIPT=SMALL, **mpich), 2, 1)


def ranks_of(log_dir: Path) -> list[int]:
    """Processes of this test's training; its log folder is in every rank's command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(log_dir) in command and any(word.endswith("train.py") for word in command):
            found.append(process.pid)
    return found


@pytest.mark.kind("signal to a run")
@pytest.mark.parametrize(
    ("number", "whole_group", "launcher"),
    [
        (signal.SIGTERM, False, "mpirun"),
        (signal.SIGINT, True, "mpirun"),
        pytest.param(signal.SIGHUP, True, "mpirun", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, "horovodrun", marks=pytest.mark.slow),
    ],
)
def test_a_signal_makes_every_rank_leave_with_a_checkpoint(
    slides: Path, tmp_path: Path, number: signal.Signals, whole_group: bool, launcher: str
) -> None:
    """To the script, or to its process group, as a terminal and `timeout` send it."""
    log_dir = tmp_path / "log"
    process = subprocess.Popen(
        [str(ROOT / "run_train.sh"), *arguments(slides, log_dir, 1, images=1_000_000)],
        env=environment(NP="2", SCRIPT=SMALL, LAUNCHER=launcher),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  # no threads here
        start_new_session=True,
    )
    try:
        begin = time.monotonic()
        metrics = log_dir / "metrics.jsonl"
        while not metrics.exists() or not metrics.read_text(encoding="utf-8"):
            assert process.poll() is None, "ended by itself"
            assert time.monotonic() - begin < 180, "no step within 180 s"
            time.sleep(0.1)
        # The launcher's command line holds the same words, so it counts too: two ranks and it.
        assert len(ranks_of(log_dir)) >= 3
        (os.killpg if whole_group else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, err
        assert "preempted   SIGUSR1 at image" in out.splitlines()[-1] or launcher == "horovodrun", out[-500:]
        assert list((log_dir / "checkpoints").glob("images-*.npz"))
        for banner in ("non-zero", "Forwarding signal", "Traceback"):
            assert banner not in out + err
        begin = time.monotonic()
        while ranks_of(log_dir):
            assert time.monotonic() - begin < 30, "ranks outlived their launcher"
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.kind("closed output")
@pytest.mark.parametrize("launcher", ["none", pytest.param("mpirun", marks=pytest.mark.slow)])
def test_nobody_to_read_ends_no_run(slides: Path, tmp_path: Path, launcher: str) -> None:
    process = subprocess.Popen(
        [str(ROOT / "run_train.sh"), *arguments(slides, tmp_path / "log", 1, images=200)],
        env=environment(NP="1" if launcher == "none" else "2", SCRIPT=SMALL, LAUNCHER=launcher),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    while not process.stdout.readline().startswith("train "):
        assert process.poll() is None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "log" / "final.keras").exists()
