"""Plots as inline SVG: pure functions from numbers to text. Colours are CSS classes, so light and dark are the page's business.

Every plot is 380 units wide: as wide as a phone, so its text can be read there, and several stand side by side on a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

import numpy as np

from coordinator.report.model import Floats

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 26, 38
CHARACTER = 7.0  # width of one of 12 units' height, about


@dataclass(frozen=True)
class Line:
    """A curve; NaN breaks it. `style` 0…5 is a colour; `dash` also tells it apart without one."""

    name: str
    x: Floats
    y: Floats
    style: int = 0
    dash: bool = False
    step: bool = False  # a value holds until the next
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """An area between two curves."""

    name: str
    x: Floats
    low: Floats
    high: Floats
    style: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """`every`: distance of ticks where the unit asks for one (24 hours, 12 months); else it is chosen, from `least` on."""

    label: str
    every: float | None = None
    least: float = 0.0
    zero: bool = False  # shown in any case


def number(value: float) -> str:
    """A table's number: thousands apart, no more digits than it needs."""
    if not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.3f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, most: int = 6, every: float | None = None, least: float = 0.0) -> list[float]:
    """Multiples of 1, 2 or 5 × 10^k, `least` apart at least (or of `every`), in `low`…`high`, at most `most` of them."""
    span = max(high - low, 1e-12)
    step = every or max(10.0 ** math.floor(math.log10(span / most)), least)
    factors = (1, 2, 4, 7, 14, 28) if every else (1, 2, 5, 10, 20, 50)
    step *= next((f for f in factors if span / (step * f) <= most), factors[-1])
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Ticks as text, with as many decimals as tell neighbours apart; from 100,000 on in thousands or millions."""
    largest = max(map(abs, values), default=0.0)
    scale, unit = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e5 else (1.0, "")
    shown = [value / scale for value in values]
    step = min((b - a for a, b in pairwise(shown)), default=largest / scale) or 1.0
    decimals = next((d for d in range(9) if abs(round(step, d) - step) < step * 1e-6), 9)
    return [f"{value:,.{decimals}f}{unit if value else ''}" for value in shown]


@dataclass(frozen=True)
class Frame:
    """Data → units of the picture."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Pixel of a value of the x axis."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixel of a value of the y axis; 0 is the top."""
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def plot(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line] = (),
    bands: Sequence[Band] = (),
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """Curves over bands, with axes. `marks`: horizontal lines, what they are called and where they lie."""
    levels = [line.y for line in lines] + [side for band in bands for side in (band.low, band.high)]
    frame = _frame(
        [*(line.x for line in lines), *(band.x for band in bands)],
        [*levels, np.array([value for _, value in marks])],
        y,
    )
    body = [_axes(frame, x, y)]
    body += [_band(frame, band) for band in bands]
    for name, value in marks:
        at = frame.y(value)
        body.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(_text(WIDTH - RIGHT - 2, at - 4, name, "end"))
    body += [_line(frame, line) for line in lines]
    return svg(title, HEIGHT, body)


def _frame(xs: Sequence[Floats], ys: Sequence[Floats], axis: Axis) -> Frame:
    x = np.concatenate(xs) if xs else np.array([0.0, 1.0])
    y = np.concatenate(ys) if ys else np.array([0.0, 1.0])
    y = y[np.isfinite(y)]
    low, high = (float(y.min()), float(y.max())) if len(y) else (0.0, 1.0)
    if axis.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low or abs(high) or 1.0) * 0.06
    first, last = (float(x.min()), float(x.max())) if len(x) else (0.0, 1.0)
    alone = 0.0 if last > first else 1.0  # one value stands in the middle
    return Frame(
        first - alone,
        last + alone,
        low - (room if low else 0.0),
        high + (room if high or not low else 0.0),
    )


def _axes(frame: Frame, x: Axis | None, y: Axis) -> str:
    parts = []
    up = ticks(frame.y0, frame.y1, 5, y.every, y.least)
    for value, said in zip(up, labels(up), strict=True):
        at = frame.y(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 5, at + 4, said, "end"))
    along = ticks(frame.x0, frame.x1, 7, x.every, x.least) if x else []
    for value, said in zip(along, labels(along), strict=True):
        at = frame.x(value)
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(_text(at, base + 15, said, "middle"))
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x.label if x else "", "middle"))
    parts.append(_text(4, 14, y.label, "start"))
    return "".join(parts)


def _points(frame: Frame, x: Floats, y: Floats) -> list[str]:
    return [f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(x, y, strict=True)]


def _line(frame: Frame, line: Line) -> str:
    x, y = (np.repeat(line.x, 2)[1:], np.repeat(line.y, 2)[:-1]) if line.step else (line.x, line.y)
    runs = [list(run) for known, run in groupby(range(len(y)), lambda i: bool(np.isfinite(y[i]))) if known]
    path = "".join("M" + " ".join(_points(frame, x[run], y[run])) for run in runs)
    dash = " dash" if line.dash else ""
    dots = ""
    if line.dots or any(len(run) == 1 for run in runs):
        pairs = [point.split(",") for run in runs for point in _points(frame, x[run], y[run])]
        dots = "".join(f'<circle class="f{line.style}" cx="{a}" cy="{b}" r="2.4"/>' for a, b in pairs)
    return f'<path class="s{line.style}{dash}" d="{path}"><title>{escape(line.name)}</title></path>{dots}'


def _band(frame: Frame, band: Band) -> str:
    known = np.isfinite(band.low + band.high)
    x, low, high = band.x[known], band.low[known], band.high[known]
    points = " ".join(_points(frame, x, low) + _points(frame, x, high)[::-1])
    faint = " faint" if band.faint else ""
    return f'<polygon class="b{band.style}{faint}" points="{points}"><title>{escape(band.name)}</title></polygon>'


@dataclass(frozen=True)
class Part:
    """One layer of stacked columns: a value a column; what is below 0 is drawn downwards from the axis where it is the first."""

    name: str
    values: Floats
    style: int = 0
    faint: bool = False


def stacks(
    title: str, labels: Sequence[str], y: Axis, parts: Sequence[Part], marks: Sequence[Part] = (), top: float = 0.0
) -> str:
    """Columns of parts on one another, and marks (short bars across the column) beside them. The axis reaches `top` at least."""
    ends = np.cumsum([np.nan_to_num(part.values) for part in parts], axis=0)
    tops = [*ends, *(mark.values for mark in marks), np.array([top, 0.0])]
    frame = _frame([np.array([0.0, float(len(labels))])], tops, y)
    body = [_axes(frame, None, y)]
    room = (WIDTH - LEFT - RIGHT) / max(len(labels), 1)
    wide = min(room * 0.62, 60.0)
    for i, label in enumerate(labels):
        middle = frame.x(i + 0.5)
        body.append(_text(middle, HEIGHT - BOTTOM + 15, label, "middle"))
        below = 0.0
        for part, end in zip(parts, ends, strict=True):
            high, low = sorted((frame.y(below), frame.y(float(end[i]))))
            faint = " faint" if part.faint else ""
            body.append(
                f'<rect class="f{part.style}{faint}" x="{middle - wide / 2:.1f}" y="{high:.1f}" width="{wide:.1f}" '
                f'height="{low - high:.1f}"><title>{escape(label)}, {escape(part.name)}: {part.values[i]:.3f}</title></rect>'
            )
            below = float(end[i])
        for mark in marks:
            if math.isfinite(mark.values[i]):
                at = frame.y(float(mark.values[i]))
                body.append(
                    f'<line class="s{mark.style} thick" x1="{middle - wide / 2 - 4:.1f}" x2="{middle + wide / 2 + 4:.1f}" '
                    f'y1="{at:.1f}" y2="{at:.1f}"><title>{escape(label)}, {escape(mark.name)}: {mark.values[i]:.3f}</title></line>'
                )
    return svg(title, HEIGHT, body)


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, str, int]]) -> str:
    """Horizontal bars from 0: (label, value, what stands behind the bar, style)."""
    left = max((len(row[0]) for row in rows), default=0) * CHARACTER + 14
    right = max((len(row[2]) for row in rows), default=0) * CHARACTER + 8
    longest = max((row[1] for row in rows), default=1.0) or 1.0
    scale = (WIDTH - left - right) / longest
    body = [_text(4, 14, unit, "start")]
    for i, (label, value, said, style) in enumerate(rows):
        top = TOP + 22 * i
        body.append(_text(left - 5, top + 12, label, "end"))
        body.append(
            f'<rect class="f{style}" x="{left:.1f}" y="{top}" width="{max(value * scale, 0.5):.1f}" height="16">'
            f"<title>{escape(label)}: {escape(said)}</title></rect>"
        )
        body.append(_text(left + value * scale + 5, top + 12, said, "start"))
    return svg(title, TOP + 22 * len(rows) + 6, body)


def heat(title: str, rows: Sequence[str], shades: Sequence[Sequence[int]], years: Sequence[str]) -> str:
    """`shades[row][month]`: classes h0… of cells, -1 for none. Equal neighbours are drawn as one; years are marked below."""
    left = max(map(len, rows), default=0) * CHARACTER + 10
    months = 12 * len(years)
    wide, high = (WIDTH - left - RIGHT) / months, 18
    body = []
    for i, name in enumerate(rows):
        top = 6 + i * high
        body.append(_text(left - 5, top + 13, name, "end"))
        at = 0
        for shade, run in groupby(shades[i]):
            count = len(list(run))
            kind = "hn" if shade < 0 else f"h{shade}"
            x, width = left + at * wide, count * wide
            body.append(f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{high - 2}"/>')
            at += count
    base = 6 + high * len(rows)
    for k, year in enumerate(years):
        x = left + 12 * k * wide
        body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base + 4}"/>')
        body.append(_text(x + 6 * wide, base + 13, year, "middle"))
    return svg(title, base + 20, body)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def svg(title: str, height: float, body: Sequence[str]) -> str:
    """A picture whose text alternative is its title."""
    said = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{said}">{"".join(body)}</svg>'
