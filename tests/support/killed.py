"""python -m tests.support.killed PART MODULE ARGUMENT...: runs a module that kills itself while it writes PART.

SIGKILL comes as soon as PART has bytes, and at the latest before it gets its final name: a test that watches from
outside may be too late on a busy machine.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    part = Path(sys.argv[1])

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before_rename(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and os.fspath(arguments[0]) == str(part):
            die()

    def watch() -> None:
        while not (part.exists() and part.stat().st_size):
            time.sleep(0.001)
        die()

    sys.addaudithook(before_rename)
    threading.Thread(target=watch, daemon=True).start()
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
