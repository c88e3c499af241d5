"""Rows of EIA pages read as arrays: equal to those of the JSON decoder, or left to it."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.columns import Columns, hour_number
from ingest.emulator.eia.pages import Renderer, Selections, Style
from ingest.emulator.eia.query import ROUTES, parse_params, parse_query
from ingest.emulator.worlds.synthetic import SyntheticWorld
from ingest.models import FetchJob, Shard
from ingest.sources import eia, eia_rows
from ingest.sources.eia import Eia

START, END = "2023-12-31T20", "2024-01-31T23"
NOW = hour_number("2025-01-01T00")


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(3, quirks=True, respondents=["CISO"])


def job(route: str) -> FetchJob:
    return FetchJob(Shard("eia", route, "CISO", START, END), "")


def page_of(world: SyntheticWorld, route: str) -> bytes:
    """Return a page as the emulator lays it out, byte for byte as EIA's server."""
    target = Eia().request(job(route), 0).partition("?")[2]
    query = parse_query(ROUTES[route], parse_params(target, None))
    rows, total = Selections(world, 0).page(query, NOW)
    return Renderer(world, Style())(query, rows, total)


def rows_of(plain: bytes, route: str, *, by_decoder: bool = False) -> list[tuple[Any, ...]]:
    """Return the rows of a page, NaN as None, in order."""
    with pytest.MonkeyPatch.context() as patch:
        if by_decoder:
            patch.setattr(eia, "scan", lambda *_: None)
        columns: Columns = eia._page(job(route), plain).columns
    values = [None if np.isnan(value) else value for value in columns.value.tolist()]
    return list(zip(columns.hour.tolist(), [columns.series[i] for i in columns.index], values, strict=True))


def scanned(plain: bytes, route: str) -> eia_rows.ScannedRows | None:
    return eia_rows.scan(plain, START, END, eia._DECODERS[route].row)


@pytest.mark.parametrize("route", ["region-data", "fuel-type-data", "interchange-data", "region-sub-ba-data"])
def test_page_is_scanned_to_the_rows_that_the_decoder_finds(world: SyntheticWorld, route: str) -> None:
    plain = page_of(world, route)
    assert scanned(plain, route) is not None  # negative values and several lengths of names among them
    assert rows_of(plain, route) == rows_of(plain, route, by_decoder=True)


def test_nulls_negative_values_and_zeros_are_scanned(world: SyntheticWorld) -> None:
    plain = page_of(world, "region-data")
    parts = plain.split(b'"value":')
    for text in (b"null", b'"0"', b'"-7"', b'"12345678901"', b'"-1234567890"'):
        changed = [text + part[part.index(b",") :] if i % 7 == 0 else part for i, part in enumerate(parts[1:])]
        odd = b'"value":'.join([parts[0], *changed])
        assert scanned(odd, "region-data") is not None
        assert rows_of(odd, "region-data") == rows_of(odd, "region-data", by_decoder=True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"value":"', b'"value":"0'),  # read as a number by nobody
        (b'"value":"', b'"value":"+'),
        (b'"value":"', b'"value":"-0'),
        (b'"value":"', b'"value":"1234567890123'),  # beyond what is read exactly
        (b'","value-units"', b'.5","value-units"'),
        (b'"value":"', b'"value": "'),
        (b'"period":"2024', b'"Period":"2024'),
        (b'"period":"2024', b'"period":"2034'),
        (b',"value":"', b',"value":"5","value":"'),
        (b'"respondent":"CISO"', b'"respondent":"ciso"'),
        (b'"type":"DF"', b'"type":"D{F"'),
        (b'},{"period":"', b'} ,{"period":"'),
    ],
)
def test_row_that_is_written_otherwise_is_left_to_the_decoder_or_read_alike(
    world: SyntheticWorld, before: bytes, after: bytes
) -> None:
    """Of every tenth row, so that most of the page is as usual."""
    parts = page_of(world, "region-data").split(before)
    assert len(parts) > 20
    plain = parts[0] + b"".join((after if i % 10 == 5 else before) + part for i, part in enumerate(parts[1:]))
    outcomes = []
    for by_decoder in (False, True):
        try:
            outcomes.append(rows_of(plain, "region-data", by_decoder=by_decoder))
        except (eia.SourceError, msgspec.DecodeError) as error:
            outcomes.append([(str(error),)])
    assert outcomes[0] == outcomes[1]


@cache
def short_page(world: SyntheticWorld) -> bytes:
    """Return a page of 24 rows."""
    plain = page_of(world, "region-data")
    rows = plain[plain.index(b"[{") + 1 : plain.index(b'}],"desc')].split(b"},{")
    return plain[: plain.index(b"[{") + 1] + b"},{".join(rows[:24]) + plain[plain.index(b'}],"desc') :]


@settings(max_examples=100, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_page_gives_what_the_decoder_gives(world: SyntheticWorld, damage: list[tuple[int, int]]) -> None:
    plain = bytearray(short_page(world))
    for at, byte in damage:
        plain[at % len(plain)] = byte
    outcomes: list[Any] = []
    for by_decoder in (False, True):
        try:
            outcomes.append(rows_of(bytes(plain), "region-data", by_decoder=by_decoder))
        except eia.SourceError as error:
            outcomes.append(error.kind)
    assert outcomes[0] == outcomes[1]
