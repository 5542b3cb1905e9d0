"""Where and with what a run was started: `environment.json` in its `--log_dir`, one entry for every start."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from system.atomic_files import write_bytes
from system.version import __version__

NAME = "environment.json"
PACKAGES = ("tensorflow", "keras", "horovod", "numpy", "opencv-python-headless", "openslide-python")


def describe(ranks: int, devices: str, images: int) -> dict[str, Any]:
    """Return what this process runs on, JSON types.

    Args:
        ranks: number of ranks.
        devices: what they compute on.
        images: image counter at the start.
    """
    installed = ((name, _version(name)) for name in PACKAGES)
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "images": images,
        "command": shlex.join(sys.argv),
        "host": socket.gethostname(),
        "ranks": ranks,
        "devices": devices,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "widefov": __version__,
        "python": platform.python_version(),
        "packages": [f"{name} {version}" for name, version in installed if version],
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def add_start(folder: Path, start: dict[str, Any]) -> None:
    """Add a start to the folder's list; one rank only.

    Raises:
        OSError: it cannot be written.
    """
    starts = [*read_starts(folder), start]
    write_bytes(folder / NAME, (json.dumps({"starts": starts}, indent=1) + "\n").encode("ascii"))


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the starts of a run, oldest first; nothing where the file is missing or damaged."""
    try:
        starts = json.loads((folder / NAME).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
