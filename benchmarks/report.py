"""Results as JSON that say where they come from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "simplejpeg", "isal", "pyvips")


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
