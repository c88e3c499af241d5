"""Sets of hours as sorted, half-open spans of hour numbers (hours since 1970-01-01T00 UTC). Pure."""

from collections.abc import Iterable

HourSpan = tuple[int, int]


def merge(spans: Iterable[HourSpan], slack: int = 0) -> list[HourSpan]:
    """Return the union; spans at most `slack` hours apart become one."""
    merged: list[HourSpan] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1] + slack:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def subtract(spans: Iterable[HourSpan], holes: Iterable[HourSpan]) -> list[HourSpan]:
    """Return what the holes leave of the spans."""
    left = list(spans)
    for low, high in holes:
        left = [part for a, b in left for part in ((a, min(b, low)), (max(a, high), b)) if part[0] < part[1]]
    return left


def clip(spans: Iterable[HourSpan], frames: Iterable[HourSpan]) -> list[HourSpan]:
    """Return the parts of the spans that lie inside a frame."""
    frames = list(frames)
    return [(max(a, c), min(b, d)) for a, b in spans for c, d in frames if max(a, c) < min(b, d)]


def overlaps(a: HourSpan, b: HourSpan) -> bool:
    """Return whether two spans share an hour."""
    return a[0] < b[1] and b[0] < a[1]
