"""Draw docs/pictures/streaming_*.png: tiles, boxes and regions, as `streaming` lays out a ResNet-18 over a slide.

python -m benchmarks.streaming_pictures --out docs/pictures

Everything drawn is read from the layout: nothing is sketched by hand.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from models import resnet
from slides.synthetic.demo import rasterized
from slides.synthetic.texture import STAINS, blob, stained_tissue
from streaming import Streamed
from streaming.layout import Part

HW = (704, 1120)
WHOLE_TILE, PARTS_TILE = 640, (256, 80)
LATE, KEPT = "layer4_1", "layer2_1"
COLORS = ("#d62728", "#1f77b4")  # of the two tiles that are followed
SHOWN = ("image", "conv1", "maxpool", "layer1_1", "layer2_1", "layer3_1", "layer4_1")


def boxes_of(part: Part, place: int = 0) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Rows and columns of all boxes of a map."""
    return [(row.boxes[place], column.boxes[place]) for row in part.rows for column in part.columns]


def windows_of(part: Part) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Rows and columns that all tiles need of the first input."""
    index = part.segment.inputs[0].index
    return [(row.held[index], column.held[index]) for row in part.rows for column in part.columns]


def outline(axes: Axes, rows: tuple[int, int], columns: tuple[int, int], **how: Any) -> None:
    """One rectangle."""
    size = columns[1] - columns[0], rows[1] - rows[0]
    axes.add_patch(Rectangle((columns[0], rows[0]), *size, **{"fill": False, "lw": 0.8, "ec": "black", **how}))


def panel(axes: Axes, hw: tuple[int, int], rectangles: list[Any], title: str, image_HWC: Any = None) -> None:
    """A map with its windows or boxes, two of them in color."""
    if image_HWC is None:
        image_HWC = np.full((*hw, 3), 0.96)
    axes.imshow(image_HWC, extent=(0, hw[1], hw[0], 0), alpha=0.55, interpolation="bilinear")
    for rows, columns in rectangles:
        outline(axes, rows, columns, ec="#555555", lw=0.5)
    # The first tile, and one inside.
    across = len({columns for _, columns in rectangles})
    inside = len(rectangles) // across // 2 * across + across // 2
    for number, color in zip((0, inside), COLORS, strict=True):
        rows, columns = rectangles[number]
        outline(axes, rows, columns, ec=color, lw=2)
        outline(axes, rows, columns, fill=True, fc=color, alpha=0.22, lw=0)
    axes.set(title=title, xlim=(-hw[1] * 0.01, hw[1] * 1.01), ylim=(hw[0] * 1.01, -hw[0] * 0.01))
    axes.title.set_fontsize(8.5)
    axes.tick_params(labelsize=7)
    axes.locator_params(integer=True)


def tiles_picture(network: Any, image_HWC: Any, path: Path) -> None:
    """Windows overlap, boxes do not; below, the same in two segments."""
    figure, ((a, b, c), (d, e, f)) = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    one = Streamed(network, LATE, WHOLE_TILE).layout(HW)
    (part,) = one.parts
    late = part.segment.maps[0].index
    late_hw = (one.sizes[0][late], one.sizes[1][late])
    panel(a, HW, windows_of(part), f"image {HW[0]} x {HW[1]} px: windows of {WHOLE_TILE} px at most overlap", image_HWC)
    panel(b, late_hw, boxes_of(part), f"late map {late_hw[0]} x {late_hw[1]} cells: boxes share it out")
    c.axis("off")
    c.text(0, 0.98, legend(part), va="top", fontsize=8, linespacing=1.5)
    two = Streamed(network, LATE, PARTS_TILE, [KEPT]).layout(HW)
    first, second = two.parts
    kept = first.segment.maps[0].index
    kept_hw = (two.sizes[0][kept], two.sizes[1][kept])
    panel(d, HW, windows_of(first), f"segment 1 reads the image: windows of {PARTS_TILE[0]} px", image_HWC)
    panel(e, kept_hw, boxes_of(first), f"and writes {KEPT}, {kept_hw[0]} x {kept_hw[1]} cells, which is kept")
    panel(f, kept_hw, windows_of(second), f"segment 2 reads that: windows of {PARTS_TILE[1]} cells")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def legend(part: Part) -> str:
    """What one sees above, as text with the numbers of the layout."""
    (rows, columns), (box_rows, box_columns) = windows_of(part)[0], boxes_of(part)[0]
    return (
        f"ResNet-18 to {LATE}, {len(part.rows)} x {len(part.columns)} tiles\n\n"
        f"red: the first box has {box_rows[1] - box_rows[0]} x {box_columns[1] - box_columns[0]} cells\n"
        f"and needs {rows[1] - rows[0]} x {columns[1] - columns[0]} px of the image.\n"
        "At the image's sides the padding of every layer\n"
        "stands where the whole image has it.\n\n"
        "Below: the same network in two segments.\n"
        "A cell looks less far in each of them,\n"
        "so windows are small and overlap little."
    )


def regions_picture(network: Any, path: Path) -> None:
    """What two boxes need of every map along the columns: padding at the border, none inside."""
    layout = Streamed(network, LATE, WHOLE_TILE).layout(HW)
    (part,) = layout.parts
    values = {value.name: value for value in layout.graph.values}
    names = [name for name in SHOWN if name in values]
    figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
    followed = (part.columns[0], part.columns[len(part.columns) // 2])
    for line, name in enumerate(names):
        index = values[name].index
        scale = HW[1] / layout.sizes[1][index]
        axes.barh(line, HW[1], height=0.7, color="#eeeeee", ec="#888888", lw=0.6)
        for place, (band, color) in enumerate(zip(followed, COLORS, strict=True)):
            lo, hi = band.held[index]
            at = line + (0.17 if place else -0.17)
            axes.barh(at, (hi - lo) * scale, left=lo * scale, height=0.32, color=color, alpha=0.6)
            before, after = padding_of(layout, band, index)
            for first, count in ((lo - before, before), (hi, after)):
                axes.barh(
                    at, count * scale, left=first * scale, height=0.32, color="white", ec=color, hatch="/////", lw=0.8
                )
        cells = "px" if index == 0 else "cells"
        axes.text(HW[1] * 1.01, line, f"{layout.sizes[1][index]} {cells}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(-40, HW[1] * 1.09), xlabel="column, px of the image")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [Patch(fc=color, alpha=0.6, label=f"a box {where}") for color, where in
               zip(COLORS, ("at the border and what it needs", "inside and what it needs"), strict=True)]  # fmt: skip
    handles.append(Patch(fc="white", ec=COLORS[0], hatch="/////", label="zeros that the next layer pads with"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def padding_of(layout: Any, band: Any, index: int) -> tuple[int, int]:
    """Cells of padding that consumers of a map put before and behind what a band holds of it, the most of them."""
    (part,) = layout.parts
    edge, most = 0, (0, 0)
    for node in part.segment.nodes:
        for value in node.inputs:
            if value.rank == 4:
                if value.index == index:
                    before, after = (int(v) for v in band.cuts[edge][2:])
                    most = max(most[0], before), max(most[1], after)
                edge += 1
    return most


def synthetic_slide() -> Any:
    """Synthetic tissue on glass."""
    rng = np.random.default_rng(4)
    places = ((550, 350), (430, 260)), ((680, 320), (150, 110))  # center and radius of tissue and tumor
    rings = [blob(rng, np.array(center_xy), np.array(radius_xy), 0.2) for center_xy, radius_xy in places]
    tissue_HW, tumor_HW = (rasterized([("_0", ring)], HW[::-1]) for ring in rings)
    return stained_tissue(rng, tissue_HW, tumor_HW & tissue_HW, next(iter(STAINS.values())))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    out = parser.parse_args().out
    network = resnet.build("resnet18", 2, width=8)
    image_HWC = synthetic_slide()
    tiles_picture(network, image_HWC, out / "streaming_tiles.png")
    regions_picture(network, out / "streaming_regions.png")


if __name__ == "__main__":
    main()
