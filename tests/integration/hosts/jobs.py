"""run_train.sh started on a host of netns.py, as a user who is logged in there starts it."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.integration.hosts.netns import Hosts
from tests.support.paths import ROOT
from tests.support.tiny import environment

RUN_TRAIN = str(ROOT / "run_train.sh")
ALLREDUCE = str(ROOT / "tests" / "integration" / "hosts" / "allreduce.py")


@dataclass
class Job:
    """A job that runs, or ran.

    Args:
        hosts: where.
        process: the launcher.
        output: file with all that was printed.
    """

    hosts: Hosts
    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = 240) -> str:
        """What it printed; it must end by itself with 0 and leave nothing behind."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.hosts.jobs()}\n{self.said()[-4000:]}") from None
        assert code == 0, self.said()[-4000:]
        # orted and ssh may still be on their way out when mpirun has gone.
        assert self.all_gone_within(10), self.hosts.jobs()
        return self.said()

    def all_gone_within(self, seconds: float) -> bool:
        """Whether no process of the job is left on any host after at most so long."""
        begin = time.monotonic()
        while self.hosts.jobs():
            if time.monotonic() - begin > seconds:
                return False
            time.sleep(0.2)
        return True

    def wait_for(self, text: str, timeout: float = 120, times: int = 1) -> None:
        """Until it has printed this text that many times."""
        begin = time.monotonic()
        while self.said().count(text) < times:
            assert self.process.poll() is None, self.said()[-4000:]
            assert time.monotonic() - begin < timeout, self.said()[-4000:]
            time.sleep(0.2)

    def ask_to_leave(self) -> None:
        """SIGTERM to the launcher: run_train.sh hands it on."""
        (script,) = [pid for pid, line in self.hosts.jobs().items() if line.startswith(f"bash {RUN_TRAIN}")]
        os.kill(script, signal.SIGTERM)


def start(hosts: Hosts, output: Path, script: str, words: list[str], **given: str) -> Job:
    """run_train.sh on the first host, with one rank on each."""
    # One thread: with more, the order of sums would hang on how many ranks share a machine.
    settings = {"HOSTS": ",".join(f"{name}:1" for name in hosts.names), "OMP_NUM_THREADS": "1"} | given
    process = hosts.start(hosts.names[0], [RUN_TRAIN, *words], environment(SCRIPT=script, **settings), output)
    return Job(hosts, process, output)


def metrics(log_dir: Path) -> list[tuple[str, dict[str, float]]]:
    """Kind and numbers of each row of metrics.jsonl, without what the clock decides."""
    rows = [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = ("seconds", "images_per_s", "input_wait")
    return [(row.pop("kind"), {name: row[name] for name in row if name not in timed}) for row in rows]


def weights(log_dir: Path) -> dict[str, np.ndarray]:
    """Every array of the final checkpoint."""
    with np.load(log_dir / "checkpoints" / "final.npz") as file:
        return {name: file[name] for name in file.files if file[name].dtype.kind == "f"}
