"""Prepare a data set once, before training: check, tissue, patches, manifest. `./run_prepro.sh --help` starts.

The steps stand in `preprocessing/command.py` in their order; each is also a program: `python -m preprocessing.STEP`.
"""

from __future__ import annotations

import sys

from preprocessing.command import main

if __name__ == "__main__":
    sys.exit(main())
