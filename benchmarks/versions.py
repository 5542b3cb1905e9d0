"""Two checkouts of the repository in one process: reading, labels and patches, window by window in turn.

python -m benchmarks.versions --before CHECKOUT --after CHECKOUT --data DIR --json FILE

CPU time of the thread, without a cache of tiles. Both versions see the same windows within milliseconds of each other,
so that the ratio is steady to 2 or 3 % even on a busy machine, where two runs of `benchmarks.input` differ by half.
`speed` is the time before by the time after; its spread is that of six blocks of windows.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.big_slide import make

WINDOWS = {256: 240, 512: 160, 1024: 80, 2048: 32}
WARM_UP, BLOCKS = 8, 6
Stages = dict[tuple[int, str, str], Callable[[int], Any]]


def stages_of(checkout: Path, data: tuple[Path, Path, Path]) -> Stages:
    """Everything to measure, by side of the window, kind of truth and stage; imported from `checkout`."""
    rooms = {path.name for path in checkout.iterdir() if (path / "__init__.py").exists()} - {"benchmarks"}
    for name in [name for name in sys.modules if name.split(".")[0] in rooms]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    importlib.invalidate_caches()
    try:
        tiled_tiff = _module("slides.tiff.tiled_tiff", "slides.tiled_tiff")
        open_truth = _module("slides.truth.interface", "slides.truth").open_truth
        patch, index = (importlib.import_module(f"samplers.{name}") for name in ("patch", "index"))
        samplers = importlib.import_module("samplers")
        slide = importlib.import_module("slides.reader").Slide(data[0])
    finally:
        sys.path.remove(str(checkout))
    tiled_tiff.tile_cache.resize(0)
    stages: Stages = {}
    for kind, path in (("xml", data[1]), ("mask", data[2])):
        truth = open_truth(path, slide)
        sampler = samplers.build("radboud", [index.index_slide(slide, truth, 4, 2)], 0, 2, None)
        for side in WINDOWS:
            reader = patch.PatchReader([slide], [truth], side, slide.um_px_xy_l0[0])
            stages |= _stages(side, kind, slide, truth, sampler, reader, patch.draw)
    return stages


def _module(name: str, former: str) -> Any:
    """A module, in older versions by its former name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return importlib.import_module(former)


def _stages(
    side: int, kind: str, slide: Any, truth: Any, sampler: Any, reader: Any, draw: Callable[..., Any]
) -> Stages:
    return {
        (side, kind, "read"): lambda i: slide.read(reader.window(sampler.request(i))),
        (side, kind, "label"): lambda i: truth.label(reader.window(sampler.request(i))),
        (side, kind, "patch"): lambda i: draw(sampler, reader, i),
    }


def compared(before: Callable[[int], Any], after: Callable[[int], Any], windows: int) -> dict[str, float]:
    """Median ms of both, and how much faster the later one is."""
    taken = np.zeros((windows, 2))
    for i in range(windows):
        for which in (i % 2, 1 - i % 2):
            start = time.thread_time()
            (before, after)[which](i)
            taken[i, which] = (time.thread_time() - start) * 1e3
    taken = taken[WARM_UP:]
    blocks = [float(block[:, 0].sum() / block[:, 1].sum()) for block in np.array_split(taken, BLOCKS)]
    return {
        "before_ms": float(np.median(taken[:, 0])), "after_ms": float(np.median(taken[:, 1])),
        "speed": float(taken[:, 0].sum() / taken[:, 1].sum()), "low": min(blocks), "high": max(blocks),
    }  # fmt: skip


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="compare the reading of two versions of the repository")
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--after", type=Path, required=True, help="checkout of the later version")
    parser.add_argument("--data", type=Path, required=True, help="folder of the big slide; made where missing")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    data = make(arguments.data)
    before, after = (stages_of(path.resolve(), data) for path in (arguments.before, arguments.after))
    rows = []
    print("   px truth stage  before ms  after ms  speed  spread")
    for (side, kind, stage), run in before.items():
        row = compared(run, after[side, kind, stage], WINDOWS[side])
        rows.append({"img_size": side, "truth": kind, "stage": stage} | row)
        print(
            f"{side:>5} {kind:>5} {stage:<6} {row['before_ms']:>9.2f} {row['after_ms']:>9.2f}  {row['speed']:.3f}  "
            f"{row['low']:.3f}-{row['high']:.3f}",
            flush=True,
        )
    if arguments.json:
        report.write(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
