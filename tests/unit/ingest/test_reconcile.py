"""Balance across authorities: what disagrees, and the least change after which nothing does."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
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
    found = reconcile(two(), MONTHS)
    for own in found.values():
        np.testing.assert_allclose((own["D"] - own["NG"] + own["TI"])[:3], 0, atol=1e-9)
    np.testing.assert_allclose(found["A"]["ID.B"], -found["B"]["ID.A"])
    np.testing.assert_array_equal(found["A"]["NG.NUC"], 500.0)
    assert np.abs(found["A"]["NG.SUN"]).max() < 0.001
    # Hour 0 agreed, and stays. In hour 1 the doubtful flow takes the change; in hour 2 the larger values take more of it.
    assert found["A"]["D"][0] == pytest.approx(700)
    assert 60 < found["A"]["ID.B"][1] < 100
    assert abs(found["A"]["D"][1] - 700) < abs(found["A"]["ID.B"][1] - 80)
    assert 700 < found["A"]["D"][2] < 730
    assert found["A"]["NG.NG"][2] > 300
    # In hour 3 B has no demand and can't be balanced; A can.
    assert np.isnan(found["B"]["D"][3])
    assert found["A"]["D"][3] == pytest.approx(700)


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
    found = reconcile(series, np.full(len(rows), 7, np.int8))
    for checks in disagreements(found):
        assert max(one.max_abs for one in checks) < 1e-6
    assert sum(one.hours for one in disagreements(found)[0]) > 10_000
    for code, own in series.items():
        nuclear = own.get("NG.NUC")
        if nuclear is not None and not np.isnan(nuclear).all():
            np.testing.assert_array_equal(found[code]["NG.NUC"], nuclear)


def test_folder_is_checked_and_reconciled_by_year(tmp_path: Path) -> None:
    one = shard(start="2024-01-01T00", end="2024-01-02T23")
    load = daily(48)
    commit(tmp_path, one, {"D": load + 20, "NG": load + 100, "TI": np.full(48, 100.0)})
    commit(tmp_path, shard(respondent="CAL", start=one.start, end=one.end), {"D": load})  # a region: not counted again
    build_all(tmp_path)
    (found,) = balance(tmp_path, lambda done, total: None)
    assert (found.year, [row.subject for row in found.authorities], found.lines) == (2024, ["PACW"], ())
    assert (found.authorities[0].hours, found.authorities[0].mean_abs) == (48, 20.0)
    assert "D against NG − TI: 0 of 1" in describe([found], tmp_path)  # 20 of 3,000 MWh is within 1 %
    assert [path.name for path in (tmp_path / "reconciled").iterdir()] == ["PACW"]
    raw = load_series(tmp_path, "PACW", ["D"], "2024-01-01", "2024-01-02").values
    assert raw[0, 0] == load[0] + 20  # the series are as they were
    with pytest.raises(UsageError, match="no authority's series"):
        balance(tmp_path / "empty", lambda done, total: None)
