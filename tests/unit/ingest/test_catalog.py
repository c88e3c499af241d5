"""The catalogue against EIA's own facet values, and the errors that name near matches."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ingest.catalog import (
    BALANCING_AUTHORITY,
    FUELS,
    REGION,
    RESPONDENTS,
    TYPES,
    check_respondents,
    check_routes,
    check_years,
)
from ingest.errors import UsageError

VALUES = Path(__file__).parents[3] / ".." / "shared" / "data" / "eia-catalog" / "rto_facet_values.csv"


@pytest.mark.skipif(not VALUES.exists(), reason="no catalogue beside the project (../shared/data)")
def test_same_codes_as_eia() -> None:
    with VALUES.open() as file:
        rows = list(csv.DictReader(file))

    def codes(facet: str) -> set[str]:
        return {row["value_id"] for row in rows if row["facet_id"] == facet}

    assert set(RESPONDENTS) == codes("respondent")
    assert set(FUELS) == codes("fueltype")
    assert set(TYPES) == codes("type")


def test_kinds() -> None:
    assert {RESPONDENTS[code].kind for code in ("PACW", "ERCO", "MISO", "CISO")} == {BALANCING_AUTHORITY}
    assert {RESPONDENTS[code].kind for code in ("CAL", "TEX", "US48")} == {REGION}


@pytest.mark.parametrize(
    ("code", "near"), [("PACX", "PACW"), ("pacw", "PACW"), ("CAISO", "CISO"), ("ERCOT", "ERCO"), ("california", "CAL")]
)
def test_an_unknown_respondent_is_refused_with_near_matches(code: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"{code}.*did you mean.*\b{near}\b"):
        check_respondents(["PACW", code])


def test_every_unknown_respondent_is_named() -> None:
    with pytest.raises(UsageError, match=r"'PACX'.*'ZZZZZZ'"):
        check_respondents(["PACX", "MISO", "ZZZZZZ"])
    with pytest.raises(UsageError, match="no respondent"):
        check_respondents([])


def test_sources_that_do_not_serve_a_respondent() -> None:
    check_respondents(["PACW", "CAL"])
    check_respondents(["PACW", "CISO"], "bulk")
    check_respondents(["CISO"], "oasis")
    with pytest.raises(UsageError, match="CAL, TEX"):
        check_respondents(["PACW", "CAL", "TEX"], "bulk")
    with pytest.raises(UsageError, match="PACW"):
        check_respondents(["PACW"], "oasis")


def test_routes_and_years() -> None:
    check_routes(["region-data", "fuel-type-data"])
    check_routes(["BALANCE"], "bulk")
    with pytest.raises(UsageError, match="did you mean region-data"):
        check_routes(["regions-data"])
    with pytest.raises(UsageError, match="SLD_FCST"):
        check_routes(["SLD_RTO"], "oasis")
    with pytest.raises(UsageError, match="did you mean eia"):
        check_routes([], "eai")
    check_years([2019, 2025])
    check_years([2015], first=2015)
    for year in (2018, 20199):
        with pytest.raises(UsageError, match=str(year)):
            check_years([year])
