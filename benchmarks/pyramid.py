"""What writing a mask pyramid costs: time, px and bytes per second, size and memory, by what the tiles show.

python -m benchmarks.pyramid [--size 100000 200000] [--share 0.03] [--rounds 3] [--json FILE]

`plain`: every tile has one value. `outline`: a share of the tiles shows the edge of a region, the others one value, as
masks do. `noise`: every tile is noise of three values, the worst case, on a sixteenth of the area. Each is written with
both ways to shrink, in a process of its own, so that its peak of memory is its own; the median of the rounds is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from slides.tiff.pyramid import Shrink, write_mask_pyramid

TILE = 512
KINDS = ("plain", "outline", "noise")


def write(kind: str, shrink: Shrink, size_xy: tuple[int, int], share: float, folder: Path) -> dict[str, Any]:
    """Write one pyramid into `folder` and measure it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:TILE, :TILE]
    disc = (np.hypot(x - 200, y - 300) < 180).astype(np.uint8)
    noise = rng.integers(0, 3, (TILE, TILE)).astype(np.uint8)
    if kind == "noise":
        size_xy = size_xy[0] // 4, size_xy[1] // 4
    shown = rng.random((-(-size_xy[1] // TILE), -(-size_xy[0] // TILE))) < share
    tile_of = {
        "plain": lambda *_: 0,
        "outline": lambda row, column: disc if shown[row, column] else 0,
        "noise": lambda *_: noise,
    }[kind]
    path = folder / "a.tif"
    start = time.perf_counter()
    write_mask_pyramid(path, size_xy, (0.25, 0.25), tile_of, shrink=shrink, tile=TILE)
    seconds = time.perf_counter() - start
    return {
        "kind": kind, "shrink": shrink, "size_xy": size_xy, "seconds": seconds,
        "mpx_per_second": size_xy[0] * size_xy[1] / seconds / 1e6,
        "written_mb": path.stat().st_size / 1e6, "written_mb_per_second": path.stat().st_size / seconds / 1e6,
        "peak_resident_mib": report.peak_resident_bytes() / 2**20,
    }  # fmt: skip


def measured(kind: str, shrink: str, opts: argparse.Namespace) -> dict[str, Any]:
    """The round of median time of one case, each in a process of its own."""
    rounds = []
    for _ in range(opts.rounds):
        with tempfile.TemporaryDirectory(dir=opts.dir) as folder:
            one = [kind, shrink, *map(str, opts.size), str(opts.share), folder]
            command = [sys.executable, "-m", "benchmarks.pyramid", "--one", *one]
            rounds.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    middle = statistics.median_low([found["seconds"] for found in rounds])
    return next(found for found in rounds if found["seconds"] == middle)


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="measure the writer of mask pyramids")
    parser.add_argument("--size", type=int, nargs=2, default=[100_000, 200_000], help="width and height, px")
    parser.add_argument("--share", type=float, default=0.03, help="of the tiles of `outline` that show an edge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    opts = parser.parse_args()
    if opts.one:
        kind, shrink, width, height, share, folder = opts.one
        print(json.dumps(write(kind, shrink, (int(width), int(height)), float(share), Path(folder))))
        return
    print("tiles    shrink         size px  seconds    Mpx/s  written MB  MB/s  peak MiB")
    rows = []
    for kind in KINDS:
        for shrink in ("max", "mean"):
            row = measured(kind, shrink, opts)
            rows.append(row)
            size = "x".join(map(str, row["size_xy"]))
            print(
                f"{kind:<8} {shrink:<6} {size:>15} {row['seconds']:>8.2f} {row['mpx_per_second']:>8.0f} "
                f"{row['written_mb']:>11.1f} {row['written_mb_per_second']:>5.1f} {row['peak_resident_mib']:>9.0f}",
                flush=True,
            )
    if opts.json:
        report.write(opts.json, {"rows": rows})


if __name__ == "__main__":
    main()
