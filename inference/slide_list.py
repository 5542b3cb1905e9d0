"""The slides to predict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"


def listed(paths: Sequence[Path], slides_of: Callable[[Path], list[tuple[str, Path]]]) -> list[tuple[str, Path]]:
    """Return ids and files of the requested slides.

    Args:
        paths: files, folders, or `.txt` files with one of these per line, relative to the list's folder.
        slides_of: ids and files of the slides in a file or folder.

    Raises:
        ValueError: there is none, or two have the same id.
    """
    found: dict[str, Path] = {}
    for path in paths:
        is_list = path.suffix.lower() == ".txt"
        for one in _lines(path) if is_list else [path]:
            for slide_id, slide_path in slides_of(one):
                known = found.setdefault(slide_id, slide_path)
                if known.resolve() != slide_path.resolve():
                    raise ValueError(f"two slides have the id {slide_id}: {known} and {slide_path}; rename one")
    if not found:
        raise ValueError(f"no slides in {', '.join(map(str, paths))}")
    return sorted(found.items())


def _lines(path: Path) -> list[Path]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [path.parent / line for line in lines if line and not line.startswith("#")]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files in a folder and their names."""
    total = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            total.update(str(part.relative_to(path)).encode())
            with part.open("rb") as file:
                while block := file.read(2**20):
                    total.update(block)
    return total.hexdigest()


def done_before(folder: Path, options: Mapping[str, Any], overwrite: bool) -> bool:
    """Return whether a slide was predicted before with the same options.

    Args:
        folder: folder of its results.
        options: options that determine the result.
        overwrite: whether results of other options may be replaced.

    Raises:
        ValueError: it was predicted with other options, or the folder was not written by this program.
    """
    if not folder.exists():
        return False
    try:
        was = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        was = None
    if was == options:
        return True
    if overwrite:
        return False
    if was is None:
        raise ValueError(
            f"{folder} does not contain a prediction of this program; choose another --out or add --overwrite"
        )
    changed = [name for name in {**options, **was} if was.get(name) != options.get(name)]
    raise ValueError(
        f"{folder} was predicted with other options ({', '.join(changed)}); choose another --out or add --overwrite"
    )
