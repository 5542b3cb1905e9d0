"""An elastic job on this machine: a rank joins, a rank goes; counter and stream go on.

Hosts that join and leave: tests/integration/hosts.
"""

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.tiny import SMALL, TinySet, environment, train_here


def until(true: Callable[[], bool], what: str, limit_s: float = 150) -> None:
    """Wait for something."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.mark.kind("elastic job")
def test_ranks_come_and_go(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    hosts, script, log = tmp_path / "hosts", tmp_path / "discover.sh", tmp_path / "log.txt"
    script.write_text(f"#!/bin/sh\ncat {hosts}\n", encoding="ascii")
    script.chmod(0o755)
    hosts.write_text("localhost:1\n", encoding="ascii")
    words = tiny.arguments(
        "--elastic", "--lr_scaling", "none", "--log_every", "4", "--validate_every", "1000", "--seed", "2",
        num_steps="100000",
    )  # fmt: skip
    extra = f"--gloo --min-np 1 --max-np 2 --network-interface lo --host-discovery-script {script}"
    env = environment(NP="1", OMP_NUM_THREADS="1", LAUNCHER="horovodrun", LAUNCHER_ARGS=extra, SCRIPT=SMALL)

    def said(words: str) -> int:
        return log.read_text(encoding="utf-8", errors="replace").count(words)

    with log.open("wb") as out:
        job = subprocess.Popen(
            [str(ROOT / "run_train.sh"), *words],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: said("train       ") >= 1, "no step of one rank")
        hosts.write_text("localhost:2\n", encoding="ascii")
        until(lambda: said("ranks       2 x batch 1") == 1, "nobody joined")
        lines = said("loss 0.")
        until(lambda: said("loss 0.") > lines + 3, "no step of two ranks")
        hosts.write_text("localhost:1\n", encoding="ascii")
        until(lambda: said("ranks       1 x batch 1") == 2, "nobody left")
        lines = said("loss 0.")
        until(lambda: said("loss 0.") > lines + 3, "no step after that")
        # horovodrun ends its ranks; its exit code does not say how.
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=60)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert said("preempted   hosts changed at image") == 2
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    resumed = [line for line in lines if "resume      /" in line]
    preempted = [line for line in lines if "preempted   hosts changed" in line]
    counters = [
        [line.split(" at image ")[1].split(" ")[0].strip(",") for line in part] for part in (resumed, preempted)
    ]
    assert len(counters[0]) == 2
    assert counters[0] == counters[1]
    # Every index once, on any rank.
    indices = []
    for path in sorted((tiny.log_dir / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            indices += [int(row["index"]) for row in csv.DictReader(file)]
    assert sorted(indices) == list(range(len(indices)))
    assert len(indices) > int(counters[0][1])


@pytest.mark.skipif("HOROVOD_ELASTIC" in os.environ, reason="this is an elastic job itself")
def test_elastic_needs_its_launcher(tmp_path: Path) -> None:
    done = train_here(TinySet(tmp_path).arguments("--elastic"))
    assert done.returncode == 2
    assert "--elastic needs an elastic launcher: horovodrun --gloo" in done.stderr
