"""The series build: merge of generations, reasons, files, determinism; real hours come through."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ingest.build_series import PieceRows, build, classify_cells, merge, year_hours
from ingest.columns import hour_number
from ingest.errors import VerificationError
from ingest.models import BuildResult, ShardResult
from ingest.plan import build_job
from tests.support.data_folder import ABSENT, daily, shard, store
from tests.support.recordings import RESPONDENTS, needs_recordings, year_of

FIRST, HOURS = year_hours(2023)

# A piece: generation, and cells by (hour of year, variable); None is a null. Few cells and values, so that pieces meet.
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


@settings(max_examples=100, deadline=None)
@given(pieces)
def test_merge_keeps_the_latest_value_and_when_it_arrived(drawn: list[dict]) -> None:
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


def test_a_key_that_comes_twice_in_a_piece_is_counted() -> None:
    rows = rows_of(0, {(0, "D"): 1.0, (1, "D"): 2.0})
    twice = PieceRows(
        rows.shard, rows.variables, np.repeat(rows.hour, 2), np.repeat(rows.code, 2), np.repeat(rows.value, 2)
    )
    assert merge([twice], 2023).duplicates == 2


def built(folder: Path, *proofs: ShardResult, respondent: str = "PACW", year: int = 2024) -> BuildResult:
    return build(build_job(respondent, year, proofs[0].origin, proofs), folder)


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    load = daily(8784)
    load[100], load[200], load[300] = np.nan, ABSENT, 250_000.0
    return {"D": load, "TI": np.full(8784, -40.0)}


def test_files_say_the_same_in_long_and_wide(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    proof = built(tmp_path, store(tmp_path, shard(), values))
    assert (proof.hours, proof.variables, proof.valid) == (8784, ("D", "TI"), 2 * 8784 - 3)
    assert proof.masked == {"missing": 1, "null": 1, "outlier": 1}
    long = pq.read_table(tmp_path / proof.long.path)
    wide = pq.read_table(tmp_path / proof.wide.path)
    for i, variable in enumerate(proof.variables):
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
    proof = built(tmp_path, store(tmp_path, shard(), values))
    column = pq.read_table(tmp_path / proof.wide.path)["period"]
    assert str(column.type) == "timestamp[ms, tz=UTC]"
    assert column[0].as_py() == datetime(2024, 1, 1, tzinfo=UTC)
    assert column[-1].as_py() == datetime(2024, 12, 31, 23, tzinfo=UTC)
    steps = np.diff(column.to_numpy().astype("datetime64[ms]").astype(int))
    assert len(column) == 8784
    assert set(steps.tolist()) == {3_600_000}


@pytest.mark.parametrize(("year", "hours"), [(2023, 8760), (2024, 8784), (2100, 8760)])
def test_leap_years(year: int, hours: int) -> None:
    assert year_hours(year)[1] == hours


def test_the_same_pieces_give_the_same_bytes(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    proofs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        fuels = store(folder, shard(route="fuel-type-data"), {"COL": daily(8784, 900, 50)})
        region = store(folder, shard(), values)
        pair = (fuels, region) if name == "one" else (region, fuels)
        proofs.append(built(folder, *pair))
    assert proofs[0] == proofs[1]
    assert (tmp_path / "one" / proofs[0].long.path).read_bytes() == (
        tmp_path / "two" / proofs[1].long.path
    ).read_bytes()


def test_a_revision_replaces_the_value_and_is_listed(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    first = store(tmp_path, shard(), values)
    later = dict(values, D=values["D"][8040:8784].copy(), TI=values["TI"][8040:8784])
    later["D"][5] += 7
    second = store(tmp_path, shard(start="2024-12-01T00", generation=1), later)
    proof = built(tmp_path, first, second)
    assert proof.revised == 1
    long = pq.read_table(tmp_path / proof.long.path)
    assert long["value"][8045].as_py() == values["D"][8045] + 7
    assert [long["vintage"][hour].as_py() for hour in (8044, 8045, 8046)] == [0, 1, 0]
    summary = msgspec.json.decode((tmp_path / proof.summary.path).read_bytes())
    before = values["D"][8045]
    assert summary["revisions"] == [
        {"variable": "D", "period": "2024-12-01T05", "generation": 1, "before": before, "after": before + 7}
    ]
    assert [piece["shard"] for piece in summary["pieces"]] == [first.shard.key, second.shard.key]


def test_a_part_of_a_year_still_has_every_hour(tmp_path: Path) -> None:
    january = shard(end="2024-01-31T23")
    proof = built(tmp_path, store(tmp_path, january, {"D": daily(744)}))
    assert (proof.hours, proof.valid, proof.masked["missing"]) == (8784, 744, 8040)
    summary = msgspec.json.decode((tmp_path / proof.summary.path).read_bytes())
    assert summary["variables"]["D"]["ok"] == [744] + [0] * 11
    assert summary["month_hours"][:2] == [744, 696]


def test_a_variable_that_never_came_is_not_invented(tmp_path: Path) -> None:
    proof = built(tmp_path, store(tmp_path, shard(), {"D": daily(8784), "NG": np.full(8784, ABSENT)}))
    assert proof.variables == ("D",)


def test_a_damaged_piece_is_refused(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    proof = store(tmp_path, shard(), values)
    (tmp_path / proof.piece.path).write_bytes(b"PAR1")
    with pytest.raises(VerificationError, match="verify"):
        built(tmp_path, proof)


ALL_REAL = [(respondent, year) for respondent in RESPONDENTS for year in range(2015, 2020)]
SOME_REAL = [("PACW", 2016), ("CAL", 2019), ("ERCO", 2019)]


@needs_recordings
@pytest.mark.parametrize(
    ("respondent", "year"),
    [pytest.param(*one, marks=() if one in SOME_REAL else pytest.mark.long) for one in ALL_REAL],
)
def test_every_real_value_comes_through_and_every_masked_hour_has_its_reason(
    tmp_path: Path, respondent: str, year: int
) -> None:
    start, end, columns = year_of(respondent, year)
    one = shard(respondent, start, end)
    proof = built(tmp_path, store(tmp_path, one, columns, "recordings"), respondent=respondent, year=year)
    own = slice(hour_number(start) - year_hours(year)[0], None)
    raw, value, reason = cells_of(tmp_path, proof)
    for row, variable in enumerate(proof.variables):
        given = columns[variable]
        kept = reason[row, own]
        assert_array_equal(raw[row, own], np.where(np.isfinite(given), given, np.nan))
        assert_array_equal(value[row, own], np.where(kept == "ok", given, np.nan))
        assert_array_equal(kept == "missing", np.isinf(given))
        assert_array_equal(kept == "null", np.isnan(given))


@needs_recordings
def test_two_real_vintages_of_the_same_hours(tmp_path: Path) -> None:
    """October 2020's file revises October 2019's: the later value stands, and each change is listed."""
    start, end, early = year_of("CAL", 2019, "2019_Oct")
    _, last, late = year_of("CAL", 2019)
    first = store(tmp_path, shard("CAL", start, end), early, "recordings")
    second = store(tmp_path, shard("CAL", start, last, generation=1), late, "recordings")
    proof = built(tmp_path, first, second, respondent="CAL", year=2019)
    changed = 0
    for code, before in early.items():
        after = late[code][: before.size]
        both = ~np.isinf(before) & ~np.isinf(after)
        changed += int((both & ~((before == after) | (np.isnan(before) & np.isnan(after)))).sum())
    assert proof.revised == changed == 140
    raw, _, _ = cells_of(tmp_path, proof)
    assert_array_equal(raw[0], late["D"])


def cells_of(folder: Path, proof: BuildResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """raw, value and reason of the long file, each `[variable, hour]`."""
    table = pq.read_table(folder / proof.long.path, columns=["raw", "value", "reason"])
    shape = len(proof.variables), proof.hours
    raw, value, reason = (table[name].to_numpy().reshape(shape) for name in ("raw", "value", "reason"))
    return raw, value, reason


def test_judge_names_one_reason_a_cell() -> None:
    cells = merge([rows_of(0, {(0, "D"): None, (1, "D"): 5.0})], 2023)
    assert classify_cells(cells)[0, :3].tolist() == [2, 0, 1]
