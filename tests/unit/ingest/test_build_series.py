"""Build of a series: merge of generations, reasons, files, determinism, real hours."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ingest.build_series import PieceRows, build, classify_cells, long_table, merge, year_hours
from ingest.columns import hour_number
from ingest.errors import VerificationError
from ingest.loader import load_series
from ingest.models import MAX_VARIABLES, BuildJob, BuildResult, ShardResult
from ingest.plan import build_job
from ingest.quality import UNASKED
from tests.support.data_folder import ABSENT, daily, shard, store
from tests.support.recordings import RESPONDENTS, needs_recordings, year_of

FIRST, HOURS = year_hours(2023)

# A piece: generation, and cells by (hour of year, variable); None is a null. Few cells and values, so that pieces overlap.
cell = st.tuples(st.integers(-2, 4), st.sampled_from(["D", "TI", "NG.COL"]))
pieces = st.lists(st.dictionaries(cell, st.sampled_from([None, 1.0, 2.0]), max_size=8), max_size=5)


def rows_of(generation: int, cells: dict) -> PieceRows:
    names = ("D", "TI", "NG.COL")
    keys = sorted(cells)
    return PieceRows(
        shard(start="2023-01-01T00", end="2023-12-31T23", generation=generation),
        names,
        np.array([FIRST + hour for hour, _ in keys], np.int32),
        np.array([names.index(name) for _, name in keys], np.int32),
        np.array([np.nan if cells[key] is None else cells[key] for key in keys], float),
    )


@settings(max_examples=100)
@given(pieces)
def test_merge_keeps_latest_value_and_its_generation(drawn: list[dict]) -> None:
    merged = merge([rows_of(generation, cells) for generation, cells in enumerate(drawn)], 2023)
    value: dict = {}
    vintage: dict = {}
    revisions = []
    for generation, cells in enumerate(drawn):
        for key in sorted(cells, key=lambda key: (key[0], key[1])):
            if key[0] < 0:
                continue  # the year before
            if key not in value or value[key] != cells[key]:
                if key in value:
                    revisions.append((key, generation, value[key], cells[key]))
                value[key], vintage[key] = cells[key], generation
    assert merged.variables == tuple(v for v in ("D", "TI", "NG.COL") if any(name == v for _, name in value))
    for row, variable in enumerate(merged.variables):
        for hour in range(6):
            key = (hour, variable)
            assert merged.given[row, hour] == (key in value)
            assert merged.vintage[row, hour] == vintage.get(key, -1)
            raw = merged.raw[row, hour]
            assert (None if np.isnan(raw) else raw) == value.get(key)
    found = [((hour_number(r.period) - FIRST, r.variable), r.generation, r.before, r.after) for r in merged.revisions]
    assert sorted(found, key=str) == sorted(revisions, key=str)
    assert merged.duplicates == 0
    assert not merged.given[:, 6:].any()


def test_null_of_a_neighbouring_file_replaces_no_value() -> None:
    """Six-month files overlap at their border, where one has values and the other has none."""
    halves = [rows_of(0, {(0, "D"): 1.0, (1, "D"): 2.0}), rows_of(0, {(1, "D"): None, (2, "D"): 3.0})]
    assert merge(halves, 2023).raw[0, :3].tolist() == merge(halves[::-1], 2023).raw[0, :3].tolist() == [1.0, 2.0, 3.0]
    revised = merge([halves[0], rows_of(1, {(1, "D"): None})], 2023)
    assert np.isnan(revised.raw[0, 1])


def test_hours_that_nobody_asked_for_are_not_called_missing(tmp_path: Path) -> None:
    """A quarter was asked for: the other months are `unasked`, and what a later fetch finds absent is `missing`."""
    quarter, rest = (
        shard(start=a, end=b) for a, b in (("2024-01-01T00", "2024-03-31T23"), ("2024-04-01T00", "2024-12-31T23"))
    )
    load = daily(quarter.hours)
    load[5:8] = ABSENT
    first = store(tmp_path, quarter, {"D": load})
    result = build(build_job("PACW", 2024, "synthetic", [first]), tmp_path)
    assert result.masked == {"missing": 3, "null": 0, "outlier": 0, "unasked": 8784 - quarter.hours}
    assert load_series(tmp_path, ["PACW"], ["D"], "2024-04-01T00", "2024-04-01T00").reason.tolist() == [[UNASKED]]
    empty = store(tmp_path, rest, {"D": ABSENT})
    both = build(build_job("PACW", 2024, "synthetic", [first, empty]), tmp_path)
    assert both.masked == {"missing": 8784 - quarter.hours + 3, "null": 0, "outlier": 0}


def test_hours_to_come_are_unasked(tmp_path: Path) -> None:
    """The pages were served on 1 February: the rest of the year had not happened, but its forecast had been made."""
    year = shard(start="2024-01-01T00", end="2024-12-31T23")
    load = np.full(year.hours, ABSENT)
    load[: 31 * 24] = daily(31 * 24)
    forecast = np.full(year.hours, ABSENT)
    forecast[: 33 * 24] = daily(33 * 24)
    one = replace(store(tmp_path, year, {"D": load, "DF": forecast}), asked_at="2024-02-01T02")
    result = build(build_job("PACW", 2024, "synthetic", [one]), tmp_path)
    assert result.masked == {"missing": 3, "null": 0, "outlier": 0, "unasked": 2 * 8784 - 31 * 24 - 33 * 24 - 3}


@pytest.mark.parametrize(("count", "index"), [(128, "int8"), (129, "int16"), (MAX_VARIABLES, "int16")])
def test_more_variables_than_an_int8_index_holds_are_built(count: int, index: str) -> None:
    names = tuple(f"V{number:03d}" for number in range(count))
    rows = PieceRows(
        shard(start="2023-01-01T00", end="2023-12-31T23"),
        names,
        np.full(count, FIRST, np.int32),
        np.arange(count, dtype=np.int32),
        np.arange(count, dtype=float),
    )
    cells = merge([rows], 2023)
    table = long_table(cells, cells.raw, classify_cells(cells), BuildJob("PACW", 2023, "synthetic", ()))
    assert str(table.schema.field("variable").type.index_type) == index
    first_hours = table.column("variable").combine_chunks().take(np.arange(count) * HOURS)
    assert tuple(first_hours.to_pylist()) == names


def test_generations_of_a_folder_that_is_followed_for_decades_are_kept() -> None:
    """An hourly follower passes 32,767 after 3.7 years: the build failed."""
    generation = 24 * 366 * 30
    late = shard(start="2023-01-01T00", end="2023-12-31T23", generation=generation)
    rows = PieceRows(late, ("D",), np.array([FIRST], np.int32), np.zeros(1, np.int32), np.ones(1))
    cells = merge([rows], 2023)
    table = long_table(cells, cells.raw, classify_cells(cells), BuildJob("PACW", 2023, "synthetic", ()))
    assert table["vintage"][0].as_py() == generation


def test_duplicate_keys_in_a_piece_are_counted() -> None:
    rows = rows_of(0, {(0, "D"): 1.0, (1, "D"): 2.0})
    twice = PieceRows(
        rows.shard, rows.variables, np.repeat(rows.hour, 2), np.repeat(rows.code, 2), np.repeat(rows.value, 2)
    )
    assert merge([twice], 2023).duplicates == 2


def built(folder: Path, *results: ShardResult, respondent: str = "PACW", year: int = 2024) -> BuildResult:
    return build(build_job(respondent, year, results[0].origin, results), folder)


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    load = daily(8784)
    load[100], load[200], load[300] = np.nan, ABSENT, 250_000.0
    return {"D": load, "TI": np.full(8784, -40.0)}


def test_long_and_wide_files_agree(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    result = built(tmp_path, store(tmp_path, shard(), values))
    assert (result.hours, result.variables, result.valid) == (8784, ("D", "TI"), 2 * 8784 - 3)
    assert result.masked == {"missing": 1, "null": 1, "outlier": 1}
    long = pq.read_table(tmp_path / result.long.path)
    wide = pq.read_table(tmp_path / result.wide.path)
    for i, variable in enumerate(result.variables):
        own = long.slice(i * 8784, 8784)
        assert own["value"].equals(wide[variable])
        assert own["period"].equals(wide["period"])
        assert_array_equal(own["reason"].to_numpy(), wide[f"reason.{variable}"].to_numpy())
    assert [long["reason"][hour].as_py() for hour in (99, 100, 200, 300)] == ["ok", "null", "missing", "outlier"]
    assert [long["value"][hour].as_py() for hour in (100, 200, 300)] == [None, None, None]
    assert [long["raw"][hour].as_py() for hour in (100, 200, 300)] == [None, None, 250_000.0]
    assert [long["vintage"][hour].as_py() for hour in (99, 200)] == [0, None]
    assert [long["source"][hour].as_py() for hour in (99, 200)] == ["eia", None]
    assert long["origin"].unique().to_pylist() == ["synthetic"]


def test_periods_are_utc_hours_without_daylight_saving(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    result = built(tmp_path, store(tmp_path, shard(), values))
    column = pq.read_table(tmp_path / result.wide.path)["period"]
    assert str(column.type) == "timestamp[ms, tz=UTC]"
    assert column[0].as_py() == datetime(2024, 1, 1, tzinfo=UTC)
    assert column[-1].as_py() == datetime(2024, 12, 31, 23, tzinfo=UTC)
    steps = np.diff(column.to_numpy().astype("datetime64[ms]").astype(int))
    assert len(column) == 8784
    assert set(steps.tolist()) == {3_600_000}


@pytest.mark.parametrize(("year", "hours"), [(2023, 8760), (2024, 8784), (2100, 8760)])
def test_year_hours_of_leap_years(year: int, hours: int) -> None:
    assert year_hours(year)[1] == hours


def test_equal_pieces_give_equal_bytes(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    results = []
    for name in ("one", "two"):
        folder = tmp_path / name
        fuels = store(folder, shard(route="fuel-type-data"), {"COL": daily(8784, 900, 50)})
        region = store(folder, shard(), values)
        pair = (fuels, region) if name == "one" else (region, fuels)
        results.append(built(folder, *pair))
    assert results[0] == results[1]
    assert (tmp_path / "one" / results[0].long.path).read_bytes() == (
        tmp_path / "two" / results[1].long.path
    ).read_bytes()


def test_revision_replaces_value_and_is_listed(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    first = store(tmp_path, shard(), values)
    later = dict(values, D=values["D"][8040:8784].copy(), TI=values["TI"][8040:8784])
    later["D"][5] += 7
    second = store(tmp_path, shard(start="2024-12-01T00", generation=1), later)
    result = built(tmp_path, first, second)
    assert result.revised == 1
    long = pq.read_table(tmp_path / result.long.path)
    assert long["value"][8045].as_py() == values["D"][8045] + 7
    assert [long["vintage"][hour].as_py() for hour in (8044, 8045, 8046)] == [0, 1, 0]
    summary = msgspec.json.decode((tmp_path / result.summary.path).read_bytes())
    before = values["D"][8045]
    assert summary["revisions"] == [
        {"variable": "D", "period": "2024-12-01T05", "generation": 1, "before": before, "after": before + 7}
    ]
    assert [piece["shard"] for piece in summary["pieces"]] == [first.shard.key, second.shard.key]


def test_partial_year_has_every_hour(tmp_path: Path) -> None:
    january = shard(end="2024-01-31T23")
    result = built(tmp_path, store(tmp_path, january, {"D": daily(744)}))
    assert (result.hours, result.valid, result.masked["unasked"]) == (8784, 744, 8040)
    summary = msgspec.json.decode((tmp_path / result.summary.path).read_bytes())
    assert summary["variables"]["D"]["ok"] == [744] + [0] * 11
    assert summary["month_hours"][:2] == [744, 696]


def test_variable_without_rows_is_omitted(tmp_path: Path) -> None:
    result = built(tmp_path, store(tmp_path, shard(), {"D": daily(8784), "NG": np.full(8784, ABSENT)}))
    assert result.variables == ("D",)


def test_damaged_piece_is_refused(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    result = store(tmp_path, shard(), values)
    (tmp_path / result.piece.path).write_bytes(b"PAR1")
    with pytest.raises(VerificationError, match="verify"):
        built(tmp_path, result)


ALL_REAL = [(respondent, year) for respondent in RESPONDENTS for year in range(2015, 2020)]
SOME_REAL = [("PACW", 2016), ("CAL", 2019), ("ERCO", 2019)]


@needs_recordings
@pytest.mark.parametrize(
    ("respondent", "year"),
    [pytest.param(*one, marks=() if one in SOME_REAL else pytest.mark.long) for one in ALL_REAL],
)
def test_real_values_pass_and_masked_hours_have_a_reason(tmp_path: Path, respondent: str, year: int) -> None:
    start, end, columns = year_of(respondent, year)
    one = shard(respondent, start, end)
    result = built(tmp_path, store(tmp_path, one, columns, "recordings"), respondent=respondent, year=year)
    own = slice(hour_number(start) - year_hours(year)[0], None)
    raw, value, reason = cells_of(tmp_path, result)
    for row, variable in enumerate(result.variables):
        given = columns[variable]
        kept = reason[row, own]
        assert_array_equal(raw[row, own], np.where(np.isfinite(given), given, np.nan))
        assert_array_equal(value[row, own], np.where(np.isin(kept, ["ok", "suspect"]), given, np.nan))
        assert_array_equal(kept == "missing", np.isinf(given))
        assert_array_equal(kept == "null", np.isnan(given))


@needs_recordings
def test_two_real_vintages_of_the_same_hours(tmp_path: Path) -> None:
    """The file of October 2020 revises that of October 2019: the later value counts, and each change is listed."""
    start, end, early = year_of("CAL", 2019, "2019_Oct")
    _, last, late = year_of("CAL", 2019)
    first = store(tmp_path, shard("CAL", start, end), early, "recordings")
    second = store(tmp_path, shard("CAL", start, last, generation=1), late, "recordings")
    result = built(tmp_path, first, second, respondent="CAL", year=2019)
    changed = 0
    for code, before in early.items():
        after = late[code][: before.size]
        both = ~np.isinf(before) & ~np.isinf(after)
        changed += int((both & ~((before == after) | (np.isnan(before) & np.isnan(after)))).sum())
    assert result.revised == changed == 140
    raw, _, _ = cells_of(tmp_path, result)
    assert_array_equal(raw[0], late["D"])


def cells_of(folder: Path, result: BuildResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return raw, value and reason of the long file, each [variable, hour]."""
    table = pq.read_table(folder / result.long.path, columns=["raw", "value", "reason"])
    shape = len(result.variables), result.hours
    raw, value, reason = (table[name].to_numpy().reshape(shape) for name in ("raw", "value", "reason"))
    return raw, value, reason


def test_classify_cells_gives_one_reason_per_cell() -> None:
    cells = merge([rows_of(0, {(0, "D"): None, (1, "D"): 5.0})], 2023)
    assert classify_cells(cells)[0, :3].tolist() == [2, 0, 1]
