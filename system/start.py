"""What every program imports first: whether this Python has the packages, and settings that others left for Keras.

Otherwise a program started with the system's Python, or with packages of another Python in PYTHONPATH, would end in a
traceback that names neither the cause nor the cure. `KERAS_BACKEND` and `~/.keras/keras.json`, written for other
projects, would change the networks. Then the standard streams, and signals that come before a program listens to them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from system.output import endure

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": preempted
ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 10), (3, 12))
# Of requirements.txt, by the names under which they are imported.
NEEDED = ("numpy", "scipy", "cv2", "PIL", "tifffile", "lxml", "shapely", "psutil", "tqdm", "tensorflow", "keras")
# Importing these takes seconds, and prints.
_SLOW = ("tensorflow", "keras")


def fault(needed: Sequence[str] = NEEDED, version: tuple[int, int] = sys.version_info[:2]) -> str:
    """What is wrong and what to do, in one line; empty where everything is there."""
    made = (ROOT / ".venv" / "bin" / "activate").exists()
    cure = f"source {ROOT}/.venv/bin/activate" if made else f"run {ROOT}/setup_env.sh"
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        return f"{sys.executable} is Python {version[0]}.{version[1]}, but 3.10 to 3.12 are supported: {cure}"
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}: {cure}"
    return next((found for found in map(_foreign, needed) if found), "")


def _foreign(name: str) -> str:
    """Why a package that PYTHONPATH puts before the installed one cannot be imported; empty if it can."""
    spec = find_spec(name)
    folders = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    at = str(spec.origin) if spec is not None else ""
    if name in _SLOW or not any(at.startswith(folder + os.sep) for folder in folders):
        return ""
    # In a process of its own: a library of another Python may crash.
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"{name} from PYTHONPATH, {at}, does not work in {sys.executable} ({why}): unset PYTHONPATH"


def require() -> None:
    """End the program with one line where a package is missing or hidden."""
    found = fault()
    if found:
        sys.exit(f"{Path(sys.argv[0]).name or 'widefov'}: error: {found}")


def heed_requests() -> None:
    """SIGUSR1 asks a program to stop (`parallel.preemption`); before it has begun, there is nothing to save.

    SIGTERM, SIGINT and SIGHUP end it by themselves then, if a launcher has not left them blocked.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _leave)
    numbers = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    line = f"{Path(sys.argv[0]).name}: {signal.Signals(number).name} before the first step: nothing was to be saved\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(EXIT_CODE)


def settle_keras() -> None:
    """Keras runs on TensorFlow with its own defaults; it reads these variables when it is imported."""
    # A folder that cannot exist: then it reads no keras.json and writes none, which a read-only home could not take.
    os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": "/dev/null/keras"}


endure()
heed_requests()
require()
settle_keras()
