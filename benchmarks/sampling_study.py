"""Does it help? Hard mining, and augmentation under a change of stain, with a small U-Net and several seeds.

python -m benchmarks.sampling_study hard  --data C16MOSAIC --out DIR --json FILE --png FILE
python -m benchmarks.sampling_study stain --data C16MOSAIC --out DIR --json FILE --png FILE

Every arm trains on the same slides with the same number of images; only the options named differ. `stain` validates on
a copy of the validation slides whose stains were moved half-way to a violet one. `hard` augments in
every arm: else the difference in stain between training and validation would hide everything else.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyvips

from benchmarks import arms, report
from slides.synthetic.texture import STAINS

AUGMENTED = ["--augment", "standard"]
ARMS = {
    "hard": {
        "plain": AUGMENTED,
        "hard 1/4": [*AUGMENTED, "--hard_mining"],
        "hard 1/2": [*AUGMENTED, "--hard_mining", "--hard_fraction", "1/2"],
    },
    "stain": {level: ["--augment", level] for level in ("none", "flips", "standard", "strong")},
}
SCRIPT = Path(__file__).with_name("small_unet.py")
# Optical densities of haematoxylin and eosin, for taking apart (Ruifrok and Johnston 2001); the third is what is left.
HE_OD = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])

AMOUNT = 0.5  # of the way to the other stains; the whole way no arm finds any tumor


def restain(source: Path, target: Path, stain: str = "violet") -> None:
    """Write a slide with other stain colors, same size and spacing, 256 px JPEG tiles."""
    image = pyvips.Image.new_from_file(str(source))
    levels_HWC = image.numpy()[..., :3]
    old = np.vstack([HE_OD, np.cross(*HE_OD)])
    new_he = np.array([STAINS[stain].haematoxylin_od, STAINS[stain].eosin_od])
    new_he *= (np.linalg.norm(HE_OD, axis=1) / np.linalg.norm(new_he, axis=1))[:, None]
    replaced = np.linalg.inv(old) @ np.vstack([new_he, np.cross(*new_he)])
    mix = (AMOUNT * replaced + (1 - AMOUNT) * np.eye(3)).astype(np.float32)
    out_HWC = np.empty_like(levels_HWC)
    for top in range(0, levels_HWC.shape[0], 512):
        band = levels_HWC[top : top + 512].astype(np.float32)
        density = -np.log((band + 1) / 256) @ mix
        out_HWC[top : top + 512] = np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = pyvips.Image.new_from_array(out_HWC).copy(xres=image.xres, yres=image.yres)
    written.tiffsave(
        str(target), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=88, resunit="cm"
    )


def run(study: str, arm: str, seed: int, images: int, data: Path, val_images: Path, out: Path) -> dict[str, Any]:
    """Train one arm with one seed; rows of its validations and of its time per image."""
    log_dir = out / f"{study}-{arm.replace(' ', '-').replace('/', 'of')}-{seed}"
    options = [
        "--slide_path", data / "train/images", "--label_path", data / "train/annotations",
        "--valid_slide_path", val_images, "--valid_label_path", data / "val/annotations", "--label_format", "xml",
        "--img_size", 128, "--resolution", 0.486, "--bb_downsample", 4, "--data_sampler", "surf",
        "--batch_tumor_ratio", "1/2", "--batch_size", 8, "--num_steps", images, "--val_patches", 0,
        "--validate_every", images // 4, "--log_every", 80, "--base_lr", 0.0005, "--lr_schedule", "cosine",
        *ARMS[study][arm],
    ]  # fmt: skip
    return arms.train(SCRIPT, arm, seed, log_dir, options)


def main() -> None:
    """Run a study, print its table, write JSON and PNG."""
    parser = argparse.ArgumentParser(description="compare sampling options by short trainings of a small U-Net")
    parser.add_argument("study", choices=sorted(ARMS))
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/ and val/ of images and annotations"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    opts = parser.parse_args()
    val_images = opts.data / "val/images"
    if opts.study == "stain":
        val_images = opts.out / "restained"
        for source in sorted((opts.data / "val/images").glob("*.tif")):
            restain(source, val_images / source.name)
    names = list(ARMS[opts.study])
    runs = []
    for seed in opts.seeds:
        for arm in names:
            runs.append(run(opts.study, arm, seed, opts.images, opts.data, val_images, opts.out))
            print(f"{arm} seed {seed}: mIoU {runs[-1]['val'][-1]['miou']:.4f}", flush=True)
    rows = arms.table(runs, names)
    arms.show(rows)
    if opts.json:
        report.write(opts.json, {"table": rows, "runs": runs})
    if opts.png:
        what = {"hard": "hard mining", "stain": "augmentation, other stain in validation"}[opts.study]
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        arms.curves(axes, runs, names, {})
        axes.set(xlabel="images", title=f"{what}: small U-Net, {len(opts.seeds)} seeds, mean thick")
        figure.savefig(opts.png, dpi=110)


if __name__ == "__main__":
    main()
