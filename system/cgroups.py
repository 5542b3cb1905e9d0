"""Limits by control groups (cgroups), with which containers and batch systems confine a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


def settings(controller: str, names: Sequence[str]) -> list[list[str]]:
    """Read settings of the control groups of this process, innermost first.

    Args:
        controller: `cpu`, `cpuset` or `memory`; version 1 has a tree of folders for each.
        names: files that belong together, e.g. those of a quota and its period.

    Returns:
        For every group (of version 1 or 2) that has all the files, their contents with single blanks.
    """
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if controller not in controllers.split(",") and number != "0":
            continue
        group = Path(place.lstrip("/"))
        # a container sees its own group as the root, but the path in this file is the host's
        for folder in dict.fromkeys([group, *group.parents]):
            for root in (ROOT, ROOT / controller):
                files = [root / folder / name for name in names]
                if all(file.is_file() for file in files):
                    found.append([" ".join(file.read_text(encoding="ascii").split()) for file in files])
    return found


def least(controller: str, names: Sequence[str]) -> float:
    """The smallest whole number in files of these names; infinite if no group has one."""
    values = [words[0] for name in names for words in settings(controller, [name])]
    return min((float(value) for value in values if value.isdigit()), default=float("inf"))
