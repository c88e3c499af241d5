"""Draw the shards of an extraction: a row for each authority, routes side by side, periods from left to right. Pure.

Equal neighbours are one rectangle, so that a grid of thousands of shards stays a small picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from coordinator.report.render.charts import RIGHT, WIDTH, Figure, element
from coordinator.watch.tasks import DONE, FAILED, GONE, LEASED, PENDING, STATES, Place

MAX_ROWS = 120  # authorities; EIA has 81 with its regions
MAX_COLUMNS = 48  # periods of all routes; more are joined
ROWS = 36  # of a figure
CAPITAL = 9.0  # approximate width of a capital letter of text 12 units high
HIGH, GAP = 14.0, 6.0  # of a row, and between two routes
URGENT = (
    FAILED,
    LEASED,
    PENDING,
    DONE,
    GONE,
)  # a cell for several periods shows the first of these states that one of them has


@dataclass(frozen=True)
class Column:
    """Holds the consecutive periods of a route that one cell of the grid shows."""

    route: str
    starts: tuple[str, ...]

    @property
    def title(self) -> str:
        """Their years, or months where a period is shorter."""
        first, last = self.starts[0], self.starts[-1]
        size = 4 if all(start[4:7] == "-01" for start in self.starts) else 7
        return first[:size] if first[:size] == last[:size] else f"{first[:size]} to {last[:size]}"


def shard_figures(name: str, placed: Sequence[tuple[Place, int]]) -> list[Figure]:
    """Return the grid of shards, (place, number of the state) each, as figures of at most `ROWS` authorities; [] if there are too many."""
    states = dict(placed)
    rows = list(dict.fromkeys(place.respondent for place in states))
    columns = _columns(states)
    if not rows or len(rows) > MAX_ROWS:
        return []
    size = -(-len(rows) // -(-len(rows) // ROWS))  # of about equal height
    spans = (list(group) for _, group in groupby(columns, lambda column: column.route))
    caption = "From left to right: " + "; ".join(f"{s[0].route} {_range(s)}" for s in spans) + "."
    return [
        Figure(_title(name, part), _draw(name, part, columns, states), caption)
        for part in (rows[first : first + size] for first in range(0, len(rows), size))
    ]


def _title(name: str, rows: Sequence[str]) -> str:
    return f"{name}: {rows[0]}" + (f" to {rows[-1]}" if len(rows) > 1 else "")


def _range(columns: Sequence[Column]) -> str:
    return Column("", (columns[0].starts[0], columns[-1].starts[-1])).title


def _columns(states: Mapping[Place, int]) -> list[Column]:
    starts: dict[str, set[str]] = {}
    for place in states:
        starts.setdefault(place.route, set()).add(place.start)
    joined = max(1, -(-sum(map(len, starts.values())) // MAX_COLUMNS))
    return [
        Column(route, tuple(ordered[first : first + joined]))
        for route, found in starts.items()
        for ordered in [sorted(found)]
        for first in range(0, len(ordered), joined)
    ]


def _draw(name: str, rows: Sequence[str], columns: Sequence[Column], states: Mapping[Place, int]) -> Markup:
    left = max(map(len, rows)) * CAPITAL + 8
    routes = list(dict.fromkeys(column.route for column in columns))
    wide = min((WIDTH - left - RIGHT - GAP * (len(routes) - 1)) / len(columns), 3 * HIGH)
    body, urgent = [], []
    for i, row in enumerate(rows):
        top = 4 + i * HIGH
        body.append(element("text", row, x=left - 6, y=top + 10, text_anchor="end"))
        known = [_state(states, row, column) for column in columns]
        at = 0
        for (_, state), run in groupby(zip(columns, known, strict=True), lambda one: (one[0].route, one[1])):
            cells = [column for column, _ in run]
            if state is not None:
                what = f"{row} {cells[0].route} {_range(cells)}: {STATES[state]}"
                x = left + at * wide + GAP * routes.index(cells[0].route)
                body.append(
                    element(
                        "rect",
                        element("title", what),
                        class_=f"t{state}",
                        x=x + 0.5,
                        y=top + 0.5,
                        width=len(cells) * wide - 2,
                        height=HIGH - 3,
                        rx=1.5,
                    )
                )
                urgent += [what] if state == FAILED else []
            at += len(cells)
    counts = f"{name} of {len(rows)} authorities" + (f"; {'; '.join(urgent[:5])}" if urgent else "")
    content = Markup("").join(body)
    return element("svg", content, viewBox=f"0 0 {WIDTH} {HIGH * len(rows) + 6:g}", role="img", aria_label=counts)


def _state(states: Mapping[Place, int], row: str, column: Column) -> int | None:
    found = {states.get(Place(row, column.route, start)) for start in column.starts}
    return next((state for state in URGENT if state in found), None)
