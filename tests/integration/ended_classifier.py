"""train_classifier.py that is ended in the middle of a run.

python tests/integration/ended_classifier.py OPTIONS, with END="STEP SIGNAL": before that step (from 1) of this process,
rank 1 of several, or the only one, gets the signal of this number. Everything else is real.
"""

import os
import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import train_classifier
from parallel.launchers import launched_rank, launched_size


def main() -> int:
    """The program, with an end."""
    step, number = map(int, os.environ["END"].split())
    from classification.step import StreamedStep

    plain, calls = StreamedStep.__call__, [0]

    def ended(self, *args, **more):
        calls[0] += 1
        if calls[0] == step and launched_rank() == launched_size() - 1:
            os.kill(os.getpid(), number)
        return plain(self, *args, **more)

    with patch.object(StreamedStep, "__call__", ended):
        return train_classifier.main()


if __name__ == "__main__":
    sys.exit(main())
