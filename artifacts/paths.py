"""Paths that name a model, checked before TensorFlow is imported."""

from __future__ import annotations

from pathlib import Path

KINDS = "a run folder (--log_dir of train.py), a checkpoint .npz, a .keras file, or a SavedModel folder"


def require_model(path: Path) -> None:
    """Check that a path exists.

    Raises:
        ValueError: it does not.
    """
    if not path.exists():
        raise ValueError(f"--model {path}: no such file or folder; {KINDS} is needed")
