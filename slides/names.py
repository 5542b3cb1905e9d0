"""Names of slides: one text for one name, whichever of Unicode's forms a file system or table holds it in.

A letter with an accent is one character (composed) or two (decomposed). Files from macOS are often named in the second
form, tables and labels from other systems in the first; both look alike.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def id_of(path: Path) -> str:
    """Id of a slide, or of what is named after one: the file name without its last suffix, composed."""
    return composed(path.stem)


def existing(path: Path) -> Path:
    """A path as the file system has it: as given, or else in the form of Unicode in which there is such a file."""
    if path.exists():
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)
