"""Prediction of whole slides: how near it comes to the network alone, and the memory that it takes beside the network.

python -m benchmarks.predict [--model deeplab] [--size 1024] [--rounds 5] [--json PATH]
python -m benchmarks.predict --memory SIDE [--json PATH]

The first compares windows/s of the network on one batch, again and again, with those of `predict_run`,
which also reads, decodes, blends and writes, in alternating rounds of one process. The second predicts a slide of SIDE
x SIDE px, tissue everywhere, at its own spacing, with a function in place of the network, and finishes it; it needs
about 1.2 bytes of disk for every px.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.big_slide import UM_PX, make_slide
from benchmarks.report import peak_resident_bytes, write
from inference.finish import write_maps
from inference.plan import plan_slide
from inference.predict import WindowOptions, predict_run
from inference.scratch import Cells
from inference.windows import Run, share_out
from slides.reader import Slide

OVERLAP = 0.25


def rates(name: str, size: int, rounds: int, windows: int) -> dict[str, Any]:
    """Windows/s of the network alone and of a prediction, by rounds."""
    import models
    from artifacts.loading import LoadedModel
    from artifacts.metadata import ModelInfo

    model = models.build(name, size, 2)
    info = ModelInfo(img_size=size, um_px=UM_PX, classes=2, class_names=("normal", "tumor"), output="logits")
    loaded = LoadedModel(
        info=info, path=Path(name), call=lambda image_BHWC: model(image_BHWC, training=False), source=model
    )
    network = loaded.probabilities
    with tempfile.TemporaryDirectory() as folder:
        slide_path = make_slide(Path(folder), side=8192)
        planned = plan_slide(slide_path, None, size, UM_PX, OVERLAP, 7, True, 2)
        slide, weights = Slide(slide_path), planned.weights()
        batch = slide.read(planned.grid.window(1, 1))[None]
        network(batch)
        found: dict[str, Any] = {"network": [], "prediction": []}
        for number in range(rounds):
            first = number * windows % (len(planned.windows) - windows)
            start = time.perf_counter()
            for _ in range(windows):
                network(batch)
            found["network"].append(windows / (time.perf_counter() - start))
            start = time.perf_counter()
            run = Run(0, first, first + windows)
            how = WindowOptions(batch_size=1, classes=2)
            predict_run(slide, weights, planned.windows, run, network, how, Path(folder) / str(number), lambda _: None)
            found["prediction"].append(windows / (time.perf_counter() - start))
            last = {name: values[-1] for name, values in found.items()}
            print(f"round {number + 1}: network {last['network']:.3f}, prediction {last['prediction']:.3f} windows/s")
    ratios = [p / n for p, n in zip(found["prediction"], found["network"], strict=True)]
    found["ratio"] = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    print(
        f"{name} {size} px: {statistics.median(ratios):.3f} of the network's rate ({min(ratios):.3f}-{max(ratios):.3f})"
    )
    return found


def memory(side: int, size: int, folder: Path) -> dict[str, Any]:
    """Peak resident memory and time of predicting and finishing a slide without a network."""

    def network(image_BHWC):
        p_BHW = image_BHWC[..., 0].astype(np.float32) / 255
        return np.stack([1 - p_BHW, p_BHW], axis=3)

    slide_path = make_slide(folder, side)
    before = peak_resident_bytes()
    start = time.perf_counter()
    planned = plan_slide(slide_path, None, size, UM_PX, OVERLAP, 7, True, 2)
    slide, weights = Slide(slide_path), planned.weights()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        runs = share_out([planned.begins], [len(planned.windows)], 1)[0]
        for run in runs:
            predict_run(
                slide, weights, planned.windows, run, network, WindowOptions(1, 2), Path(scratch), lambda _: None
            )
        predicted = time.perf_counter()
        cells = Cells(Path(scratch), [run.first for run in runs], weights, 1)
        write_maps(cells, planned, slide.um_px_xy_l0, 2, Path(scratch))
        finished = time.perf_counter()
        bytes_of = {path.name: path.stat().st_size for path in Path(scratch).iterdir()}
        cells.close()
    found = {
        "side_px": side, "img_size": size, "windows": len(planned.windows), "peak_bytes": peak_resident_bytes(),
        "peak_bytes_before": before, "predict_s": predicted - start, "finish_s": finished - predicted,
        "file_bytes": bytes_of,
    }  # fmt: skip
    print(
        f"{side} x {side} px, {len(planned.windows)} windows of {size} px: peak {found['peak_bytes'] / 2**30:.2f} GiB "
        f"({before / 2**30:.2f} before), predicted in {predicted - start:.0f} s, maps in {finished - predicted:.0f} s"
    )
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="measure whole-slide prediction")
    parser.add_argument("--model", default="effdetd0")
    parser.add_argument("--size", type=int, default=512, help="side of a window, px (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=24, help="in each part of a round (default: %(default)s)")
    parser.add_argument("--memory", type=int, metavar="SIDE", help="measure memory on a slide of this side, px")
    parser.add_argument("--slides", type=Path, help="folder where the large slide is kept; default: a temporary one")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    opts = parser.parse_args()
    if opts.memory:
        with tempfile.TemporaryDirectory() as folder:
            result = memory(opts.memory, opts.size, opts.slides or Path(folder))
    else:
        result = rates(opts.model, opts.size, opts.rounds, opts.windows)
    if opts.json:
        write(opts.json, {"model": opts.model, "img_size": opts.size} | result)


if __name__ == "__main__":
    main()
