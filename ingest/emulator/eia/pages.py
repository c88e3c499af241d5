"""EIA pages: which rows a query selects, in which order, and their JSON, byte for byte as EIA's server lays it out.

Without a total order the rows of equal rank come in an order that is drawn for each page, as from a database under
load: paging then repeats rows and loses others. The same page asked again is the same, byte for byte.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ingest.emulator.eia.query import MAX_ROWS, ROUTES, Query, php_json
from ingest.emulator.worlds.base import ABSENT, NULL, World
from ingest.emulator.worlds.grid import FUEL_NAMES, TYPE_NAMES, respondent_name
from ingest.lru_cache import LruCache

API_VERSION = "2.1.8"
_WARNING = (
    '"warnings":[{"warning":"incomplete return","description":"The API can only return 5000 rows in JSON format.  Please '
    'consider constraining your request with facet, start, or end, or using offset to paginate results."}],'
)
_SELECTION_ROWS = 4_000_000  # rows kept of selections in order, about 60 MB


@dataclass(frozen=True)
class Style:
    """How this EIA writes: versions differ."""

    total_as_text: bool = True  # 2.1.8; an int in others
    values_as_text: bool = True  # since 2.1.8; numbers before


@dataclass(frozen=True)
class Rows:
    """Rows in order. `series[which]` is a row's (who, what)."""

    series: tuple[tuple[str, str], ...]
    hour: npt.NDArray[np.int64]
    which: npt.NDArray[np.int64]
    value: npt.NDArray[np.int32]
    null: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.hour)

    def take(self, index: slice | npt.NDArray[np.int64]) -> Rows:
        """Some of the rows, in this order: a slice, or indices [row]."""
        return replace(
            self, hour=self.hour[index], which=self.which[index], value=self.value[index], null=self.null[index]
        )


class Selections:
    """Rows by query, kept while they are paged through."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed
        self._selected: LruCache[tuple[Rows, bool]] = LruCache(_SELECTION_ROWS, lambda found: len(found[0]))

    def page(self, query: Query, now: int) -> tuple[Rows, int]:
        """(rows of the page, total rows of the request)."""
        rows, ordered = self._selection(query, now)
        here = slice(query.offset, query.offset + query.length)
        return rows.take(here if ordered else self._drawn_order(query, rows)[here]), len(rows)

    def _selection(self, query: Query, now: int) -> tuple[Rows, bool]:
        first, last = self._world.span(now)
        start = first if query.start is None else max(query.start, first)
        end = last if query.end is None else min(query.end, last)
        moment = now if end >= self._world.settled_before(now) else 0
        key = (query.route, query.who, query.what, start, end, query.sort, moment)
        if (found := self._selected.get(key)) is not None:
            return found
        rows = select(self._world, query, start, end, now)
        ordered = is_total(query)
        if ordered:
            rows = rows.take(order(query, rows))
        return self._selected.put(key, (rows, ordered))

    def _drawn_order(self, query: Query, rows: Rows) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, zlib.crc32(query.page.encode())])
        return order(query, rows, rng.permutation(len(rows)))


def select(world: World, query: Query, start: int, end: int, now: int) -> Rows:
    """Every row of the query, hour by hour for each respondent."""
    series: list[tuple[str, str]] = []
    hours, which, values, nulls = ([np.zeros(0, kind)] for kind in (np.int64, np.int64, np.int32, bool))
    for who in sorted(query.who or world.respondents(query.route)):
        block = world.block(query.route, who, start, end, now)
        if block is None:
            continue
        columns = [i for i, code in enumerate(block.codes) if not query.what or code in query.what]
        state = block.state[:, columns]
        row, column = np.nonzero(state != ABSENT)
        hours.append(row + block.first)
        which.append(column + len(series))
        values.append(block.values[:, columns][row, column])
        nulls.append(state[row, column] == NULL)
        series += [(who, block.codes[i]) for i in columns]
    return Rows(tuple(series), *(np.concatenate(parts) for parts in (hours, which, values, nulls)))


def is_total(query: Query) -> bool:
    """Whether the sort ranks every row: each of period, who and what is sorted by, or pinned to one value."""
    _, who, who_name, what, what_name = ROUTES[query.route].columns
    columns = {column for column, _ in query.sort}
    return (
        "period" in columns
        and (len(query.who) == 1 or bool(columns & {who, who_name}))
        and (len(query.what) == 1 or bool(columns & {what, what_name}))
    )


def order(query: Query, rows: Rows, tie: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """Indices [row] that sort `rows` as the query asks; rows of equal rank by `tie` [row], else as they are."""
    keys = []
    for column, descending in query.sort:
        key = _rank(query.route, column, rows)
        keys.append(-key if descending else key)
    if tie is not None:
        keys.append(tie)
    return np.lexsort(keys[::-1]) if len(keys) > 1 else np.argsort(keys[0], kind="stable")


def _rank(route: str, column: str, rows: Rows) -> npt.NDArray[np.int64]:
    if column == "period":
        return rows.hour
    if column == "value":
        return np.where(rows.null, np.iinfo(np.int64).min + 1, rows.value)
    texts = [labels(route, who, what)[column] for who, what in rows.series]
    ranks = {text: rank for rank, text in enumerate(sorted(set(texts)))}
    return np.array([ranks[text] for text in texts], np.int64)[rows.which]


def labels(route: str, who: str, what: str) -> dict[str, str]:
    """A row's texts by key, in EIA's order, without period and value."""
    if route == "interchange-data":
        what_name = respondent_name(what)
    else:
        what_name = (TYPE_NAMES if route == "region-data" else FUEL_NAMES)[what]
    return dict(zip(ROUTES[route].columns[1:], (who, respondent_name(who), what, what_name), strict=True))


class Periods:
    """Hours as EIA's `period` texts, by look-up."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._texts: list[str] = np.datetime_as_string(np.arange(first, last + 1).astype("datetime64[h]")).tolist()

    def of(self, hours: npt.NDArray[np.int64]) -> list[str]:
        """Texts of hour numbers [n]."""
        texts = self._texts
        return [texts[hour] for hour in (hours - self._first).tolist()]


def render(
    query: Query, rows: Rows, total: int, periods: Periods, style: Style, note: str, odd_case: bool = False
) -> bytes:
    """The body of a page. `odd_case`: names and codes in another case than usual (a fault that the real one has)."""
    mark = '"' if style.values_as_text else ""
    heads = []
    for who, what in rows.series:
        texts = labels(query.route, who, what)
        if odd_case:
            texts = {key: text.upper() if key.endswith("-name") else text.lower() for key, text in texts.items()}
        heads.append("," + php_json(texts)[1:-1] + (',"value":' if query.with_values else "}"))
    head = [heads[which] for which in rows.which.tolist()]
    if query.with_values:
        values = [f"{mark}{value}{mark}" for value in rows.value.tolist()]
        for row in np.flatnonzero(rows.null).tolist():
            values[row] = "null"
        parts = [
            f'{{"period":"{period}"{names}{value},"value-units":"megawatthours"}}'
            for period, names, value in zip(periods.of(rows.hour), head, values, strict=True)
        ]
    else:
        parts = [f'{{"period":"{period}"{names}' for period, names in zip(periods.of(rows.hour), head, strict=True)]
    capped = query.length == MAX_ROWS and query.offset + len(rows) < total
    route = ROUTES[query.route]
    return "".join(
        (
            "{",
            _WARNING if capped else "",
            '"response":{"total":',
            f'"{total}"' if style.total_as_text else str(total),
            r',"dateFormat":"YYYY-MM-DD\"T\"HH24","frequency":"hourly","data":[',
            ",".join(parts),
            '],"description":',
            php_json(f"{route.description}\n    {note}"),
            '},"request":{"command":',
            php_json(f"/v2/electricity/rto/{query.route}/data/"),
            ',"params":',
            query.echo,
            f'}},"apiVersion":"{API_VERSION}","ExcelAddInVersion":"2.1.0"}}',
        )
    ).encode()
