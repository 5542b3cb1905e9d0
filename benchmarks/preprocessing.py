"""The steps of preprocessing on one large slide, against the decoding of its tiles.

python -m benchmarks.preprocessing --data DIR [--texture SLIDE.tif] [--side 8192] [--rounds 3] [--json FILE]

Patches of 1024 px at level 0, all read, judged and written (--save_neg) into DIR. "decode" only reads the same windows;
"decode, encode" also encodes them as PNG or JPEG: no extraction can be faster. "truth" opens the annotations (115,200
vertices), which every step does once per slide. Seconds of CPU time of this process; the tile cache is emptied before
each measurement. Then wall times of whole runs (check, tissue, patches, manifest) over copies of the slide, with 1 to N
processes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from benchmarks import report
from benchmarks.big_slide import UM_PX, make
from cohorts.pairing import Case
from preprocessing import check, extract_patches, manifest, tissue
from preprocessing.__main__ import main as prepare
from preprocessing.overview import read_cells
from preprocessing.patch_grid import Grid
from preprocessing.patch_writers import FORMATS, Encoder
from slides.tiff import tiled_tiff
from slides.truth.reading import Reading

SIDE_PX = 1024


def timed(action: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median, least and most seconds of CPU time for an action that starts with an empty tile cache."""
    seconds = []
    for _ in range(rounds):
        tiled_tiff.tile_cache.resize(0)
        tiled_tiff.tile_cache.resize(tiled_tiff.CACHE_BYTES)
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}


def dropped(made: Iterable[Any]) -> None:
    """Consume an iterable without keeping its items."""
    for _ in made:
        pass


def steps(case: Case, out: Path, rounds: int) -> dict[str, Any]:
    """Seconds of every step on one slide, and of the decoding and encoding that any extraction needs."""
    reading = Reading()
    slide = reading.open_slide(case.slide_path, case.um_px)
    found: dict[str, Any] = {
        "truth": timed(lambda: reading.open_truth(case.label_path, slide), rounds),
        "check": timed(lambda: check.make(case, out, check.Options(reading, UM_PX)), rounds),
        "tissue": timed(lambda: tissue.make(case, out, tissue.Options(reading)), rounds),
        "manifest": timed(lambda: manifest.make(case, out, manifest.Options(reading)), rounds),
    }
    cells_HW, cell_l0 = read_cells(tissue.mask_path(out, case.slide_id), slide)
    tumor_HW = reading.open_truth(case.label_path, slide).label_max(cell_l0, 1)
    places, _ = Grid(SIDE_PX, SIDE_PX, UM_PX, 0.05).places(slide, cells_HW, tumor_HW, cell_l0)
    truth, options = (
        reading.open_truth(case.label_path, slide),
        extract_patches.Options(reading, SIDE_PX, UM_PX, SIDE_PX, save_neg=True),
    )
    # Whether a place is written: glass is only read.
    kept = [extract_patches.judge(place, slide, truth, options)[2] is not None for place in places]
    found["decode"] = timed(lambda: dropped(slide.read(place.window) for place in places), rounds)

    def decode_encode(encoder: Encoder) -> None:
        for place, written in zip(places, kept, strict=True):
            image_HWC = slide.read(place.window)
            if written:
                encoder.image(image_HWC)

    for codec in ("png", "jpeg"):
        found[f"decode, encode {codec}"] = timed(partial(decode_encode, Encoder(codec, 95)), rounds)
    for name in FORMATS:
        options = extract_patches.Options(reading, SIDE_PX, UM_PX, SIDE_PX, save_neg=True, format=name)
        found[name] = timed(lambda options=options: extract_patches.make(case, out, options), rounds)
    found["patches"], found["written"] = len(places), sum(kept)
    return found


def whole_runs(slide: Path, label: Path, folder: Path, copies: int, processes: list[int]) -> list[dict[str, float]]:
    """Wall times of whole runs over links to the slide."""
    for number in range(copies):
        for source, kind in ((slide, "img"), (label, "xml")):
            link = folder / kind / f"tumor_{number}{source.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.hardlink_to(source)
    rows = []
    for count in processes:
        out = folder / f"out{count}"
        shutil.rmtree(out, ignore_errors=True)
        arguments = ["--slide_path", str(folder / "img"), "--label_path", str(folder / "xml"), "--label_format", "xml"]
        arguments += ["--out", str(out), "--num_processes", str(count), "--save_neg", "--format", "jpeg"]
        start = time.perf_counter()
        assert prepare(arguments) == 0
        rows.append({"processes": count, "slides": copies, "seconds": time.perf_counter() - start})
        shutil.rmtree(out)
    return rows


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="measure the steps of preprocessing against decoding")
    parser.add_argument("--data", type=Path, required=True, help="folder of the big slide; created if missing")
    parser.add_argument("--texture", type=Path, help="slide to compose it of; default: synthetic tissue")
    parser.add_argument("--side", type=int, default=8192, help="side of the big slide, level-0 px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=4, help="slides of the whole runs; 0 skips them")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    slide, xml, _ = make(arguments.data, arguments.side, arguments.texture)
    out = arguments.data / "out"
    shutil.rmtree(out, ignore_errors=True)
    found = steps(Case(slide.stem, slide, xml), out, arguments.rounds)
    patches, written, truth = found.pop("patches"), found.pop("written"), found["truth"]["median_s"]
    print(
        f"{arguments.side} x {arguments.side} px, {patches} places of {SIDE_PX} px, {written} written; medians of "
        f"{arguments.rounds}"
    )
    for name, times in found.items():
        seconds = times["median_s"]
        line = f"{name:<20} {seconds:6.2f} s"
        if name in FORMATS:
            # All formats but png write JPEG images.
            limit = found[f"decode, encode {'png' if name == 'png' else 'jpeg'}"]["median_s"]
            rest = seconds - truth
            line += (
                f"  {1000 * rest / patches:5.1f} ms a place without truth, {limit / rest:4.0%} of it decode and encode"
            )
        elif name.startswith("decode"):
            line += f"  {1000 * seconds / patches:5.1f} ms a place"
        print(line)
    result: dict[str, Any] = {
        "side": arguments.side,
        "rounds": arguments.rounds,
        "patches": patches,
        "one_slide": found,
    }
    result["peak_resident_mb"] = report.peak_resident_bytes() / 1e6
    print(f"peak memory  {result['peak_resident_mb']:.0f} MB")
    if arguments.copies:
        result["whole_runs"] = whole_runs(slide, xml, arguments.data, arguments.copies, arguments.processes)
        for row in result["whole_runs"]:
            print(f"{row['processes']} processes, {row['slides']} slides: {row['seconds']:.1f} s")
    if arguments.json:
        report.write(arguments.json, result)


if __name__ == "__main__":
    main()
