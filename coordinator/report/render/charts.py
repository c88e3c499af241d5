"""Draw SVG charts from numbers. Colours are CSS classes, so that the page's style sheet decides between light and dark.

Every chart is 380 units wide, the width of a phone, so that its text is readable there; several fit in a row on a desktop.
A `style` is the number of a palette colour, 0 to 5 (6 is the colour of text), and may carry the modifier `dash` or `faint`: "1 dash".
A dash also distinguishes a curve where colours cannot be distinguished.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from coordinator.report.model import Floats
from ingest.console import printable_lines

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 26, 38
CHARACTER = 7.0  # approximate width of a character of text 12 units high


@dataclass(frozen=True)
class Line:
    """A curve; NaN breaks it."""

    name: str
    x: Floats
    y: Floats
    style: str = "0"
    step: bool = False  # a value holds until the next
    dots: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """The swatch and name of this curve in a key."""
        return f"l{self.style}", self.name


@dataclass(frozen=True)
class Band:
    """An area between two curves."""

    name: str
    x: Floats
    low: Floats
    high: Floats
    style: str = "0"


@dataclass(frozen=True)
class Part:
    """One layer of stacked columns, a value per column. Values below 0 are drawn downwards from the axis in the first layer."""

    name: str
    values: Floats
    style: str = "0"


@dataclass(frozen=True)
class Axis:
    """An axis. `every` is the distance of ticks if the unit has one (24 hours, 12 months); otherwise it is at least `least`."""

    label: str
    every: float | None = None
    least: float = 0.0
    zero: bool = False  # 0 is always in view
    plain: bool = False  # years: no thousands separator
    marked: tuple[tuple[float, str], ...] = ()  # the ticks and their text, e.g. of dates, in place of computed ones


@dataclass(frozen=True)
class Figure:
    """A chart with its title, caption and key: pairs of a swatch's CSS class and its name."""

    title: str
    chart: Markup
    caption: str
    key: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Frame:
    """Map data to units of the chart."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Return the position of a value of the x axis."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the position of a value of the y axis; 0 is the top."""
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def points(self, x: Floats, y: Floats) -> list[str]:
        """Return the positions of a curve's values as "x,y"."""
        return [f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y, strict=True)]


def number(value: float) -> str:
    """Return a number as text for a table: thousands separated, no more digits than needed, a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.3f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, most: int = 6, every: float | None = None, least: float = 0.0) -> list[float]:
    """Return at most `most` ticks in `low`…`high`: multiples of 1, 2 or 5 × 10^k at least `least` apart, or of `every`."""
    span = max(high - low, 1e-12)
    step = every or max(10.0 ** math.floor(math.log10(span / most)), least)
    factors = (1, 2, 4, 7, 14, 28) if every else (1, 2, 5, 10, 20, 50)
    step *= next((f for f in factors if span / (step * f) <= most), factors[-1])
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Return ticks as text with as many decimals as distinguish neighbours; from 100,000 in thousands or millions."""
    largest = max(map(abs, values), default=0.0)
    scale, unit = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e5 else (1.0, "")
    shown = [value / scale for value in values]
    step = min((b - a for a, b in pairwise(shown)), default=largest / scale) or 1.0
    decimals = next((d for d in range(9) if abs(round(step, d) - step) < step * 1e-6), 9)
    return [f"{value:,.{decimals}f}{unit if value else ''}" for value in shown]


def shown(value: Any) -> Any:
    """Return a value with its control characters escaped. `Markup` has been through this and through HTML's escapes."""
    return printable_lines(value) if type(value) is str else value


def element(name: str, content: str = "", **attributes: str | float) -> Markup:
    """Return one SVG element. All text of a chart passes through here and is escaped, unless it is `Markup`.

    Args:
        name: Name of the element.
        content: Text, or elements as `Markup`.
        attributes: `class_` is written `class`, `text_anchor` `text-anchor`; a float gets one decimal.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:.1f}" if isinstance(value, float) else shown(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{escape(shown(content))}</{name}>")


def _svg(title: str, height: float, body: Sequence[Markup]) -> Markup:
    """Return a chart whose text alternative is its title."""
    content = Markup("").join(body)
    return element("svg", content, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=title)


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor) if text else Markup()


def _rule(style: str, y: float, x1: float = LEFT, x2: float = WIDTH - RIGHT, title: str = "") -> Markup:
    """Return a horizontal line."""
    return element(
        "line", element("title", title) if title else "", class_=style, x1=x1, x2=x2, y1=float(y), y2=float(y)
    )


def plot(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line] = (),
    bands: Sequence[Band] = (),
    marks: Sequence[tuple[str, float]] = (),
) -> Markup:
    """Return curves over bands, with axes; `marks` are horizontal lines, each with its name and value."""
    levels = [line.y for line in lines] + [side for band in bands for side in (band.low, band.high)]
    along = [line.x for line in lines] + [band.x for band in bands]
    frame = _frame(along, [*levels, np.array([value for _, value in marks])], y)
    body = [*_axes(frame, x, y), *(_band(frame, band) for band in bands)]
    for name, value in marks:
        body += [_rule("mark", frame.y(value)), _text(WIDTH - RIGHT - 2, frame.y(value) - 4, name, "end")]
    return _svg(title, HEIGHT, body + [_line(frame, line) for line in lines])


def areas(title: str, x: Axis, y: Axis, edges: Floats, parts: Sequence[Part]) -> Markup:
    """Return stacked areas over intervals, one between each two of `edges`. Values below 0 are stacked downwards from the axis."""
    above, below = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    bands = []
    for part in parts:
        up, down = np.maximum(part.values, 0.0), np.minimum(part.values, 0.0)
        bands.append((part, np.where(up > 0, above, below + down), np.where(up > 0, above + up, below)))
        above, below = above + up, below + down
    frame = _frame([edges], [above, below], y)
    along = np.repeat(edges, 2)[1:-1]
    body = []
    for part, low, high in bands:
        points = frame.points(along, np.repeat(high, 2)) + frame.points(along, np.repeat(low, 2))[::-1]
        body.append(element("polygon", element("title", part.name), class_=f"f{part.style}", points=" ".join(points)))
    return _svg(title, HEIGHT, [*body, *_axes(frame, x, y)])


def _frame(xs: Sequence[Floats], ys: Sequence[Floats], axis: Axis) -> Frame:
    x, y = np.concatenate([[], *xs]), np.concatenate([[], *ys])
    y = y[np.isfinite(y)]
    low, high = (float(y.min()), float(y.max())) if len(y) else (0.0, 1.0)
    if axis.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low or abs(high) or 1.0) * 0.06
    first, last = (float(x.min()), float(x.max())) if len(x) else (0.0, 1.0)
    alone = 0.0 if last > first else 1.0  # a single value is drawn in the middle
    return Frame(
        first - alone,
        last + alone,
        low - (room if low else 0.0),
        high + (room if high or not low else 0.0),
    )


def _axes(frame: Frame, x: Axis, y: Axis) -> list[Markup]:
    """Return grid, ticks and labels; an x axis without a label has no ticks."""
    base = HEIGHT - BOTTOM
    parts = []
    levels = ticks(frame.y0, frame.y1, 5, y.every, y.least)
    for value, label in zip(levels, labels(levels), strict=True):
        at = frame.y(value)
        parts += [_rule("grid" if value else "zero", at), _text(LEFT - 5, at + 4, label, "end")]
    along = ticks(frame.x0, frame.x1, 7, x.every, x.least) if x.label and not x.marked else []
    named = zip(along, [f"{value:g}" for value in along] if x.plain else labels(along), strict=True)
    for value, label in x.marked or named:
        at = frame.x(value)
        parts += [
            element("line", class_="axis", x1=at, x2=at, y1=base, y2=base + 4),
            _text(at, base + 15, label, "middle"),
        ]
    titles = _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x.label, "middle") + _text(4, 14, y.label)
    return [*parts, _rule("axis", base), titles]


def _line(frame: Frame, line: Line) -> Markup:
    x, y = (np.repeat(line.x, 2)[1:], np.repeat(line.y, 2)[:-1]) if line.step else (line.x, line.y)
    runs = [list(run) for known, run in groupby(range(len(y)), lambda i: bool(np.isfinite(y[i]))) if known]
    curves = [frame.points(x[run], y[run]) for run in runs]
    path = "".join("M" + " ".join(points) for points in curves)
    dotted = line.dots or any(len(run) == 1 for run in runs)
    dots = [point.split(",") for points in curves for point in points] if dotted else []
    circles = (element("circle", class_=f"f{line.style}", cx=cx, cy=cy, r=2.4) for cx, cy in dots)
    return element("path", element("title", line.name), class_=f"s{line.style}", d=path) + Markup("").join(circles)


def _band(frame: Frame, band: Band) -> Markup:
    known = np.isfinite(band.low + band.high)
    x = band.x[known]
    points = frame.points(x, band.low[known]) + frame.points(x, band.high[known])[::-1]
    return element("polygon", element("title", band.name), class_=f"b{band.style}", points=" ".join(points))


def stacks(
    title: str, labels: Sequence[str], y: Axis, parts: Sequence[Part], marks: Sequence[Part] = (), top: float = 0.0
) -> Markup:
    """Return columns of stacked parts, and marks as short bars across the columns. The axis reaches at least `top`."""
    ends = np.cumsum([np.nan_to_num(part.values) for part in parts], axis=0)
    tops = [*ends, *(mark.values for mark in marks), np.array([top, 0.0])]
    frame = _frame([np.array([0.0, float(len(labels))])], tops, y)
    body = _axes(frame, Axis(""), y)
    wide = min((WIDTH - LEFT - RIGHT) / max(len(labels), 1) * 0.62, 60.0)
    for i, label in enumerate(labels):
        middle = frame.x(i + 0.5)
        left = middle - wide / 2
        body.append(_text(middle, HEIGHT - BOTTOM + 15, label, "middle"))
        below = 0.0
        for part, end in zip(parts, ends[:, i].tolist(), strict=True):
            high, low = sorted((frame.y(below), frame.y(end)))
            body.append(_rect(part.style, left, high, wide, low - high, f"{label}, {part.name}: {part.values[i]:.3f}"))
            below = end
        for mark in marks:
            if math.isfinite(value := float(mark.values[i])):
                name = f"{label}, {mark.name}: {value:.3f}"
                body.append(_rule(f"s{mark.style} thick", frame.y(value), left - 4, left + wide + 4, name))
    return _svg(title, HEIGHT, body)


def _rect(style: str, x: float, y: float, width: float, height: float, title: str) -> Markup:
    return element("rect", element("title", title), class_=f"f{style}", x=x, y=y, width=width, height=height)


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, str, str]]) -> Markup:
    """Return horizontal bars from 0; a row is its label, value, the text behind the bar, and style."""
    left = max((len(row[0]) for row in rows), default=0) * CHARACTER + 14
    right = max((len(row[2]) for row in rows), default=0) * CHARACTER + 8
    scale = (WIDTH - left - right) / (max((row[1] for row in rows), default=1.0) or 1.0)
    body = [_text(4, 14, unit)]
    for i, (label, value, text, style) in enumerate(rows):
        top = TOP + 22 * i
        body.append(_text(left - 5, top + 12, label, "end"))
        body.append(_rect(style, left, top, max(value * scale, 0.5), 16, f"{label}: {text}"))
        body.append(_text(left + value * scale + 5, top + 12, text))
    return _svg(title, TOP + 22 * len(rows) + 6, body)


def heat(title: str, rows: Sequence[str], shades: Sequence[Sequence[int]], years: Sequence[str]) -> Markup:
    """Return a heat map by month: `shades[row][month]` is the class h0… of a cell, or -1 for none.

    Equal neighbours are drawn as one cell; years are marked below.
    """
    left = max(map(len, rows), default=0) * CHARACTER + 10
    wide, high = (WIDTH - left - RIGHT) / (12 * len(years)), 18
    body = []
    for i, name in enumerate(rows):
        top = 6 + i * high
        body.append(_text(left - 5, top + 13, name, "end"))
        at = left
        for shade, run in groupby(shades[i]):
            width = len(list(run)) * wide
            style = "hn" if shade < 0 else f"h{shade}"
            body.append(element("rect", class_=style, x=at, y=top, width=width, height=high - 2))
            at += width
    base = 6 + high * len(rows)
    for k, year in enumerate(years):
        x = left + 12 * k * wide
        body += [
            element("line", class_="axis", x1=x, x2=x, y1=4, y2=base + 4),
            _text(x + 6 * wide, base + 13, year, "middle"),
        ]
    return _svg(title, base + 20, body)
