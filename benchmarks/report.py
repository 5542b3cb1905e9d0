"""Results as JSON that say where they come from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "simplejpeg", "imagecodecs", "isal", "pyvips")


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result with commit, command, versions and machine.

    Args:
        path: JSON file.
        result: JSON types, by name.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    origin = {
        "commit": commit or "unknown: no git",
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    path.write_text(json.dumps(origin | result, indent=1) + "\n", encoding="utf-8")


def peak_resident_bytes() -> int:
    """The most memory this process ever had resident (Linux' VmHWM).

    `getrusage` would not do: its maximum starts at that of the process that called `exec`.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024
