"""A picture of one prediction: the slide, tumor probability over it, outlines, a legend and a scale bar.

Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from inference.annotations import color_of, rgb_of
from inference.maps import Maps
from inference.polygons import Region
from options.choices import OverlayStyle
from slides.filled import least_side, read_or_fill
from slides.geometry import Window, lv_from_l0, pixel_centers_l0
from slides.reader import Slide
from system.atomic_files import write_bytes

Picture = NDArray[np.uint8]
SIDE_PX = 2048
# Dark blue over green to yellow: lightness increases throughout, and nearly everybody can distinguish its ends.
COLOR_MAP = cv2.COLORMAP_VIRIDIS
# Tissue stays visible through the colors; below the first probability there is none, from the second on the most.
MOST_OPAQUE, CLEAR_BELOW, OPAQUE_FROM = 0.55, 0.05, 0.5
TRUTH_COLOR = "#000000"
LINE_PX, HALO_PX = 2, 5
# Sub-px places of OpenCV's lines: 1 / 16 px.
SHIFT = 4
# Single cells are seen at this spacing and finer; colors over them would hide what they look like.
CELLS_UM_PX = 1.0
LONGEST_NAME = 80
FONT_PX, MARGIN_PX, BAR_PX = 22, 24, 26
SCALE_BARS_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def overlay(
    slide: Slide,
    maps: Maps,
    found: Sequence[Region],
    truth: Mapping[int, Sequence[shapely.Polygon]] | None = None,
    side_px: int = SIDE_PX,
    style: OverlayStyle = "auto",
    finding: bool = True,
) -> Picture:
    """Draw the slide with its prediction.

    Args:
        slide: the slide.
        maps: its maps.
        found: predicted regions, outlined in the color of their class.
        truth: class to true regions (level-0 px), outlined in black over white; None where the truth is unknown.
        side_px: longer side of the thumbnail; smaller slides are not enlarged.
        style: "color" lays the probability over the tissue, "outline" leaves the tissue as it is; "auto" is "outline"
            at `CELLS_UM_PX` and finer.
        finding: whether anything was found; the legend states where nothing was.

    Returns:
        image_HWC: the thumbnail above the slide's name and a legend. White where the slide cannot be read, as the
            legend states.
    """
    width, height = slide.size_xy_l0
    step = max(1.0, max(width, height) / side_px)
    window = Window((0.0, 0.0), (max(1, round(height / step)), max(1, round(width / step))), (step, step))
    notes = [] if finding else ["no finding"]
    # The prediction is worth seeing also without its background.
    image_HWC, _, lost = read_or_fill(slide.read, window, least_side(slide, window))
    image_HWC = image_HWC.copy()
    if lost:
        notes.append("slide unreadable here" if lost == image_HWC[..., 0].size else "white where slide unreadable")
    mm_px = step * slide.um_px_xy_l0[0] / 1000
    colored = style == "color" or (style == "auto" and mm_px * 1000 > CELLS_UM_PX)
    if colored:
        blend(image_HWC, _sampled(maps, window))
    for polygons in (truth or {}).values():
        _outline(image_HWC, polygons, window, TRUTH_COLOR)
    for cls in range(1, maps.classes):
        _outline(image_HWC, [region.polygon for region in found if region.cls == cls], window, color_of(cls))
    lines = [(color_of(cls), f"predicted {maps.class_names[cls]}") for cls in range(1, maps.classes)]
    if truth is not None:
        lines.append((TRUTH_COLOR, "truth"))
    quantity = "tumor probability" if colored else ""
    return above(image_HWC, legend(image_HWC.shape[1], lines, notes, mm_px, slide.id, quantity))


def write_overlay(path: Path, image_HWC: Picture) -> None:
    """Write a picture as PNG, completely or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _sampled(maps: Maps, window: Window) -> NDArray[np.uint8]:
    """Map px under the centers of a window that covers the slide, from the nearest level at least as fine."""
    fine = [level for level in maps.probability.levels if max(level.step_xy_l0) <= max(window.step_xy_l0)]
    # A map coarser than the picture, or one without levels: what fits in memory.
    level = max(fine[-1:] or maps.probability.levels[:1], key=lambda level: level.index)
    level = max(level, maps.probability.finest(), key=lambda level: level.index)
    x_l0, y_l0 = pixel_centers_l0(window)
    columns, rows = (
        np.minimum((along / step).astype(np.int64), size - 1)
        for along, step, size in zip((x_l0, y_l0), level.step_xy_l0, level.size_xy, strict=True)
    )
    sampled_HW: NDArray[np.uint8] = maps.probability.whole(level)[rows][:, columns]
    return sampled_HW


def blend(image_HWC: Picture, probability_HW: NDArray[np.uint8]) -> None:
    """Lay colors over an image, in place, the more opaque the more probable (0 to 255)."""
    share = (np.arange(256) / 255 - CLEAR_BELOW) / (OPAQUE_FROM - CLEAR_BELOW)
    opacity = (MOST_OPAQUE * np.clip(share, 0, 1)).astype(np.float32)
    colors = _colors(np.arange(256)).astype(np.float32)
    rows = 256
    for top in range(0, image_HWC.shape[0], rows):
        part, value = image_HWC[top : top + rows], probability_HW[top : top + rows]
        weight = opacity[value][..., None]
        part[:] = np.rint(part * (1 - weight) + colors[value] * weight).astype(np.uint8)


def _colors(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """RGB of probabilities 0 to 255, shape (..., 3)."""
    table = np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], COLOR_MAP), np.uint8)[:, 0, ::-1]
    colors: NDArray[np.uint8] = table[values]
    return colors


def _outline(image_HWC: Picture, polygons: Sequence[shapely.Polygon], window: Window, color: str) -> None:
    """Draw outlines with a white border, in place, so that they stand out on any color."""
    rings = []
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.interiors):
            # OpenCV's integer coordinates are centers of px, ours are their corners.
            xy_out = lv_from_l0(shapely.get_coordinates(ring), window.step_xy_l0) - 0.5
            rings.append(np.rint(xy_out * 2**SHIFT).astype(np.int32))
    for rgb, thickness in (((255, 255, 255), HALO_PX), (rgb_of(color), LINE_PX)):
        cv2.polylines(
            image_HWC, rings, isClosed=True, color=rgb, thickness=thickness, lineType=cv2.LINE_AA, shift=SHIFT
        )


def above(image_HWC: Picture, legend_HWC: Picture) -> Picture:
    """Put an image above its legend, the narrower one widened with white."""
    wide = max(image_HWC.shape[1], legend_HWC.shape[1])
    return np.concatenate([_widened(image_HWC, wide), _widened(legend_HWC, wide)])


def legend(
    width: int,
    lines: Sequence[tuple[str, str]],
    notes: Sequence[str],
    mm_px: float | None,
    name: str = "",
    quantity: str = "tumor probability",
) -> Picture:
    """Draw the legend in as many rows as the width needs.

    Args:
        width: width of the picture, px.
        lines: color and meaning of each kind of outline.
        notes: further text.
        mm_px: millimeters per px of the picture; None where it is not known, and there is no scale bar.
        name: the slide's, in a row of its own.
        quantity: what the colors show, from 0 to 1; empty where there are none.
    """
    font = ImageFont.load_default(FONT_PX)
    cells = []
    if mm_px is not None:
        bar_mm = max((mm for mm in SCALE_BARS_MM if mm / mm_px <= max(width, 300) / 5), default=SCALE_BARS_MM[0])
        cells.append(_scale_bar(bar_mm, mm_px, font))
    cells += [_color_bar(font, quantity)] if quantity else []
    cells += [_line_sample(color, text, font) for color, text in lines]
    cells += [_text(note, font) for note in notes]
    rows: list[list[Image.Image]] = [[]]
    for cell in cells:
        if rows[-1] and sum(c.width + MARGIN_PX for c in rows[-1]) + cell.width + MARGIN_PX > width:
            rows.append([])
        rows[-1].append(cell)
    if name:
        rows.insert(0, [_text(_shortened(name), font)])
    wide = max([width, *(MARGIN_PX + sum(c.width + MARGIN_PX for c in row) for row in rows)])
    row_px = FONT_PX * 2
    panel = Image.new("RGB", (wide, row_px * len(rows) + MARGIN_PX), "white")
    for number, row in enumerate(rows):
        left = MARGIN_PX
        for cell in row:
            panel.paste(cell, (left, MARGIN_PX // 2 + number * row_px + (row_px - cell.height) // 2))
            left += cell.width + MARGIN_PX
    return np.asarray(panel)


def _scale_bar(mm: float, mm_px: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    length = max(1, round(mm / mm_px))
    text = _text(f"{mm:g} mm", font)
    cell = Image.new("RGB", (length + 10 + text.width, BAR_PX), "white")
    middle = BAR_PX // 2
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, middle - 2, length - 1, middle + 2), fill="black")
    for x in (0, max(0, length - 3)):
        draw.rectangle((x, middle - 8, x + 2, middle + 8), fill="black")
    cell.paste(text, (length + 10, (BAR_PX - text.height) // 2))
    return cell


def _color_bar(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, quantity: str) -> Image.Image:
    before, low, high = (_text(text, font) for text in (quantity, "0", "1"))
    cell = Image.new("RGB", (before.width + low.width + 256 + high.width + 24, BAR_PX), "white")
    left = 0
    for part in (before, low, None, high):
        if part is None:
            ramp = np.broadcast_to(_colors(np.arange(256)), (BAR_PX - 6, 256, 3))
            cell.paste(Image.fromarray(np.ascontiguousarray(ramp)), (left, 3))
            left += 256 + 8
        else:
            cell.paste(part, (left, (BAR_PX - part.height) // 2))
            left += part.width + 8
    return cell


def _line_sample(color: str, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    words = _text(text, font)
    cell = Image.new("RGB", (50 + words.width, BAR_PX), "white")
    ImageDraw.Draw(cell).rectangle((0, BAR_PX // 2 - 2, 40, BAR_PX // 2 + 1), fill=color)
    cell.paste(words, (50, (BAR_PX - words.height) // 2))
    return cell


def _shortened(name: str) -> str:
    """Return a name that fits into a line; bytes that are not text become question marks."""
    shown = name.encode("utf-8", "replace").decode("utf-8")
    half = LONGEST_NAME // 2
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: half - 2]} ... {shown[3 - half :]}"


def _text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    right = int(np.ceil(font.getlength(text)))
    words = Image.new("RGB", (max(1, right), BAR_PX + 2), "white")
    ImageDraw.Draw(words).text((0, 1), text, fill="black", font=font)
    return words


def _widened(image_HWC: Picture, width: int) -> Picture:
    """Add white on the right up to a width."""
    widened: Picture = np.pad(image_HWC, ((0, 0), (0, width - image_HWC.shape[1]), (0, 0)), constant_values=255)
    return widened
