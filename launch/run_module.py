"""Runs a module of ours as `python -m` does, from any folder: python launch/run_module.py MODULE ARGUMENT...

`python -m` looks for modules in the caller's folder first: an `options.py` or `models/` there would be taken for ours.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
