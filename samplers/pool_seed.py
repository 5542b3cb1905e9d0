"""Initial entries of the hard pool: false tumor that an evaluation found.

`evaluate.py` writes `false_positives.csv` with a line for each region that was predicted tumor and touches no tumor.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from samplers.hard_pool import Entry
from slides.names import composed

FILE = "false_positives.csv"
COLUMNS = ("slide_id", "x", "y", "probability")
# The cross-entropy of a probability of 1 is infinite; this is the next lower value in 8 bits.
MOST = 254 / 255


def read_pool_seed(folder: Path, slide_ids: Sequence[str]) -> tuple[list[Entry], int]:
    """Read entries of class 0 for the false regions of an evaluation.

    Their loss is that of the network there: the cross-entropy of class 0, -log(1 - p), so that they rank with the
    losses of trained patches.

    Args:
        folder: `--out` of evaluate.py, with `false_positives.csv`.
        slide_ids: training slides, in the order that `Entry.slide` counts.

    Returns:
        Entries of indexes -n to -1, and the number of regions on other slides, which are left out.

    Raises:
        ValueError: the file is missing or malformed, or no region lies on any of the slides.
    """
    path = folder / FILE
    numbers = {slide_id: number for number, slide_id in enumerate(slide_ids)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"--mine_from {folder}: {path.name} cannot be read ({error}); give the --out of evaluate.py"
        ) from None
    found = []
    for line, row in enumerate(rows, start=2):
        try:
            x_l0, y_l0, probability = (float(row[name]) for name in COLUMNS[1:])
            slide_id = composed(row["slide_id"])
        except (KeyError, TypeError, ValueError):
            wanted = ",".join(COLUMNS)
            raise ValueError(f"{path}, line {line}: {row} is not a place; the columns must be {wanted}") from None
        if not (math.isfinite(x_l0) and math.isfinite(y_l0) and 0 <= probability <= 1):
            raise ValueError(f"{path}, line {line}: x {x_l0}, y {y_l0}, probability {probability} is not a place")
        found.append((slide_id, x_l0, y_l0, -math.log(1 - min(probability, MOST))))
    ours = [(numbers[slide_id], x, y, loss) for slide_id, x, y, loss in found if slide_id in numbers]
    if not ours:
        raise ValueError(f"--mine_from {folder}: {len(found)} regions, none of them on a training slide")
    entries = [Entry(i - len(ours), slide, 0, x, y, loss) for i, (slide, x, y, loss) in enumerate(ours)]
    return entries, len(found) - len(ours)
