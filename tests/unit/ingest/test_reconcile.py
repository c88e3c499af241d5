"""Balance across authorities: what disagrees, and the least change after which nothing does."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ingest.errors import UsageError
from ingest.grid_balance import balance, describe
from ingest.loader import load_series
from ingest.reconcile import disagreements, reconcile
from tests.support.data_folder import build_all, commit, daily, shard

GRID = Path(__file__).parents[3] / ".." / "shared" / "data" / "eia-grid" / "E_raw_2021-07-10_2021-07-20.csv"
MONTHS = np.full(4, 7, np.int8)


def flat(*values: float) -> np.ndarray:
    return np.array(values, float)


def two() -> dict[str, dict[str, np.ndarray]]:
    """Return A, which exports to B; B reports another flow in hour 1, and A's demand is 30 too high in hour 2."""
    return {
        "A": {
            "D": flat(700, 700, 730, 700),
            "NG": flat(800, 800, 800, 800),
            "TI": flat(100, 100, 100, 100),
            "NG.NUC": flat(500, 500, 500, 500),
            "NG.NG": flat(300, 300, 300, 300),
            "NG.SUN": flat(0, 0, 0, 0),
            "ID.B": flat(100, 100, 100, 100),
        },
        "B": {
            "D": flat(400, 400, 400, np.nan),
            "NG": flat(300, 300, 300, 300),
            "TI": flat(-100, -60, -100, -100),
            "NG.NG": flat(300, 300, 300, 300),
            "ID.A": flat(-100, -60, -100, -100),
        },
    }


def test_disagreements_are_named_worst_first() -> None:
    authorities, lines = disagreements(two())
    assert [(one.subject, one.hours, one.over, one.max_abs) for one in authorities] == [
        ("B", 3, 1, 40.0),
        ("A", 4, 1, 30.0),
    ]
    assert [(one.subject, one.hours, one.over, one.mean_abs) for one in lines] == [("A-B", 4, 1, 10.0)]


def test_reconciled_values_balance_and_nuclear_and_dark_solar_stay() -> None:
    solved = reconcile(two(), MONTHS)
    found = solved.values
    for own in found.values():
        np.testing.assert_allclose((own["D"] - own["NG"] + own["TI"])[:3], 0, atol=1e-9)
    np.testing.assert_allclose(found["A"]["ID.B"], -found["B"]["ID.A"])
    np.testing.assert_array_equal(found["A"]["NG.NUC"], 500.0)
    np.testing.assert_array_equal(found["A"]["NG.SUN"], 0.0)
    # Hour 0 agreed, and stays. In hour 1 the doubtful flow takes the change; in hour 2 the larger values take more of it.
    assert found["A"]["D"][0] == pytest.approx(700)
    assert 60 < found["A"]["ID.B"][1] < 100
    assert abs(found["A"]["D"][1] - 700) < abs(found["A"]["ID.B"][1] - 80)
    assert 700 < found["A"]["D"][2] < 730
    assert found["A"]["NG.NG"][2] > 300
    # In hour 3 B has no demand and can't be balanced; A can.
    assert np.isnan(found["B"]["D"][3])
    assert found["A"]["D"][3] == pytest.approx(700)
    assert {code: list(hours) for code, hours in solved.balanced.items()} == {
        "A": [True] * 4,
        "B": [True] * 3 + [False],
    }


def test_an_authority_without_its_own_flows_keeps_what_was_reported() -> None:
    """B was fetched without interchange: A's report of their line is one of its flows, not all of them."""
    given = two()
    del given["B"]["ID.A"]
    given["C"] = {name: given["B"][name] + 7 for name in ("D", "NG", "TI")}  # without fuels and flows
    found = reconcile(given, MONTHS)
    for code in ("B", "C"):
        assert not found.balanced[code].any()
        assert found.values[code].keys() == given[code].keys()
        for name, value in given[code].items():
            np.testing.assert_array_equal(found.values[code][name], value)
    assert found.balanced["A"].all()


def test_hours_without_own_fuels_or_flows_keep_what_was_reported() -> None:
    """Fuels were asked for in hours 0 to 2 of the month, flows in hours 1 to 3."""
    own = two()["A"]
    for name, hour in (("NG.NUC", 3), ("NG.NG", 3), ("NG.SUN", 3), ("ID.B", 0)):
        own[name][hour] = np.nan
    own["D"] += 20
    found = reconcile({"A": own, "B": {"ID.A": flat(-100, -100, -100, -100)}}, MONTHS)
    assert list(found.balanced["A"]) == [False, True, True, False]
    for name, value in own.items():
        np.testing.assert_array_equal(found.values["A"][name][[0, 3]], value[[0, 3]])
    np.testing.assert_allclose(
        (found.values["A"]["D"] - found.values["A"]["NG"] + found.values["A"]["TI"])[1:3], 0, atol=1e-9
    )


def test_reported_zeros_stay_exactly_zero_whatever_else_changes() -> None:
    """S is a solar plant at night, without demand; C and E have nothing but a line between them, which must not stop the others."""
    given = two()
    none, line = flat(0, 0, 0, 0), flat(5, 5, 5, 5)
    given["A"] |= {"ID.S": none, "D": given["A"]["D"] + 60}
    given["S"] = {"TI": none, "NG": none, "NG.SUN": none, "ID.A": none}
    given["C"] = {"D": none, "TI": line, "NG": none, "NG.NG": none, "ID.E": line}
    given["E"] = {"D": none, "TI": -line, "NG": none, "NG.NG": none, "ID.C": -line}
    found = reconcile(given, MONTHS)
    for code, name in (
        ("A", "NG.SUN"),
        ("A", "ID.S"),
        ("S", "ID.A"),
        ("S", "NG.SUN"),
        ("S", "TI"),
        ("C", "D"),
        ("E", "NG.NG"),
    ):
        np.testing.assert_array_equal(found.values[code][name], 0.0)
    assert found.balanced["A"].all()
    assert found.balanced["S"].all()
    assert found.values["A"]["D"][0] < 760


@pytest.mark.skipif(not GRID.exists(), reason="no recordings next to the project (../shared/data)")
def test_ten_real_days_balance_in_every_authority() -> None:
    """Of 63 authorities, BPAT and MISO were off by 4,359 and 1,223 MWh on average; MISO and PJM disagreed by 2,540 on their line."""
    rows = list(csv.DictReader(GRID.open()))
    series: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for column in rows[0]:
        if match := re.fullmatch(r"E_([A-Z0-9]+)(?:-([A-Z0-9]+))?_([A-Z]+)", column):
            code, other, kind = match.groups()
            name = f"ID.{other}" if other else kind if kind in ("D", "DF", "NG", "TI") else f"NG.{kind}"
            series[code][name] = np.array([float(row[column]) if row[column] else np.nan for row in rows])
    before = disagreements(series)
    assert [one.subject for one in before[0][:2]] == ["BPAT", "MISO"]
    assert before[1][0].subject == "MISO-PJM"
    solved = reconcile(series, np.full(len(rows), 7, np.int8))
    found = solved.values
    done = {
        code: {name: np.where(solved.balanced[code], value, np.nan) for name, value in own.items()}
        for code, own in found.items()
    }
    for checks in disagreements(done):
        assert max(one.max_abs for one in checks) < 1e-6
    assert sum(one.hours for one in disagreements(done)[0]) > 10_000
    for code, own in series.items():
        nuclear = own.get("NG.NUC")
        for name in (name for name in own if name.startswith(("D", "NG."))):
            np.testing.assert_array_equal(found[code][name][own[name] == 0], 0.0)
        if nuclear is not None and not np.isnan(nuclear).all():
            np.testing.assert_array_equal(found[code]["NG.NUC"], nuclear)


def test_folder_is_checked_and_reconciled_by_year(tmp_path: Path) -> None:
    one = shard(start="2024-01-01T00", end="2024-01-02T23")
    load = daily(48)
    for code, fuel in (("PACW", "NG"), ("PACE", "")):  # PACE has the default routes' totals only
        own = shard(respondent=code, start=one.start, end=one.end)
        commit(tmp_path, own, {"D": load + 20, "NG": load + 100, "TI": np.full(48, 100.0)})
        if fuel:
            commit(tmp_path, shard(code, own.start, own.end, route="fuel-type-data"), {fuel: load + 100})
            commit(tmp_path, shard(code, own.start, own.end, route="interchange-data"), {"PACE": np.full(48, 100.0)})
    commit(tmp_path, shard(respondent="CAL", start=one.start, end=one.end), {"D": load})  # a region: not counted again
    build_all(tmp_path)
    (found,) = balance(tmp_path, lambda done, total: None)
    assert (found.year, {row.subject for row in found.authorities}, found.lines) == (2024, {"PACE", "PACW"}, ())
    assert (found.authorities[0].hours, found.authorities[0].mean_abs) == (48, 20.0)
    assert (found.hours, found.kept) == (48, {"PACE": "no fuels, flows of its own"})
    text = describe([found], tmp_path)
    assert "D against NG − TI: 0 of 2 authorities" in text  # 20 of 3,000 MWh is within 1 %
    assert "the two ends of a line: no line has both ends on disk" in text
    assert "kept as reported: PACE: no fuels, flows of its own" in text
    assert sorted(path.name for path in (tmp_path / "reconciled").iterdir()) == ["PACE", "PACW"]
    raw = load_series(tmp_path, "PACW", ["D"], "2024-01-01", "2024-01-02").values
    assert raw[0, 0] == load[0] + 20  # the series are as they were
    kept = pq.read_table(tmp_path / "reconciled" / "PACE" / "2024.parquet").to_pydict()
    assert kept.keys() == {"period", "D", "NG", "TI"}
    assert kept["D"][:48] == list(load + 20)
    with pytest.raises(UsageError, match="no authority's series"):
        balance(tmp_path / "empty", lambda done, total: None)


def test_a_folder_of_the_default_routes_is_refused(tmp_path: Path) -> None:
    """Without interchange nothing can be balanced: no file is written, and the message names the routes and the folder."""
    one = shard(start="2024-01-01T00", end="2024-01-02T23")
    commit(tmp_path, one, {"D": daily(48), "NG": daily(48) + 900, "TI": np.full(48, 900.0)})
    commit(tmp_path, shard(start=one.start, end=one.end, route="fuel-type-data"), {"NG": daily(48) + 900})
    build_all(tmp_path)
    with pytest.raises(UsageError, match=rf"PACW: no flows of its own.* needs --routes all.*--data {tmp_path}"):
        balance(tmp_path, lambda done, total: None)
    assert not (tmp_path / "reconciled").exists()
    for name in ("PACW/2024", "PACE/2023"):  # an earlier version wrote them, without flows
        path = tmp_path / "reconciled" / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"Reconciled files of an earlier balance: 2 removed\."):
        balance(tmp_path, lambda done, total: None)
    assert not list((tmp_path / "reconciled").iterdir())
