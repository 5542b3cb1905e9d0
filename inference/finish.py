"""A slide's results from the scratch files of its runs: written beside their place, then moved there as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inference.blending import Weights
from inference.plan import PlannedSlide
from inference.scratch import LABEL, Cells, plane_names, run_path
from slides.pyramid import write_mask_pyramid
from slides.reader import Slide, SlideError

TILE = 512
CLAIM = "claimed"


def claim(folder: Path, firsts: Sequence[int]) -> bool:
    """Whether all runs of a slide are there, and this call is the first to know.

    Args:
        folder: scratch folder of the slide.
        firsts: positions of the first windows of its runs.
    """
    if not all(run_path(folder, first).exists() for first in firsts):
        return False
    try:
        # Ranks: of several that look at the same time, one can make the file.
        os.close(os.open(folder / CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except (FileExistsError, FileNotFoundError):
        return False
    return True
