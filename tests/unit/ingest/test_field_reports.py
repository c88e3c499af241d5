"""Public bug reports about EIA-930 and its clients: what each user met, and what happens here. One test a report."""

from __future__ import annotations

import gzip
import json
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ingest.asked import clip_period
from ingest.breaks import breaks_of
from ingest.build_series import build
from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.loader import SeriesArrays, load_series
from ingest.models import FetchJob, Shard
from ingest.plan import build_job, plan_update
from ingest.quality import REASONS, judge
from ingest.sources.bulk_layout import variables_of
from ingest.sources.eia import Eia
from tests.support.data_folder import ABSENT, daily, shard, store

DAY = ("2024-01-01T00", "2024-01-01T23")


def series_of(folder: Path, code: str, values: np.ndarray, route: str = "fuel-type-data") -> SeriesArrays:
    """Store a day of values, build its series and load it."""
    one = store(folder, shard(start=DAY[0], end=DAY[1], route=route), {code: values})
    build(build_job("PACW", 2024, "api.eia.gov", [one]), folder)
    return load_series(folder, ["PACW"], [f"NG.{code}" if route == "fuel-type-data" else code], *DAY)


def test_missing_hour_is_never_a_number(tmp_path: Path) -> None:
    """singularity-energy/open-grid-emissions #113: missing values became 1.0."""
    load = daily(24)
    load[5], load[6] = ABSENT, np.nan
    got = series_of(tmp_path, "D", load, "region-data")
    assert np.flatnonzero(np.isnan(got.values[:, 0])).tolist() == [5, 6]
    assert [REASONS[code] for code in got.reason[5:7, 0]] == ["missing", "null"]


def test_absent_hydro_is_not_zero(tmp_path: Path) -> None:
    """electricitymaps-contrib #2789: hours in which EIA reports nothing for hydro."""
    water = daily(24, 400, 50)
    water[:6] = ABSENT
    got = series_of(tmp_path, "WAT", water)
    assert np.isnan(got.values[:6]).all()
    assert not got.mask[:6].any()


def test_nulls_stay_apart_and_no_cast_warns(tmp_path: Path) -> None:
    """electricitymaps-contrib #4889 (nulls in all of production), gridstatus #226 (a warning of an invalid cast)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = series_of(tmp_path, "NG", np.full(24, np.nan))
    assert {REASONS[code] for code in got.reason.ravel()} == {"null"}


@pytest.mark.parametrize(("code", "low"), [("SUN", -0.08), ("NG", -316.0), ("OTH", -268.0)])
def test_negative_generation_is_kept(tmp_path: Path, code: str, low: float) -> None:
    """electricitymaps-contrib #2178 (solar of -0.08 at night), #2790 (gas of -316 in WACM), #2725 (other of -268 in MISO)."""
    values = np.maximum(daily(24, 700, 650), 0.0)
    values[:5] = low
    got = series_of(tmp_path, code, values)
    assert got.values[:5, 0].tolist() == [np.float32(low)] * 5
    assert not judge({f"NG.{code}": values})[f"NG.{code}"].any()


def test_fuels_that_come_late_are_asked_for_again(tmp_path: Path) -> None:
    """electricitymaps-contrib #7232: of the latest hours only coal was there, and they were written as complete."""
    one = Shard("eia", "fuel-type-data", "PSEI", "2024-09-20T00", "2024-09-21T08")
    gas = daily(33, 500, 100)
    gas[7:] = ABSENT
    result = store(tmp_path, one, {"COL": daily(33, 300, 50), "NG": gas})
    assert [(gap.variable, gap.start, gap.end) for gap in result.gaps] == [("NG.NG", "2024-09-20T07", "2024-09-21T08")]
    (again,) = plan_update([result], datetime(2024, 12, 1, tzinfo=UTC), 0, [one])
    assert (again.start, again.end) == ("2024-09-20T07", "2024-09-21T08")


def test_future_period_is_refused() -> None:
    """Gridstatus #938: a period without data ended in an unrelated error."""
    with pytest.raises(UsageError, match="has not happened: it is 2026-08-24T12 UTC"):
        clip_period("eia", "2026-09-23T00", "2026-09-23T23", datetime(2026, 8, 24, 12, tzinfo=UTC))


def test_known_shifts_of_time_stamps_are_named() -> None:
    """singularity-energy/open-grid-emissions #111, #301: grid regions an hour behind other sources."""
    year = hour_number("2021-01-01T00")
    assert {one["until"] for one in breaks_of("CISO", ["D"], year)} == {"2022-06-16T07"}
    assert {one["until"] for one in breaks_of("PJM", ["D"], year)} == {""}
    assert breaks_of("PACW", ["D"], year) == []


def test_columns_that_a_new_file_adds_do_not_replace_reported_ones() -> None:
    """catalyst-cooperative/pudl #4054, #4242: 30 new columns in a quarter, among them imputed and adjusted unknown fuels."""
    fuel = "Net Generation (MW) from Unknown Fuel Sources"
    assert variables_of([f"{fuel} (Imputed)", f"{fuel} (Adjusted)", fuel]) == {fuel: "NG.UNK"}


def test_names_of_a_code_may_differ_from_row_to_row() -> None:
    """EIA's own catalogue: `Solar Battery` and `Solar with integrated battery storage` are one code, SNB."""
    rows = [
        {"period": f"2024-01-01T0{hour}", "respondent": "PACW", "fueltype": "SNB", "type-name": name, "value": "5"}
        for hour, name in enumerate(("Solar Battery", "Solar with integrated battery storage"))
    ]
    job = FetchJob(Shard("eia", "fuel-type-data", "PACW", *DAY), "")
    page = Eia().parse(job, gzip.compress(json.dumps({"response": {"total": 2, "data": rows}}).encode()))
    assert page.columns.series == (("PACW", "NG.SNB"),)
