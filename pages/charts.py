"""Curves and confusion matrices as HTML and inline SVG, without scripts; colors come from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 42
_MAX_POINTS = 400


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: quantity, with its unit.
        low, high: its ends.
        ticks: values with a line and a number.
        log: whether the scale is logarithmic; values below `low` are drawn at `low`.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value between both ends, 0 to 1."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


SHARE_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def chart(
    points: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
    label: str,
    marks: Sequence[tuple[float, float]] = (),
    diagonal: bool = False,
    second: Sequence[tuple[float, float]] = (),
) -> str:
    """Draw a curve through points as an SVG element.

    Args:
        points: (x, y) along the curve.
        x: horizontal axis.
        y: vertical axis.
        label: text for screen readers.
        marks: points that get a dot.
        diagonal: draw the line of a random ranking.
        second: (x, y) along another curve, in another color.
    """

    def at(px: float, py: float) -> str:
        across = _LEFT + x.share(px) * (WIDTH - _LEFT - _RIGHT)
        return f"{across:.1f},{HEIGHT - _BOTTOM - y.share(py) * (HEIGHT - _TOP - _BOTTOM):.1f}"

    parts = []
    for tick in x.ticks:
        across, base = at(tick, y.low).split(",")
        parts.append(f'<line class="grid" x1="{across}" x2="{across}" y1="{_TOP}" y2="{base}"/>')
        parts.append(f'<text x="{across}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        start, height = at(x.low, tick).split(",")
        parts.append(f'<line class="grid" x1="{start}" x2="{WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(height) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.title)}</text>')
    turn = f"rotate(-90 12 {HEIGHT / 2 - 14:.0f})"
    parts.append(
        f'<text x="12" y="{HEIGHT / 2 - 14:.0f}" text-anchor="middle" transform="{turn}">{escape(y.title)}</text>'
    )
    if diagonal:
        parts.append(f'<polyline class="chance" points="{at(x.low, y.low)} {at(x.high, y.high)}"/>')
    for kind, line in (("curve", points), ("curve second", second)):
        shown = [at(*point) for point in thinned(line)]
        if shown:
            parts.append(f'<polyline class="{kind}" points="{" ".join(shown)}"/>')
        if len(shown) == 1:
            # A line of one point would not be seen.
            cx, cy = shown[0].split(",")
            parts.append(f'<circle class="mark{kind.removeprefix("curve")}" cx="{cx}" cy="{cy}" r="3.5"/>')
    for mark in marks:
        cx, cy = at(*mark).split(",")
        parts.append(f'<circle class="mark" cx="{cx}" cy="{cy}" r="3.5"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def nice_axis(
    title: str, values: Sequence[float], low: float | None = None, high: float | None = None, log: bool = False
) -> Axis:
    """Return an axis over values with round ticks.

    Args:
        title: quantity, with its unit.
        values: what is drawn; values that are not finite do not count, nor those of 0 and less on a logarithmic scale.
        low: fixed lower end; None: by the values.
        high: fixed upper end; None: by the values.
        log: whether the scale is logarithmic.
    """
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    if log:
        first, last = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
        last = max(last, first + 1)
        every = max(1, math.ceil((last - first) / 6))
        return Axis(title, 10.0**first, 10.0**last, tuple(10.0**n for n in range(first, last + 1, every)), log=True)
    bottom = min(finite) if low is None else low
    top = max(*finite, bottom) if high is None else high
    top = top if top > bottom else bottom + (abs(bottom) or 1.0)
    rough = (top - bottom) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 2.5, 5, 10) if size * times >= rough * (1 - 1e-9))
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    ticks = tuple(float(f"{n * step:.12g}") for n in range(first, last + 1))
    return Axis(title, ticks[0], ticks[-1], ticks)


def thinned(points: Sequence[tuple[float, float]], most: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Thin a curve to about `most` points including both ends; points that are not finite are dropped."""
    finite = [point for point in points if all(math.isfinite(value) for value in point)]
    step = max(1, math.ceil(len(finite) / most))
    kept = finite[::step]
    return kept if not finite or kept[-1] == finite[-1] else [*kept, finite[-1]]


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str], caption: str, unit: str) -> str:
    """Format a confusion matrix as a table: rows truth, columns prediction, shaded by the share of the row.

    Args:
        counts: (K, K).
        names: names of the K classes.
        caption: heading.
        unit: what is counted.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = []
    for name, row in zip(names, counts, strict=True):
        total = sum(row)
        cells = []
        for count in row:
            share = count / total if count else 0.0
            percent = f"<small>{share:.1%}</small>" if count else ""
            cells.append(f'<td style="--share:{share * 100:.0f}%"><b>{short(count)}</b>{percent}</td>')
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f"<figure><figcaption>{escape(caption)} <small>{escape(unit)}; rows truth, columns prediction; % of the row"
        f'</small></figcaption><div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></figure>"
    )


def short(count: int) -> str:
    """Format a count that fits into a cell."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (size if letter != 'k' else 1000):.3g}{letter}"
    return str(count)
