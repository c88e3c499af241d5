"""The catalogue against EIA's facet values, and errors with near matches."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ingest.catalog import (
    BALANCING_AUTHORITY,
    FUELS,
    MEMBERS,
    REGION,
    RESPONDENTS,
    SUB_AREAS,
    check_respondents,
    distinct,
)
from ingest.errors import UsageError
from ingest.models import REGION_TYPES
from ingest.plan import DEFAULT_RESPONDENTS, plan_shards
from ingest.sources import get_source

VALUES = Path(__file__).parents[3] / ".." / "shared" / "data" / "eia-catalog" / "rto_facet_values.csv"


@pytest.mark.skipif(not VALUES.exists(), reason="no catalogue next to the project (../shared/data)")
def test_codes_equal_eias_facet_values() -> None:
    with VALUES.open() as file:
        rows = list(csv.DictReader(file))

    def codes(facet: str) -> set[str]:
        return {row["value_id"] for row in rows if row["facet_id"] == facet}

    first = "2019-01-01T00"  # of the API
    assert {code for code, one in RESPONDENTS.items() if one.reports_in(first, "2026-05-31T23")} == codes("respondent")
    assert {code for code, one in RESPONDENTS.items() if not one.reports_in(first, "2026-05-31T23")} == {
        "OVEC",
        "BHBA",
        "SWPW",
    }
    assert {code for areas in SUB_AREAS.values() for code in areas} == codes("subba")
    assert set(SUB_AREAS) == codes("parent")
    assert set(FUELS) == codes("fueltype")
    assert set(REGION_TYPES) == codes("type")


def test_authority_that_ended_can_be_asked_for() -> None:
    """OVEC is in the files of 2015 to 2018; it was unknown, "did you mean TEC"."""
    check_respondents(["OVEC"])
    assert plan_shards("bulk", ["OVEC"], (2016,))


def test_respondents_are_authorities_or_regions() -> None:
    assert {RESPONDENTS[code].kind for code in ("PACW", "ERCO", "MISO", "CISO")} == {BALANCING_AUTHORITY}
    assert {RESPONDENTS[code].kind for code in ("CAL", "TEX", "US48")} == {REGION}


@pytest.mark.parametrize(
    ("code", "near"), [("PACX", "PACW"), ("pacw", "PACW"), ("CAISO", "CISO"), ("ERCOT", "ERCO"), ("california", "CAL")]
)
def test_unknown_respondent_is_refused_with_near_matches(code: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"{code}.*did you mean.*\b{near}\b"):
        check_respondents(["PACW", code])


def test_every_unknown_respondent_is_named() -> None:
    with pytest.raises(UsageError, match=r"'PACX'.*'ZZZZZZ'"):
        check_respondents(["PACX", "MISO", "ZZZZZZ"])
    with pytest.raises(UsageError, match="no respondent"):
        check_respondents([])


def test_source_refuses_respondents_it_does_not_serve() -> None:
    check_respondents(["PACW", "CAL"])
    get_source("bulk").check_respondents(["PACW", "CISO"])
    get_source("oasis").check_respondents(["CISO"])
    with pytest.raises(UsageError, match="CAL, TEX"):
        get_source("bulk").check_respondents(["PACW", "CAL", "TEX"])
    with pytest.raises(UsageError, match="PACW"):
        get_source("oasis").check_respondents(["PACW"])


def test_unknown_route_or_source_is_refused_with_near_matches() -> None:
    assert {shard.route for shard in plan_shards("bulk", ["CISO"])} == {"BALANCE"}
    with pytest.raises(UsageError, match="did you mean region-data"):
        plan_shards(routes=["regions-data"])
    with pytest.raises(UsageError, match="SLD_FCST"):
        plan_shards("oasis", ["CISO"], routes=["SLD_RTO"])
    with pytest.raises(UsageError, match="did you mean eia"):
        get_source("eai")


def test_a_mean_counts_no_demand_twice() -> None:
    """TEX is ERCO, and CAL holds CISO."""
    assert distinct(["CAL", "CISO", "ERCO", "MISO", "PACW", "TEX"]) == ("CISO", "ERCO", "MISO", "PACW")
    assert distinct(["CAL", "TEX"]) == ("CAL", "TEX")
    assert distinct(["US48", "CAL", "SYNTHETIC"]) == ("CAL", "SYNTHETIC")
    assert distinct(DEFAULT_RESPONDENTS) == DEFAULT_RESPONDENTS
    authorities = {code for code, one in RESPONDENTS.items() if one.kind == BALANCING_AUTHORITY}
    assert frozenset(authorities) == MEMBERS["US48"]
    assert sorted(code for name, codes in MEMBERS.items() if name != "US48" for code in codes) == sorted(authorities)
