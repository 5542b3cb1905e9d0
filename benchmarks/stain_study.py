"""Does it help under another stain? Trained models scored on slides of their own stain and of another.

python -m benchmarks.stain_study --slides DIR --runs RUNS --json FILE

DIR is written by `benchmarks.stain_slides`; RUNS has the folders STAIN-ARM-SEED of training runs on DIR/STAIN. Every
model is scored on the validation slides of both stains, as it was trained (`plain`), with `--adapt_bn` (`adapted`),
and, if it was trained without, with `--stain_norm` at prediction alone. A score is of the centers of 32 px: the AUC
of the mean probability of each, and Dice and mIoU of their px.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from artifacts.loading import LoadedModel, open_model
from artifacts.metadata import ModelOverrides
from benchmarks import report
from benchmarks.stain_slides import COLUMNS, ROWS, SIDE, UM_PX
from metrics import confusion
from models import norm_of
from samplers.index import find_tissue
from slides.reader import Slide
from slides.stain import SlideStain, middle, normalization, slide_stain

CENTER = 32  # px
BATCH = 16
ADAPT = 32  # windows, as `inference.appearance`
Adapt = Callable[[Iterable[NDArray[np.uint8]]], int]


def windows(slide: Slide, mask: Slide, img_size: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yield the windows around the labeled patches of a slide, and their class."""
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        center = (column * SIDE + SIDE / 2, row * SIDE + SIDE / 2)
        value = int(mask.read_level(0, (int(center[0]), int(center[1])), (1, 1))[0, 0, 0])
        if value:
            yield slide.read(slide.window(center, (img_size, img_size), UM_PX)), value - 1


def stain_of(slide: Slide, norm: str) -> SlideStain:
    """Estimate the stain of a slide."""
    search = find_tissue(slide, 2)
    return slide_stain(slide, search.tissue_HW, search.cell_l0, (norm,))


def score(model: LoadedModel, trained: Path, folder: Path, norm: str, adapt: Adapt | None) -> dict[str, float]:
    """Score a model on the slides of a folder, normalized to the median of those it was trained on."""
    size = model.info.img_size
    inner = slice((size - CENTER) // 2, (size + CENTER) // 2)
    means: list[float] = []
    truths: list[int] = []
    counts_KK = np.zeros((2, 2), np.int64)
    for path in sorted((folder / "images").glob("*.tif")):
        slide = Slide(path)
        images, labels = zip(*windows(slide, Slide(folder / "masks" / f"{path.stem}_mask.tif"), size), strict=True)
        if norm != "none":
            known = [stain_of(Slide(one), norm).estimates[norm] for one in sorted((trained / "images").glob("*.tif"))]
            change = normalization(norm, stain_of(slide, norm), {norm: middle(known)})
            assert change is not None
            images = tuple(change(image_HWC) for image_HWC in images)
        chosen = [images[(2 * k + 1) * len(images) // (2 * ADAPT)] for k in range(ADAPT)]
        if adapt is not None:
            adapt(np.stack(chosen[i : i + 8]) for i in range(0, ADAPT, 8))
        for first in range(0, len(images), BATCH):
            batch = np.stack(images[first : first + BATCH])
            p_BHW = model.probabilities(batch)[:, inner, inner, 1]
            label_B = labels[first : first + BATCH]
            means += p_BHW.mean((1, 2)).tolist()
            truths += label_B
            for p_HW, label in zip(p_BHW, label_B, strict=True):
                tumor = int((p_HW > 0.5).sum())
                counts_KK[label] += (p_HW.size - tumor, tumor)
    return {
        "auc": float(roc_auc_score(truths, means)),
        "dice": float(confusion.dice_K(counts_KK)[1]),
        "miou": float(confusion.miou(counts_KK)),
    }


def main() -> None:
    """Score all runs; print and write rows."""
    parser = argparse.ArgumentParser(description="score models on their own and on another stain")
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    opts = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for folder in sorted(opts.runs.iterdir()):
        match = re.fullmatch(r"(pale|deep)-(\w+)-(\d+)", folder.name)
        if match is None or not (folder / "final.json").exists():
            continue
        model = open_model(folder / "final.keras", ModelOverrides())
        trained = model.info.stain_norm
        # Made once: it remembers the trained statistics.
        adaptation = None if norm_of(model.source) == "group" else model.adaptation()
        modes = [("plain", trained, False)] + [("adapted", trained, True)] * (adaptation is not None)
        if trained == "none" and match[2] == "none":
            modes += [("macenko", "macenko", False), ("reinhard", "reinhard", False)]
        for where, (mode, norm, adapt) in itertools.product(("own", "other"), modes):
            stain = match[1] if where == "own" else {"pale": "deep", "deep": "pale"}[match[1]]
            if adaptation is not None:
                adaptation([])
            row = {"trained": match[1], "arm": match[2], "seed": int(match[3]), "on": where, "mode": mode}
            source, target = opts.slides / match[1] / "train", opts.slides / stain / "valid"
            rows.append(row | score(model, source, target, norm, adaptation if adapt else None))
            print(" ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True)
    keys = sorted({(r["trained"], r["arm"], r["mode"], r["on"]) for r in rows})
    table = []
    for key in keys:
        mine = [r for r in rows if (r["trained"], r["arm"], r["mode"], r["on"]) == key]
        row = dict(zip(("trained", "arm", "mode", "on"), key, strict=True)) | {"seeds": len(mine)}
        for name in ("auc", "dice", "miou"):
            values = [r[name] for r in mine]
            row |= {name: float(np.mean(values)), f"{name}_least": min(values), f"{name}_most": max(values)}
        table.append(row)
    if opts.json:
        report.write(opts.json, {"table": table, "runs": rows})


if __name__ == "__main__":
    main()
