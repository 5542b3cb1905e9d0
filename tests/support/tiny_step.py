"""A step that copies what stands in a slide's file; what is in it may also make it fail, wait or die."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cohorts.pairing import Case
from preprocessing.executors import on_all_ranks
from preprocessing.runner import DONE, Step, run_step
from preprocessing.store import StepResult
from system.atomic_files import written_folder
from system.folder_lock import FolderLock


@dataclass(frozen=True)
class Options:
    shout: bool = False
    gate: str = ""


def make(case: Case, out: Path, options: Options) -> StepResult:
    text = case.slide_path.read_text(encoding="utf-8")
    with written_folder(out / "tiny" / case.slide_id) as part:
        (part / "first.txt").write_text("first", encoding="utf-8")
        # Held up until the test lets this slide pass, by a file of its name.
        until = time.monotonic() + 120
        while options.gate and not Path(options.gate, case.slide_id).exists() and time.monotonic() < until:
            time.sleep(0.01)
        if text == "bad":
            raise ValueError(f"{case.slide_path} is bad;\nrepair it")
        if text == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        (part / "second.txt").write_text(text.upper() if options.shout else text, encoding="utf-8")
    return StepResult({"length": len(text)}, (), (f"tiny/{case.slide_id}",), "of no use" if text == "fault" else "")


def step(**options: bool | str) -> Step:
    return Step("tiny", 1, make, Options(**options))


def cases_of(folder: Path) -> list[Case]:
    return [Case(path.stem, path, None) for path in sorted(folder.glob("*.txt"))]


def main() -> int:
    """tiny_step.py SLIDES OUT GATE [PROCESSES]: prints what was done; exit code 1 when a slide failed."""
    folder, out, gate = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

    def story(executor) -> int:
        with FolderLock(out):
            results = run_step(step(gate=gate), cases_of(folder), out, executor, print)
        print("on", executor.description)
        print("did", *sorted(result.slide_id for result in results if result.state == DONE), flush=True)
        return int(any(result.error for result in results))

    return on_all_ranks(story, int(sys.argv[4]) if len(sys.argv) > 4 else None)


if __name__ == "__main__":
    sys.exit(main())
