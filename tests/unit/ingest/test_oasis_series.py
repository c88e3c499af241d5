"""Series of OASIS: EIA's names beside its own, and prices that no outlier rule masks."""

from __future__ import annotations

import numpy as np

from ingest.build_series import PieceRows, classify_cells, merge, with_aliases
from ingest.columns import hour_number
from ingest.models import Shard
from ingest.quality import OK
from ingest.sources import get_source

FIRST = hour_number("2024-01-01T00")
HOURS = 240
ACTUAL, FORECAST = "SLD_FCST.SYS_FCST_ACT_MW.CA ISO-TAC", "SLD_FCST.SYS_FCST_DA_MW.CA ISO-TAC"
PRICE = "PRC_LMP.LMP_PRC.TH_SP15_GEN-APND"


def rows(source: str, route: str, values: dict[str, np.ndarray]) -> PieceRows:
    shard = Shard(source, route, "CISO", "2024-01-01T00", "2024-01-10T23")
    hours = np.arange(FIRST, FIRST + HOURS, dtype=np.int32)
    code = np.repeat(np.arange(len(values), dtype=np.int32), HOURS)
    return PieceRows(shard, tuple(values), np.tile(hours, len(values)), code, np.concatenate(list(values.values())))


def test_load_and_its_forecast_have_the_names_of_eia_as_well() -> None:
    load, forecast = np.arange(HOURS) + 20_000.0, np.arange(HOURS) + 20_100.0
    pieces = [rows("oasis", "SLD_FCST_ACTUAL", {ACTUAL: load}), rows("oasis", "SLD_FCST", {FORECAST: forecast})]
    cells = merge(with_aliases(pieces), 2024)
    assert cells.variables == ("D", "DF", ACTUAL, FORECAST)
    assert cells.raw[0, :HOURS].tolist() == cells.raw[2, :HOURS].tolist() == load.tolist()
    assert cells.raw[1, :HOURS].tolist() == cells.raw[3, :HOURS].tolist() == forecast.tolist()
    assert not cells.revisions
    assert cells.asked[0, HOURS - 1] and not cells.asked[0, HOURS]


def test_hours_of_eia_keep_their_name() -> None:
    """EIA's demand of CISO is on disk as well: neither is a revision of the other."""
    eia = rows("eia", "region-data", {"D": np.full(HOURS, 21_000.0)})
    oasis = rows("oasis", "SLD_FCST_ACTUAL", {ACTUAL: np.full(HOURS, 20_000.0)})
    cells = merge(with_aliases([eia, oasis]), 2024)
    assert cells.variables == ("D", ACTUAL)
    assert set(cells.raw[0, :HOURS]) == {21_000.0}
    assert not cells.revisions


def test_price_spikes_are_not_outliers() -> None:
    price = np.full(HOURS, 40.0)
    price[[50, 51, 90]] = 1_999.0, 1_500.0, -150.0
    cells = merge([rows("oasis", "PRC_LMP", {PRICE: price})], 2024)
    assert (classify_cells(cells)[0, :HOURS] == OK).all()
    with_load = merge([rows("oasis", "PRC_LMP", {PRICE: price, "D": np.full(HOURS, 100.0)})], 2024)
    assert (classify_cells(with_load)[1, :HOURS] == OK).all()


def test_aliases_name_variables_that_the_source_can_have() -> None:
    aliases = get_source("oasis").aliases
    assert dict(aliases) == {ACTUAL: "D", FORECAST: "DF"}
    assert not get_source("eia").aliases
