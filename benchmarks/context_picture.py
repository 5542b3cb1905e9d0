"""Draw what context_study's networks say: a slide with its truth, the whole prediction and one patch of each size.

python -m benchmarks.context_picture --data DATA --runs DIR --jpg FILE [--seed S]

Draws the first validation slide. Prints over all of them how mIoU depends on the place in the window: context ends
at a window's border, so the middle sees more of it than the rim.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import models  # noqa: F401  # registers the layers of the saved model
from benchmarks.context_study import SCRIPTS, SIZES, open_slides
from metrics import confusion
from slides.geometry import Window
from training.step import scaled

SHRINK = 8  # level-0 px per px of the drawn slide


def predicted(model: keras.Model, image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Return tumor_HW of a whole slide: windows of `size` px that touch, as in validation."""
    height, width, channels = image_HWC.shape
    rows = []
    for top in range(0, height, size):
        row_BHWC = image_HWC[top : top + size].reshape(size, width // size, size, channels).swapaxes(0, 1)
        logits_BHWK = model.predict_on_batch(scaled(np.ascontiguousarray(row_BHWC)))
        rows.append(np.concatenate(np.argmax(logits_BHWK, -1) == 1, axis=1))
    return np.concatenate(rows)


def by_place(truth_HW: np.ndarray, tumor_HW: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the confusion_KK of pixels in the middle of their window (half its side), and of the rim around it."""
    middle = np.abs((np.arange(truth_HW.shape[0]) + 0.5) % size - size / 2) < size / 4
    middle_HW = np.outer(middle, middle)
    both = (confusion.confusion_from_labels(truth_HW[w] * 1, tumor_HW[w] * 1, 2) for w in (middle_HW, ~middle_HW))
    return next(both), next(both)


def painted(image_HWC: np.ndarray, tumor_HW: np.ndarray, truth_HW: np.ndarray, px: int) -> np.ndarray:
    """Return a picture of `px` px a side: pale image, `tumor_HW` red, the outline of the truth black."""
    small_HWC = cv2.resize(image_HWC, (px, px), interpolation=cv2.INTER_AREA).astype(np.float32)
    red_HW = cv2.resize(tumor_HW.astype(np.float32), (px, px), interpolation=cv2.INTER_AREA)[..., None]
    small_HWC = 255 - (255 - small_HWC) * 0.7
    small_HWC = small_HWC * (1 - 0.45 * red_HW) + np.array([225, 20, 20]) * 0.45 * red_HW
    truth = cv2.resize(truth_HW.astype(np.uint8), (px, px), interpolation=cv2.INTER_NEAREST)
    picture_HWC = np.clip(small_HWC, 0, 255).astype(np.uint8)
    outlines, _ = cv2.findContours(truth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(picture_HWC, outlines, -1, (0, 0, 0), 2))


def draw(image_HWC: np.ndarray, truth_HW: np.ndarray, by_size: dict[int, np.ndarray], jpg: Path, title: str) -> None:
    """Write the picture: above the slide, below one window of each size around the same place."""
    figure, axes = plt.subplots(2, 1 + len(by_size), figsize=(3.1 * (1 + len(by_size)), 6.5), layout="constrained")
    px = image_HWC.shape[0] // SHRINK
    nothing_HW = np.zeros_like(truth_HW)  # no outline over the capsules where the truth itself is drawn
    axes[0, 0].imshow(painted(image_HWC, truth_HW, nothing_HW, px))
    axes[0, 0].set_title("truth")
    widest = max(by_size)
    corner = window_with_most_mixed_truth(truth_HW, widest)
    part = np.s_[corner[0] : corner[0] + widest, corner[1] : corner[1] + widest]
    axes[1, 0].imshow(painted(image_HWC[part], truth_HW[part], nothing_HW[part], 384))
    axes[1, 0].set_title(f"truth in {widest} px")
    for column, (size, tumor_HW) in enumerate(by_size.items(), start=1):
        axes[0, column].imshow(painted(image_HWC, tumor_HW, truth_HW, px))
        axes[0, column].set_title(f"{size} px: predicted")
        for edge in range(size, image_HWC.shape[0], size):
            axes[0, column].axhline(edge / SHRINK, color="white", linewidth=0.5)
            axes[0, column].axvline(edge / SHRINK, color="white", linewidth=0.5)
        # the window of the grid in the middle of the widest one
        top, left = ((start + widest // 2) // size * size for start in corner)
        patch = np.s_[top : top + size, left : left + size]
        axes[1, column].imshow(painted(image_HWC[patch], tumor_HW[patch], truth_HW[patch], 384))
        axes[1, column].set_title(f"one patch of {size} px")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title)
    figure.savefig(jpg, dpi=90, pil_kwargs={"quality": 82})


def window_with_most_mixed_truth(truth_HW: np.ndarray, size: int) -> tuple[int, int]:
    """Row and column of the corner of the grid window whose smaller class is largest."""
    corners = [(r, c) for r in range(0, truth_HW.shape[0], size) for c in range(0, truth_HW.shape[1], size)]
    shares = [float(truth_HW[r : r + size, c : c + size].mean()) for r, c in corners]
    return corners[int(np.argmax([min(share, 1 - share) for share in shares]))]


def main() -> None:
    """Predict and draw."""
    parser = argparse.ArgumentParser(description="draw predictions at each field of view")
    parser.add_argument("--data", type=Path, required=True, help="folder that slides.context wrote")
    parser.add_argument("--runs", type=Path, required=True, help="--out of context_study")
    parser.add_argument("--jpg", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(SCRIPTS), default="wide_unet")
    parser.add_argument("--seed", type=int, default=0)
    opts = parser.parse_args()
    val_set = open_slides(opts.data)[1]
    loaded = {n: keras.models.load_model(opts.runs / f"{opts.model}-{n}-{opts.seed}/final.keras") for n in SIZES}
    counts = {size: np.zeros((2, 2, 2), np.int64) for size in SIZES}
    for slide, truth in zip(val_set.slides, val_set.truths, strict=True):
        width, height = slide.size_xy_l0
        everything = Window((0.0, 0.0), (height, width), (1.0, 1.0))
        image_HWC, truth_HW = slide.read(everything), truth.label(everything) == 1
        by_size = {size: predicted(model, image_HWC, size) for size, model in loaded.items()}
        for size, tumor_HW in by_size.items():
            counts[size] += np.stack(by_place(truth_HW, tumor_HW, size))
        if slide is val_set.slides[0]:
            draw(image_HWC, truth_HW, by_size, opts.jpg, f"{slide.id}: truth in black outlines, red is called tumor")
    for size, (middle_KK, rim_KK) in counts.items():
        parts = f"middle {confusion.miou(middle_KK):.4f}  rim {confusion.miou(rim_KK):.4f}"
        print(f"{size} px  mIoU {confusion.miou(middle_KK + rim_KK):.4f}  {parts}")


if __name__ == "__main__":
    main()
