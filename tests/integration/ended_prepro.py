"""run_prepro.sh that sends itself a signal as soon as a step has finished its first slide.

python tests/integration/ended_prepro.py STEP SIGNAL ARGUMENT...
"""

import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from preprocessing import executors
from preprocessing.__main__ import main

Run = Callable[..., Generator[executors.TaskResult, None, None]]


def ended_in(step: str, number: int, run: Run) -> Run:
    """The method `run` of an executor, with the signal before the first result of this step."""

    def until_first(self, function, tasks: Sequence[executors.Task]) -> Generator[executors.TaskResult, None, None]:
        for result in run(self, function, tasks):
            if tasks[0][0].name == step:
                os.kill(os.getpid(), number)
            yield result

    return until_first


if __name__ == "__main__":
    for kind in (executors.Serial, executors.Processes):
        kind.run = ended_in(sys.argv[1], int(sys.argv[2]), kind.run)
    sys.exit(main(sys.argv[3:]))
