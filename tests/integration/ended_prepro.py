"""run_prepro.sh that sends itself a signal while a step works on its second slide, whose file is not in place yet.

python tests/integration/ended_prepro.py STEP SIGNAL ARGUMENT...

With several processes, and in steps that write only the mark of a slide, the signal comes with a result instead.
"""

import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from preprocessing import executors
from preprocessing.__main__ import main

Run = Callable[..., Generator[executors.TaskResult, None, None]]


def ended_in(step: str, number: int, run: Run, inside: bool) -> Run:
    """The method `run` of an executor, with the signal in this step."""
    move = os.replace

    def signaled(part, path) -> None:
        if ".done" not in Path(path).parts:
            os.kill(os.getpid(), number)
        move(part, path)

    def until_second(self, function, tasks: Sequence[executors.Task]) -> Generator[executors.TaskResult, None, None]:
        ours = tasks[0][0].name == step
        for done, result in enumerate(run(self, function, tasks)):
            if ours and (done == 1 or not inside):
                os.kill(os.getpid(), number)
            yield result
            if ours:
                os.replace = signaled
        os.replace = move

    return until_second


if __name__ == "__main__":
    executors.Serial.run = ended_in(sys.argv[1], int(sys.argv[2]), executors.Serial.run, inside=True)
    executors.Processes.run = ended_in(sys.argv[1], int(sys.argv[2]), executors.Processes.run, inside=False)
    sys.exit(main(sys.argv[3:]))
