"""How fast patches come: every stage of the input pipeline, as a run with default options has it.

python -m benchmarks.input --data DIR --json FILE [--sizes 256 512 1024 2048] [--workers 1 2] [--um_px 0.243]

The slide has 0.243 um/px, as those of CAMELYON16, and patches 0.25: every patch is resampled. With --um_px 0.25 they
are copied. Stages, measured in turn within each round at the same places, tiles not cached unless said:
    decode    libjpeg-turbo alone on the tiles touched, their bytes already in memory: the limit
    libvips   the level's px by libvips (for comparison; not used for JPEG tiles)
    copy      `Slide.read` at the slide's own spacing
    read      `Slide.read` at that of the patches
    patch     sampler, image and label (`samplers.patch.draw`)
    feed      the whole tf.data pipeline to float32 batches
    cached    as feed, with the tile cache that training has

`wall` is the median over rounds of the time of decode by that of the stage, with the same number of workers, with its
range; `core` the same in CPU time of all threads, and `by copy` the CPU time of the stage by that of copy. Patches/s
and MB/s (RGB bytes) are medians, too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg

from benchmarks import report
from benchmarks.big_slide import make
from samplers import build
from samplers.index import index_slide
from samplers.patch import PatchReader, RequestSource, draw
from samplers.pipeline import PREFETCH, Feed
from slides.geometry import Window, shifted_inside
from slides.reader import Slide
from slides.tiff import tiled_tiff
from slides.tiff.backends import VipsTiff, tiff_levels
from slides.tiff.tags import tile_layout
from slides.truth.interface import Truth, open_truth

CLASSES, SEED = 2, 0
UM_PX, RESOLUTION = 0.243, 0.25
Stage = Callable[[Sequence[int]], tuple[float, float] | None]
PATCHES = {256: 320, 512: 160, 1024: 64, 2048: 20}  # per stage and round: about a second


@dataclass
class Row:
    """One line of the table."""

    img_size: int
    workers: int
    truth: str
    stage: str
    patches_per_s: float
    mb_per_s: float
    wall: float
    wall_low: float
    wall_high: float
    core: float
    by_copy: float


class Decoder:
    """The limit: compressed tiles in memory, decoded and thrown away."""

    def __init__(self, path: Path) -> None:
        self._page = tiff_levels(path)[0]
        layout = tile_layout(path, self._page)
        data = path.read_bytes()
        head = layout.jpeg_tables[:-2]
        self._tiles = [
            head + data[offset + 2 : offset + count]
            for offset, count in zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True)
        ]
        self._across = -(-self._page.size_xy[0] // self._page.tile_xy[0])

    def decode(self, window: Window) -> None:
        """Decode the tiles under a window of level 0."""
        (x, y), (width, height), (side, _) = window.corner_xy_l0, window.size_xy_l0, self._page.tile_xy
        for row in range(int(y) // side, math.ceil((y + height) / side)):
            for column in range(int(x) // side, math.ceil((x + width) / side)):
                simplejpeg.decode_jpeg(self._tiles[row * self._across + column], "RGB")


class Bench:
    """All stages at one field of view.

    Args:
        slide: the slide.
        truths: kind of truth -> truth.
        samplers: kind of truth -> sampler.
        img_size: side of the patches, px.
        um_px: spacing of the patches.
    """

    def __init__(
        self, slide: Slide, truths: dict[str, Truth], samplers: dict[str, RequestSource], img_size: int, um_px: float
    ) -> None:
        self._slide = slide
        self._size = img_size
        self._samplers = samplers
        self._readers = {kind: PatchReader([slide], [truth], img_size, um_px) for kind, truth in truths.items()}
        self._decoder = Decoder(slide.path)
        pages = tiff_levels(slide.path)
        self._vips = [VipsTiff(slide.path, pages) for _ in range(8)]

    def stages(self, workers: int, kind: str) -> dict[str, Stage]:
        """Each stage as a function of the stream indices to run; it may return the seconds that count."""
        sampler, reader = self._samplers[kind], self._readers[kind]
        windows: dict[int, Window] = {}
        copied: dict[int, Window] = {}

        def prepare(indices: Sequence[int]) -> None:
            windows.clear()
            copied.clear()
            hw, um_px = (self._size, self._size), self._slide.um_px_xy_l0[0]
            for index in indices:
                windows[index] = reader.window(sampler.request(index))
                same_place = self._slide.window(windows[index].center_xy_l0, hw, um_px)
                copied[index] = shifted_inside(same_place, self._slide.size_xy_l0)

        def in_threads(work: Callable[[int], Any]) -> Stage:
            def run(indices: Sequence[int]) -> None:
                parts = [indices[worker::workers] for worker in range(workers)]
                with ThreadPoolExecutor(workers) as pool:
                    list(pool.map(lambda part: [work(i) for i in part], parts))

            return run

        def vips(index: int) -> None:
            x, y = (round(v) for v in copied[index].corner_xy_l0)
            # Each worker has a handle of its own: index parity names it.
            self._vips[index % workers].fetch(0, (x, y), (self._size, self._size))

        return {
            "": prepare,  # not a stage: the limit includes only decoding
            "decode": in_threads(lambda i: self._decoder.decode(windows[i])),
            "libvips": in_threads(vips),
            "copy": in_threads(lambda i: self._slide.read(copied[i])),
            "read": in_threads(lambda i: self._slide.read(windows[i])),
            "patch": in_threads(lambda i: draw(sampler, reader, i)),
            "feed": lambda indices: self._feed(indices, sampler, reader, workers),
            "cached": lambda indices: self._feed(indices, sampler, reader, workers, tiled_tiff.CACHE_BYTES),
        }

    def _feed(
        self, indices: Sequence[int], sampler: RequestSource, reader: PatchReader, workers: int, cache: int = 0
    ) -> tuple[float, float]:
        """Wall and CPU seconds of a pipeline that is running: neither its start nor its filling and draining."""
        from training.step import scaled

        tiled_tiff.tile_cache.resize(cache)
        batch = 2 if self._size >= 1024 else 8
        ahead = (PREFETCH + 1) * batch + workers  # most patches that can be under way
        ahead += -ahead % batch
        spare = 10**6  # indices that no stage measures
        order = [*range(spare, spare + ahead), *indices, *range(spare, spare + ahead)]
        feed = iter(Feed(lambda i: draw(sampler, reader, i), order, batch, self._size, workers))

        def take(patches: int) -> None:
            for image_BHWC, _, _ in itertools.islice(feed, patches // batch):
                scaled(image_BHWC)

        take(ahead)
        start, cpu = time.perf_counter(), time.process_time()
        take(len(indices))
        times = time.perf_counter() - start, time.process_time() - cpu
        take(ahead)
        tiled_tiff.tile_cache.resize(0)
        return times


def measure(bench: Bench, img_size: int, workers: int, kind: str, rounds: int) -> list[Row]:
    """Run all stages in turn, `rounds` times and once before to warm up; one row per stage."""
    stages = bench.stages(workers, kind)
    count = PATCHES[img_size]
    wall: dict[str, list[float]] = {name: [] for name in stages}
    core: dict[str, list[float]] = {name: [] for name in stages}
    for number in range(rounds + 1):
        indices = range(number * count, (number + 1) * count)
        for name, run in stages.items():
            start, cpu = time.perf_counter(), time.process_time()
            times = run(indices) or (time.perf_counter() - start, time.process_time() - cpu)
            if number:
                wall[name].append(times[0])
                core[name].append(times[1])
    rows = []
    for name in list(stages)[1:]:
        ratios = np.array(wall["decode"]) / np.array(wall[name])
        speed = count / float(np.median(wall[name]))
        rows.append(
            Row(
                img_size, workers, kind, name, speed, speed * img_size**2 * 3 / 1e6,
                float(np.median(ratios)), float(ratios.min()), float(ratios.max()),
                float(np.median(np.array(core["decode"]) / np.array(core[name]))),
                float(np.median(np.array(core[name]) / np.array(core["copy"]))),
            )
        )  # fmt: skip
    return rows


def label_ms(
    truths: dict[str, Truth], samplers: dict[str, RequestSource], slide: Slide, um_px: float
) -> dict[str, float]:
    """Median time of one label of 1024 px, ms, by kind of truth."""
    times = {}
    for kind, truth in truths.items():
        reader = PatchReader([slide], [truth], 1024, um_px)
        taken = []
        for index in range(60):
            window = reader.window(samplers[kind].request(index))
            start = time.perf_counter()
            truth.label(window)
            taken.append(time.perf_counter() - start)
        times[kind] = float(np.median(taken)) * 1e3
    return times


def resident_mb(sampler: RequestSource, reader: PatchReader, patches: int) -> tuple[float, float]:
    """Of a long feed: MB at its end, and MB per 1000 patches (least squares, without the first fifth)."""
    tiled_tiff.tile_cache.resize(tiled_tiff.CACHE_BYTES)
    process = psutil.Process()
    seen: list[tuple[int, float]] = []

    def indices() -> Iterator[int]:
        yield from range(10**6, 10**6 + patches + 64)

    feed = Feed(lambda i: draw(sampler, reader, i), indices, 2, reader.img_size, 2)
    for number, _ in enumerate(feed):
        if number % 25 == 0:
            seen.append((number * 2, process.memory_info().rss / 1e6))
        if number * 2 >= patches:
            break
    late = np.array(seen)[len(seen) // 5 :]
    return seen[-1][1], float(np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1000)


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description="measure the input pipeline against the decoding of its tiles")
    parser.add_argument("--data", type=Path, required=True, help="folder of the big slide; made where missing")
    parser.add_argument("--texture", type=Path, help="slide to make it of; default synthetic tissue")
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted(PATCHES), choices=sorted(PATCHES))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--um_px", type=float, default=UM_PX, help="spacing of the slide (default: %(default)s)")
    parser.add_argument("--resolution", type=float, default=RESOLUTION, help="of patches (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_patches", type=int, default=5000, help="0 leaves this measurement out")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tiled_tiff.tile_cache.resize(0)
    slide_path, xml, mask = make(arguments.data, texture=arguments.texture)
    slide = Slide(slide_path, um_px=arguments.um_px)
    truths = {"xml": open_truth(xml, slide), "mask": open_truth(mask, slide)}
    samplers = {
        kind: build("radboud", [index_slide(slide, t, 4, CLASSES)], SEED, CLASSES, None) for kind, t in truths.items()
    }
    times = label_ms(truths, samplers, slide, arguments.resolution)
    print(f"label of 1024 px: {times['xml']:.2f} ms from outlines, {times['mask']:.2f} ms from the mask\n")
    print("   px workers truth stage    patches/s   MB/s  wall  spread       core  by copy")
    rows = []
    for img_size in arguments.sizes:
        bench = Bench(slide, truths, samplers, img_size, arguments.resolution)
        for kind in truths:
            for workers in arguments.workers:
                found = measure(bench, img_size, workers, kind, arguments.rounds)
                rows += found
                print("\n".join(map(line, found)), flush=True)
    result: dict[str, Any] = {
        "slide": "16384 px, 512 px JPEG tiles", "um_px": arguments.um_px, "resolution": arguments.resolution,
        "label_ms_1024": times, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    if len(set(arguments.workers) & {1, 2}) == 2:
        result["speed_up_2_workers"] = speed_up(rows)
    if arguments.memory_patches:
        reader = PatchReader([slide], [truths["xml"]], 1024, arguments.resolution)
        end, slope = resident_mb(samplers["xml"], reader, arguments.memory_patches)
        result |= {"resident_mb": end, "resident_mb_per_1000_patches": slope}
        print(
            f"\nresident memory after {arguments.memory_patches} patches {end:.0f} MB, {slope:+.2f} MB per 1000 patches"
        )
    if arguments.json:
        report.write(arguments.json, result)


def line(row: Row) -> str:
    """A row of the table as text."""
    return (
        f"{row.img_size:>5} {row.workers:>7} {row.truth:>5} {row.stage:<8} {row.patches_per_s:>9.1f} "
        f"{row.mb_per_s:>6.0f} {row.wall:>5.2f}  {row.wall_low:.2f}-{row.wall_high:<6.2f} {row.core:>5.2f} "
        f"{row.by_copy:>8.2f}"
    )


def speed_up(rows: Sequence[Row]) -> dict[str, float]:
    """Patches/s with 2 workers by those with 1, printed and returned."""
    speeds = {(r.img_size, r.truth, r.stage, r.workers): r.patches_per_s for r in rows}
    found = {}
    print("\n2 workers against 1:")
    for size, kind, stage, workers in speeds:
        if workers == 1 and (size, kind, stage, 2) in speeds:
            name = f"{size} {kind} {stage}"
            found[name] = speeds[size, kind, stage, 2] / speeds[size, kind, stage, 1]
            print(f"  {name:<20} {found[name]:.2f}")
    return found


if __name__ == "__main__":
    main()
