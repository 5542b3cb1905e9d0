"""The doctor as a program: `python -m doctor`, or by its path from any folder, as `run_train.sh --doctor` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # started by path: Python then searches only this folder for modules
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    import system.start  # noqa: F401  # first: it says what to do where packages are missing

    # isort: split
    from doctor.examination import main

    sys.exit(main())
