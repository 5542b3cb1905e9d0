"""Does a large field of view pay off? 256, 512 and 1024 px with equal pixels seen, where truth needs context.

python -m slides.context --out DATA
python -m benchmarks.context_study --data DATA --out DIR --json FILE --png FILE

Every arm trains by train.py's pipeline on the same slides with the same number of pixels per step and in total, and
with the same options but for --img_size, --batch_size and the counts of images. Each is validated on every pixel of the
validation slides, cut into windows of its own size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import arms, report
from cohorts.sets import Source, from_folders
from samplers.dataset import SetOptions, SlideSet, open_set
from samplers.grid import requests
from slides.geometry import Window
from slides.truth.reading import Reading

SIZES = (256, 512, 1024)  # field of view, level-0 px
STEP_PX = 1024**2  # level-0 pixels per step
UM_PX = 0.25  # of level 0, and of patches unless --um_px says otherwise
SEARCH_LEVEL = 4  # 16 px, far below the size of what is drawn
SCRIPTS = {"wide_unet": Path(__file__).with_name("wide_unet.py"), "effdetd0": Path(__file__).parents[1] / "train.py"}


def name_of(size: int) -> str:
    """Name of the arm with this field of view."""
    return f"{size} px"


def open_slides(data: Path) -> tuple[SlideSet, SlideSet]:
    """Open training and validation slides with their XML truth."""
    sources = [
        Source(data / split / "images", data / split / "annotations", "tif", "xml") for split in ("train", "val")
    ]
    train, val, _ = from_folders(*sources, ((-1,), (-1,)), 0.15, 0)
    options = SetOptions(Reading(ignore_groups=()), SEARCH_LEVEL, 2)
    train_set, val_set = (open_set(cases, options, 0, 1, lambda action: [action()]) for cases in (train, val))
    return train_set, val_set


def check_same_pixels(val_set: SlideSet) -> int:
    """Number of validation pixels, the same for every size.

    Raises:
        ValueError: The grids of two sizes do not cover the same pixels.
    """
    side_px = [slide.size_xy_l0 for slide in val_set.slides]
    steps = [slide.step_xy_l0(UM_PX) for slide in val_set.slides]
    counts = {size: len(requests(val_set.indexes, size, steps, 0)) * size**2 for size in SIZES}
    # Windows do not overlap: as many pixels as the slides have are all of them.
    total = sum(width * height for width, height in side_px)
    if set(counts.values()) != {total}:
        raise ValueError(
            f"validation slides of {side_px} px have {total} px, their grids cover {counts}: tissue must reach every "
            f"border, and the sides must be multiples of {max(SIZES)}"
        )
    return total


def tumor_share(slides: SlideSet) -> float:
    """Share of tumor in all pixels of slides."""
    areas = []
    for slide, truth in zip(slides.slides, slides.truths, strict=True):
        width, height = slide.size_xy_l0
        areas.append((truth.label(Window((0.0, 0.0), (height, width), (1.0, 1.0))) == 1).mean())
    return float(np.mean(areas))


def options_of(size: int, opts: argparse.Namespace, share: float) -> list[Any]:
    """Options of train.py for one field of view.

    Args:
        size: Field of view, level-0 px.
        opts: Of this study.
        share: Tumor in training slides: drawn as often as it is there, centers are uniform over tissue, and
            no field of view gets more tumor than another.
    """
    batch = STEP_PX // size**2
    return [
        "--slide_path", opts.data / "train/images", "--label_path", opts.data / "train/annotations",
        "--valid_slide_path", opts.data / "val/images", "--valid_label_path", opts.data / "val/annotations",
        "--label_format", "xml", "--img_size", round(size * UM_PX / opts.um_px), "--resolution", opts.um_px,
        "--bb_downsample", SEARCH_LEVEL,
        "--data_sampler", "surf", "--batch_tumor_ratio", Fraction(share).limit_denominator(100), "--batch_size", batch,
        "--num_steps", opts.steps * batch, "--val_patches", 0,
        "--validate_every", -(-opts.steps // opts.validations) * batch,
        "--log_every", 20 * batch, "--base_lr", opts.lr, "--lr_schedule", "cosine", "--augment", "flips",
        # capsules are as brown as pen marks may be; all tissue is sharp
        "--no-qc", *(["--model", opts.model] if opts.model == "effdetd0" else []),
    ]  # fmt: skip


def plot(runs: list[dict[str, Any]], sizes: Sequence[int], share: float, title: str, png: Path) -> None:
    """Validation mIoU over field of view at the end, and over pixels seen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    miou = [[r["val"][-1]["miou"] for r in runs if r["arm"] == name_of(size)] for size in sizes]
    for size, values in zip(sizes, miou, strict=True):
        left.plot([size] * len(values), values, ".", color="0.5")
    left.plot(sizes, [np.mean(values) for values in miou], "o-", label="mean of seeds")
    left.axhline((1 - share) / 2, color="0.5", linestyle=":", label="all normal")
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [f"{size}\n{size * UM_PX:.0f} um" for size in sizes])
    left.set(xlabel="field of view, px", ylabel="validation mIoU", title="after training")
    left.legend()
    left.grid(alpha=0.3)
    arms.curves(right, runs, [name_of(size) for size in sizes], {name_of(size): size**2 / 1e6 for size in sizes})
    right.set(xlabel="million pixels seen", title="while training")
    figure.suptitle(title)
    figure.savefig(png, dpi=100)


def main() -> None:
    """Train all, print the table, write JSON and PNG."""
    parser = argparse.ArgumentParser(description="mIoU over the field of view, equal pixels seen")
    parser.add_argument("--data", type=Path, required=True, help="folder that slides.context wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--model", choices=sorted(SCRIPTS), default="wide_unet")
    parser.add_argument("--steps", type=int, default=300, help="updates, of 1,048,576 px each")
    parser.add_argument("--validations", type=int, default=3, help="during training, evenly spaced")
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--um_px", type=float, default=UM_PX, help="of patches; coarser ones show the same in fewer px")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--read", action="store_true", help="train nothing: table and curves of the runs in --out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    opts = parser.parse_args()
    train_set, val_set = open_slides(opts.data)
    pixels = check_same_pixels(val_set)
    shares = {"train": tumor_share(train_set), "val": tumor_share(val_set)}
    print(f"validation on the same {pixels:,} px for every size; tumor {shares['train']:.3f}, {shares['val']:.3f}")
    runs = []
    for seed in opts.seeds:
        for size in opts.sizes:
            log_dir = opts.out / f"{opts.model}-{size}-{seed}"
            if not opts.read:
                arms.train(SCRIPTS[opts.model], name_of(size), seed, log_dir, options_of(size, opts, shares["train"]))
            runs.append(arms.read(name_of(size), seed, log_dir))
            print(f"{size} px seed {seed}: mIoU {runs[-1]['val'][-1]['miou']:.4f}", flush=True)
    rows = arms.table(runs, [name_of(size) for size in opts.sizes])
    arms.show(rows)
    print(f"all normal  {(1 - shares['val']) / 2:.4f}")
    if opts.json:
        report.write(opts.json, {"tumor_share": shares, "val_pixels": pixels, "table": rows, "runs": runs})
    if opts.png:
        title = f"{opts.model}, {opts.steps} steps of 1 M px, {len(opts.seeds)} seeds"
        plot(runs, opts.sizes, shares["val"], title, opts.png)


if __name__ == "__main__":
    main()
