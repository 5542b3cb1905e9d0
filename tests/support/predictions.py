"""Slides with a known truth, and predictions of them as predict.py leaves them."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from slides.synthetic.demo import write_case, write_pyramid

# A px of 1.944 um is a quarter of the organizers' 7.776 um: cells of lesions are 4 x 4 level-0 px.
UM_PX = 1.944
SIZE_XY = (400, 300)
STEP = 2
TUMOR = (40, 40, 160, 120)
Box = tuple[int, int, int, int]  # x0, y0, x1, y1, level-0 px


def ring(box: Box) -> np.ndarray:
    """The outline of a rectangle."""
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def slide(folder: Path, name: str, tumors: tuple[Box, ...] = (), tissue: Box | None = (20, 20, 380, 280)) -> Path:
    """Write a slide, and XML and mask where it has tumor; returns its path."""
    image_HWC = np.full((SIZE_XY[1], SIZE_XY[0], 3), 245, np.uint8)
    if tissue is not None:
        x0, y0, x1, y1 = tissue
        image_HWC[y0:y1, x0:x1] = (200, 120, 180)
    return write_case(folder, name, image_HWC, [("_0", ring(box)) for box in tumors], UM_PX)


def prediction(
    folder: Path,
    slide_path: Path,
    tumors: tuple[Box, ...] = (),
    detections: tuple[tuple[float, float, float], ...] = (),
    probability: float = 0.9,
    step: int = STEP,
    **changed: object,
) -> Path:
    """Write a prediction: tumor at `probability` in the boxes, 0.1 elsewhere; returns its folder.

    Args:
        folder: of all predictions.
        slide_path: of the slide.
        tumors: predicted, level-0 px.
        detections: probability, x, y, best first.
        probability: of the boxes.
        step: level-0 px per px of the maps.
        **changed: entries of summary.json in place of the right ones.
    """
    out = folder / slide_path.stem
    out.mkdir(parents=True, exist_ok=True)
    size_xy = [math.ceil(side / step) for side in SIZE_XY]
    label_HW = np.zeros(size_xy[::-1], np.uint8)
    for box in tumors:
        x0, y0, x1, y1 = (side // step for side in box)
        label_HW[y0:y1, x0:x1] = 1
    probability_HW = np.where(label_HW > 0, round(255 * probability), round(255 * 0.1)).astype(np.uint8)
    write_pyramid(out / "label.tif", label_HW, UM_PX * step, lossless=True)
    write_pyramid(out / "probability.tif", probability_HW, UM_PX * step, lossless=True)
    rows = "".join(f"{p:.6f},{x:.1f},{y:.1f}\n" for p, x, y in detections)
    (out / "detections.csv").write_text(f"probability,x,y\n{rows}")
    Image.fromarray(np.repeat(label_HW[..., None] * np.uint8(200), 3, axis=2)).save(out / "overlay.png")
    summary = {
        "slide_id": slide_path.stem,
        "slide_path": str(slide_path.resolve()),
        "size_xy_l0": list(SIZE_XY),
        "um_px_xy_l0": [UM_PX, UM_PX],
        "um_px": UM_PX * step,
        "step_xy_l0": [float(step), float(step)],
        "size_xy": size_xy,
        "classes": 2,
        "class_names": {"0": "normal", "1": "tumor"},
        "tumor_probability": max((p for p, _, _ in detections), default=0.0),
    }
    (out / "summary.json").write_text(json.dumps(summary | changed))
    return out
