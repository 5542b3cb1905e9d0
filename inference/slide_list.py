"""Which slides are to be predicted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"


def listed(paths: Sequence[Path], find: Callable[[Path], list[tuple[str, Path]]]) -> list[tuple[str, Path]]:
    """Ids and files of the slides that were asked for.

    Args:
        paths: files, folders, or `.txt` files with one of these in a line; relative ones are of the list's folder.
        find: the slides of a file or folder.

    Raises:
        ValueError: none, or two of one id.
    """
    found: dict[str, Path] = {}
    for path in paths:
        is_list = path.suffix.lower() == ".txt"
        for one in _lines(path) if is_list else [path]:
            for slide_id, slide_path in find(one):
                known = found.setdefault(slide_id, slide_path)
                if known.resolve() != slide_path.resolve():
                    raise ValueError(f"two slides are called {slide_id}: {known} and {slide_path}; rename one of them")
    if not found:
        raise ValueError(f"no slides in {', '.join(map(str, paths))}")
    return sorted(found.items())


def _lines(path: Path) -> list[Path]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [path.parent / line for line in lines if line and not line.startswith("#")]


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder and their names."""
    total = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            total.update(str(part.relative_to(path)).encode())
            with part.open("rb") as file:
                while block := file.read(2**20):
                    total.update(block)
    return total.hexdigest()


def done_before(folder: Path, said: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether a slide was predicted before in the same way.

    Args:
        folder: of its results.
        said: options that decide the result.
        overwrite: whether results of other options may be replaced.

    Raises:
        ValueError: it was predicted with other options, or the folder is not of this program.
    """
    if not folder.exists():
        return False
    try:
        was = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        was = None
    if was == said:
        return True
    if overwrite:
        return False
    if was is None:
        raise ValueError(f"{folder} holds no prediction of this program; choose another --out, or --overwrite")
    changed = [name for name in said if was.get(name) != said[name]]
    raise ValueError(f"{folder} was predicted with other options ({', '.join(changed)}): another --out, or --overwrite")
