"""EIA pages: the rows that a query selects, their order, and their JSON, byte for byte as EIA's server lays it out.

Without a total order the rows of equal rank come in an order that is drawn for each page, as from a database under
load: paging then repeats rows and loses others. The same page requested again is the same, byte for byte.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.emulator.eia.query import MAX_ROWS, ROUTES, Query, php_json
from ingest.emulator.worlds.base import ABSENT, NULL, VALUE, World
from ingest.emulator.worlds.grid import respondent_name, series_name
from ingest.lru_cache import LruCache
from ingest.models import DAY
from ingest.routes import EIA_ZONES
from ingest.zones import midnights

API_VERSION = "2.1.8"
_WARNING = (
    '"warnings":[{"warning":"incomplete return","description":"The API can only return 5000 rows in JSON format.  Please '
    'consider constraining your request with facet, start, or end, or using offset to paginate results."}],'
)
_SELECTION_ROWS = 4_000_000  # cached rows of selections, about 60 MB


@dataclass(frozen=True)
class Style:
    """State how values are written: EIA's API versions differ."""

    total_as_text: bool = True  # 2.1.8; an int in others
    values_as_text: bool = True  # since 2.1.8; numbers before


@dataclass(frozen=True)
class Rows:
    """Hold rows in order, each array [row]. `series[which]` is a row's (respondent, code), of a daily route (…, time zone)."""

    series: tuple[tuple[str, ...], ...]
    hour: npt.NDArray[np.int64]
    which: npt.NDArray[np.int64]
    value: npt.NDArray[np.int32] | npt.NDArray[np.float64]  # MWh
    null: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.hour)

    def take(self, index: slice | npt.NDArray[np.int64]) -> Rows:
        """Return some of the rows, in this order: a slice, or indices [row]."""
        return Rows(self.series, self.hour[index], self.which[index], self.value[index], self.null[index])


class Selections:
    """Select the rows of queries, and cache them while a client pages through them."""

    def __init__(self, world: World, seed: int) -> None:
        """Start with an empty cache; `seed` draws the order of rows of equal rank."""
        self._world = world
        self._seed = seed
        self._selected: LruCache[tuple[Rows, bool]] = LruCache(_SELECTION_ROWS, lambda found: len(found[0]))

    def page(self, query: Query, now: int) -> tuple[Rows, int]:
        """Return (rows of the page, total rows of the request)."""
        rows, ordered = self._selection(query, now)
        here = slice(query.offset, query.offset + query.length)
        if ordered:
            return rows.take(here), len(rows)
        rng = np.random.default_rng([self._seed, zlib.crc32(query.page.encode())])
        return rows.take(order(query, rows, rng.permutation(len(rows)))[here]), len(rows)

    def _selection(self, query: Query, now: int) -> tuple[Rows, bool]:
        first, last = self._world.span(now)
        start = first if query.start is None else max(query.start, first)
        route = ROUTES[query.route]
        end = last if query.until is None else min(query.until, last + self._world.ahead(route.hourly))
        moment = now if end >= self._world.settled_before(now) else 0
        key = (query.route, query.respondents, query.codes, query.zones, start, end, query.sort, moment)
        if (found := self._selected.get(key)) is not None:
            return found
        pick = select_days if route.daily else select
        rows = pick(self._world, query, start, end, now)
        if ordered := is_total(query):
            rows = rows.take(order(query, rows))
        return self._selected.put(key, (rows, ordered))


def select(world: World, query: Query, start: int, end: int, now: int) -> Rows:
    """Return every row of the query, hour by hour for each respondent."""
    series: list[tuple[str, str]] = []
    hours, which, values, nulls = ([np.zeros(0, kind)] for kind in (np.int64, np.int64, np.int32, bool))
    for respondent in sorted(query.respondents or world.respondents(query.route)):
        block = world.block(query.route, respondent, start, end, now)
        if block is None:
            continue
        columns = [i for i, code in enumerate(block.codes) if not query.codes or code in query.codes]
        state = block.state[:, columns]
        row, column = np.nonzero(state != ABSENT)
        hours.append(row + block.first)
        which.append(column + len(series))
        values.append(block.values[:, columns][row, column])
        nulls.append(state[row, column] == NULL)
        series += [(respondent, block.codes[i]) for i in columns]
    return Rows(tuple(series), *(np.concatenate(parts) for parts in (hours, which, values, nulls)))


def select_days(world: World, query: Query, start: int, end: int, now: int) -> Rows:
    """Return every row of a query of a daily route, day by day for each respondent and time zone: local days with all of their hours.

    A day is the sum of its hours that have a value. Its rows have the number of its hour 00.
    """
    series: list[tuple[str, ...]] = []
    parts: list[list[npt.NDArray]] = [[np.zeros(0, kind)] for kind in (np.int64, np.int64, np.int64, bool)]
    route = ROUTES[query.route].hourly
    end = min(end, world.span(now)[1])
    first, last = start // DAY, end // DAY
    last = last if query.end is None else min(last, query.end // DAY)
    if last < first:
        return Rows((), *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.int64, bool)))
    for respondent in sorted(query.respondents or world.respondents(route)):
        for zone, name in sorted(EIA_ZONES.items(), key=lambda item: item[1]):
            if query.zones and name not in query.zones:
                continue
            ends = midnights(zone, first, last)
            block = world.block(route, respondent, int(ends[0]) + 1, min(int(ends[-1]), end), now)
            if block is None or not len(block.values):
                continue
            columns = [i for i, code in enumerate(block.codes) if not query.codes or code in query.codes]
            at = ends + 1 - block.first
            whole = (at[:-1] >= 0) & (at[1:] <= len(block.values))
            values, valued, listed = (
                np.concatenate([np.zeros((1, len(columns)), np.int64), np.cumsum(cells[:, columns], axis=0)])
                for cells in (
                    np.where(block.state == VALUE, block.values, 0),
                    (block.state == VALUE).astype(np.int64),
                    (block.state != ABSENT).astype(np.int64),
                )
            )
            low, high = at[:-1][whole], at[1:][whole]
            row, column = np.nonzero(listed[high] - listed[low])
            parts[0].append((first + np.flatnonzero(whole)[row]) * DAY)
            parts[1].append(column + len(series))
            parts[2].append((values[high] - values[low])[row, column])
            parts[3].append((valued[high] - valued[low])[row, column] == 0)
            series += [(respondent, block.codes[i], name) for i in columns]
    return Rows(tuple(series), *(np.concatenate(part) for part in parts))


def is_total(query: Query) -> bool:
    """Return whether the sort ranks every row: it names period, respondent, code and time zone, or they are pinned to one value."""
    names = ROUTES[query.route].columns
    columns = {column for column, _ in query.sort}
    pinned = dict(zip(ROUTES[query.route].keys, (query.respondents, query.codes), strict=True))
    zoned = not ROUTES[query.route].daily or len(query.zones) == 1 or bool(columns.intersection(names[5:]))
    return (
        zoned
        and "period" in columns
        and all(
            len(pinned[key]) == 1 or bool(columns.intersection((key, name))) for key, name in (names[1:3], names[3:5])
        )
    )


def order(query: Query, rows: Rows, tie: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """Return indices [row] that sort `rows` as the query asks; rows of equal rank by `tie` [row], else as they are."""
    keys = [_rank(query.route, column, rows) * (-1 if descending else 1) for column, descending in query.sort]
    keys += [] if tie is None else [tie]
    return np.lexsort(keys[::-1]) if len(keys) > 1 else np.argsort(keys[0], kind="stable")


def _rank(route: str, column: str, rows: Rows) -> npt.NDArray[np.int64]:
    if column == "period":
        return rows.hour
    if column == "value":
        return np.where(rows.null, np.iinfo(np.int64).min + 1, rows.value)
    texts = [labels(route, *one)[column] for one in rows.series]
    ranks = {text: rank for rank, text in enumerate(sorted(set(texts)))}
    return np.array([ranks[text] for text in texts], np.int64)[rows.which]


def labels(route: str, respondent: str, code: str, *zone: str) -> dict[str, str]:
    """Return a row's texts by key, in EIA's order, without period and value; `zone`: EIA's name of it, of a daily route."""
    spec = ROUTES[route]
    of_respondent, of_code = (respondent, respondent_name(respondent)), (code, series_name(spec.hourly, code))
    texts = of_respondent + of_code if spec.respondent == 0 else of_code + of_respondent
    return dict(zip(spec.columns[1:], (*texts, *zone, *zone), strict=True))


def _texts(values: npt.NDArray[np.int32] | npt.NDArray[np.float64]) -> list[int] | list[str]:
    """Return values as they are written: a whole number without a point, any other with the digits that give it back."""
    if values.dtype.kind != "f":
        return values.tolist()
    return [str(int(value)) if value.is_integer() else repr(value) for value in values.tolist()]


class Renderer:
    """Write pages as EIA's JSON. The `period` texts of a world's hours are made once."""

    def __init__(self, world: World, style: Style) -> None:
        """Make the texts of all hours that the world will ever serve."""
        self._first, last = world.span(1 << 40)
        hours = np.arange(self._first, last + 1).astype("datetime64[h]")
        self._periods: list[str] = np.datetime_as_string(hours).tolist()
        self._style = style
        self._note = world.note

    def __call__(self, query: Query, rows: Rows, total: int, odd_case: bool = False) -> bytes:
        """Return the body of a page.

        Args:
            query: The request.
            rows: The rows of the page.
            total: The number of rows of the request.
            odd_case: Write names and codes in another case than usual (a fault that the real server has).
        """
        mark = '"' if self._style.values_as_text else ""
        heads = []
        route = ROUTES[query.route]
        for one in rows.series:
            texts = labels(query.route, *one)
            if odd_case:
                texts = {key: text.upper() if key.endswith("-name") else text.lower() for key, text in texts.items()}
            heads.append("," + php_json(texts)[1:-1])
        names = [heads[which] for which in rows.which.tolist()]
        if route.daily:
            periods = np.datetime_as_string((rows.hour // DAY).astype("datetime64[D]")).tolist()
        else:
            periods = [self._periods[hour] for hour in (rows.hour - self._first).tolist()]
        if query.with_values:
            values = [f"{mark}{value}{mark}" for value in _texts(rows.value)]
            for row in np.flatnonzero(rows.null).tolist():
                values[row] = "null"
            parts = [
                f'{{"period":"{period}"{name},"value":{value},"value-units":"megawatthours"}}'
                for period, name, value in zip(periods, names, values, strict=True)
            ]
        else:
            parts = [f'{{"period":"{period}"{name}}}' for period, name in zip(periods, names, strict=True)]
        capped = query.length == MAX_ROWS and query.offset + len(rows) < total
        return "".join(
            (
                "{",
                _WARNING if capped else "",
                '"response":{"total":',
                f'"{total}"' if self._style.total_as_text else str(total),
                r',"dateFormat":"YYYY-MM-DD' + ("" if route.daily else r"\"T\"HH24"),
                f'","frequency":"{route.frequency}","data":[',
                ",".join(parts),
                '],"description":',
                php_json(f"{route.description}\n    {self._note}"),
                '},"request":{"command":',
                php_json(f"/v2/electricity/rto/{query.route}/data/"),
                ',"params":',
                query.echo,
                f'}},"apiVersion":"{API_VERSION}","ExcelAddInVersion":"2.1.0"}}',
            )
        ).encode()
