"""A job of two ranks that meets a fault, and the one that resumes from what it left."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.paths import ROOT
from tests.support.tiny import TinySet, environment

FAULTY = ROOT / "tests" / "integration" / "faults" / "faulty_train.py"
INTERVAL, IMAGES, AT = 4, 24, 14  # images between checkpoints, of the run, and of the fault
# A rank may have read five patches ahead (two batches, and one in each step before them): at AT these could be all that
# it still needs, and a slide cut short would not be read again.
AT_SLIDE = 6
STALL_S = 8
LIMIT_S = 60


@dataclass
class Outcome:
    """What became of a job with a fault.

    Attributes:
        code: exit code of run_train.sh.
        seconds: from the fault to the end of the last process.
        text: all that was printed, bars left out.
        left: names of files that should not be there, and command lines of processes that should not.
        resumed_at: image at which the next job resumed.
        lost: images that were trained before the fault and had to be trained again.
        losses: of the log lines of the whole run, by image.
    """

    code: int
    seconds: float
    text: str
    left: list[str]
    resumed_at: int = -1
    lost: int = -1
    losses: dict[int, float] | None = None


class Job:
    """Two ranks of the small network on slides of their own.

    Args:
        folder: an empty folder.
        launcher: of run_train.sh; mpirun, hydra or horovodrun.
        env: more for the environment.
    """

    def __init__(self, folder: Path, launcher: str = "mpirun", **env: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tiny = TinySet(folder)
        for rank in (0, 1):
            shutil.copytree(folder / "train", folder / f"rank{rank}")
        self.log_dir = self.tiny.log_dir
        self._mark = folder / "mark"
        self._env = {"NP": "2", "OMP_NUM_THREADS": "1", "LAUNCHER": launcher, "SCRIPT": str(FAULTY)} | env

    def arguments(self, stall_s: int = 60) -> list[str]:
        """The options of the run."""
        # No tiles kept: a slide that is cut short shall be noticed.
        more = (
            "--tile_cache",
            "0",
            "--resume",
            "auto",
            "--stall_timeout",
            str(stall_s),
            "--hard_mining",
            "--seed",
            "5",
            "--no-qc",
        )
        counts = {"log_every": "2", "validate_every": "8", "checkpoint_every": str(INTERVAL), "num_steps": str(IMAGES)}
        slides = str(self.tiny.folder / "rank{rank}" / "images")
        return self.tiny.arguments(*more, "--warmup", "4", **counts, slide_path=slides)

    def start(self, fault: str = "", **env: str) -> subprocess.Popen[str]:
        """The job, running."""
        self._mark.unlink(missing_ok=True)
        self._log = (self.tiny.folder / "log.txt").open("w+", encoding="utf-8", errors="replace")
        # Only where silence is the fault: 8 s are little for a rank that loads TensorFlow on a busy machine.
        stall_s = STALL_S if fault.startswith("stop") else 60
        given = {"FAULT": fault, "FAULT_MARK": str(self._mark)} if fault else {}
        return subprocess.Popen(
            [str(ROOT / "run_train.sh"), *self.arguments(stall_s)], env=environment(**self._env, **given, **env),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str], since: float | None = None, limit_s: float = 240) -> Outcome:
        """Wait for the end of all its processes.

        Args:
            process: what `start` returned.
            since: time of the fault; None: the time in the fault's own mark.
            limit_s: for the whole, s.
        """
        until = time.time() + limit_s
        try:
            process.wait(timeout=limit_s)
            while self.processes() and time.time() < until:
                time.sleep(0.1)
        finally:
            ended = time.time()
            left = [" ".join(p.cmdline())[:200] for p in self.processes()]
            for other in self.processes():
                other.kill()
            if process.poll() is None:
                process.kill()
        begin = since or (float(self._mark.read_text(encoding="ascii")) if self._mark.exists() else ended)
        self._log.seek(0)
        lines = [line.rsplit("\r", 1)[-1] for line in self._log.read().split("\n")]
        self._log.close()
        # The lock names a run that was killed, until the next one.
        left += [str(p.relative_to(self.log_dir)) for p in self.log_dir.rglob(".*") if p.name != ".lock"]
        return Outcome(process.returncode, ended - begin, "\n".join(lines), left)

    def processes(self) -> list[psutil.Process]:
        """All processes with this job's folder in their command line: script, launcher, daemons, ranks."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            arguments = process.info["cmdline"] or []
            if any(str(self.tiny.folder) in argument for argument in arguments) and process.info["status"] != "zombie":
                found.append(process)
        return found

    def with_fault(self, fault: str) -> Outcome:
        """Run into the fault, then resume to the end."""
        outcome = self.finish(self.start(fault))
        return self.resumed(outcome)

    def resumed(self, outcome: Outcome) -> Outcome:
        """Resume, run to the end, and complete what is known of the outcome."""
        trained = max([int(row["images"]) for row in self.rows()] or [0])
        after = self.finish(self.start())
        assert after.code == 0, after.text[-3000:]
        lines = [line for line in after.text.split("\n") if line.startswith("resume ") and " at image " in line]
        outcome.resumed_at = int(lines[-1].split(" at image ")[1].split(",")[0]) if lines else 0
        outcome.lost = max(0, trained - outcome.resumed_at)
        outcome.losses = self.losses()
        return outcome

    def repair_slides(self) -> None:
        """Give rank 1 its slides back."""
        for path in (self.tiny.folder / "rank0" / "images").iterdir():
            shutil.copy(path, self.tiny.folder / "rank1" / "images")

    def damage_newest(self) -> None:
        """Cut the newest checkpoint short."""
        newest = max((self.log_dir / "checkpoints").glob("images-*.npz"))
        newest.write_bytes(newest.read_bytes()[:-100])

    def rows(self) -> list[dict[str, float]]:
        """metrics.jsonl."""
        path = self.log_dir / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def losses(self) -> dict[int, float]:
        """Training loss by image counter."""
        return {int(row["images"]): row["loss"] for row in self.rows() if row["kind"] == "train"}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at a folder (tmpfs); root only."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def repair_disk(folder: Path) -> None:
    """Make room again, and let checkpoints be written."""
    checkpoints = folder / "checkpoints"
    if checkpoints.is_mount():
        subprocess.run(["umount", str(checkpoints)], check=True)
    (folder / "filler").unlink(missing_ok=True)
