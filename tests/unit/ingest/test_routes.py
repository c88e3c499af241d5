"""The routes of EIA: their plan, their rows, and groups of respondents."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from coordinator.stages.extract.plan import ExtractOptions
from ingest.balance import balances
from ingest.catalog import BALANCING_AUTHORITY, REGION, RESPONDENTS, SUB_AREAS, expand_groups
from ingest.errors import UsageError
from ingest.http import HttpResponse
from ingest.models import FetchJob, Shard
from ingest.plan import choose_routes, plan_shards
from ingest.routes import EIA_ROUTES, HOURLY_ROUTES
from ingest.sources import get_source
from ingest.sources.eia import Eia

API = ("2019-01-01T00", "2025-12-31T23")
EIA = get_source("eia")


def page(route: str, respondent: str, rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Return the values of a body's series, as the source reads them."""
    body = json.dumps({"response": {"total": str(len(rows)), "data": rows}}).encode()
    job = FetchJob(Shard("eia", route, respondent, "2024-01-01T00", "2024-01-01T23"), "http://127.0.0.1")
    found = Eia().receive(job, HttpResponse(200, {}, body, False, "x", 0.1, "2026-01-01T00:00:00+00:00"), None)[1]
    columns = found.columns
    return {name: columns.value[columns.index == i].tolist() for i, name in enumerate(columns.series)}


def test_flow_to_a_neighbour_and_demand_of_a_sub_area_are_variables() -> None:
    hour: dict[str, Any] = {"period": "2024-01-01T05"}
    flows = [
        {**hour, "fromba": "PACW", "toba": "BPAT", "value": "-120"},
        {**hour, "fromba": "PACW", "toba": "PGE", "value": 7},
    ]
    assert page("interchange-data", "PACW", flows) == {("PACW", "ID.BPAT"): [-120.0], ("PACW", "ID.PGE"): [7.0]}
    # EIA writes two of PNM's areas with small letters.
    areas = [
        {**hour, "subba": "Frep", "parent": "PNM", "value": "11"},
        {**hour, "subba": "PNM", "parent": "PNM", "value": "900"},
    ]
    assert page("region-sub-ba-data", "PNM", areas) == {("PNM", "D.FREP"): [11.0], ("PNM", "D.PNM"): [900.0]}


def test_each_route_sorts_by_every_column_that_tells_rows_apart() -> None:
    for name, route in EIA_ROUTES.items():
        shard = Shard("eia", name, "CISO", "2024-01-01T00", "2024-01-31T23")
        query = parse_qs(urlsplit(EIA.request(FetchJob(shard, ""), 0)).query)
        assert query[f"facets[{route.respondent}][]"] == ["CISO"]
        assert [query[f"sort[{i}][column]"] for i in range(3)] == [["period"], [route.respondent], [route.code]]


def test_routes_are_an_option_and_the_default_stays() -> None:
    assert choose_routes("eia", ()) == ("region-data", "fuel-type-data")
    assert choose_routes("eia", ("all",)) == tuple(HOURLY_ROUTES)
    assert choose_routes("eia", ("Interchange-Data", "region-data")) == ("region-data", "interchange-data")
    assert choose_routes("oasis", ()) == get_source("oasis").default_routes
    assert choose_routes("bulk", ()) == ("BALANCE",)
    with pytest.raises(UsageError, match=r"interchange.*did you mean interchange-data"):
        choose_routes("eia", ("interchange",))


def test_sub_areas_are_planned_for_the_authorities_that_have_them() -> None:
    shards = plan_shards("eia", tuple(RESPONDENTS), (2024,), ("region-sub-ba-data",))
    assert {shard.respondent for shard in shards} == set(SUB_AREAS)


@pytest.mark.parametrize(
    ("source", "group", "period", "count", "idle"),
    [
        ("eia", "ALL", API, 81, {"BHBA", "SWPW"}),
        ("eia", "ALL", ("2019-01-01T00", "2026-06-30T23"), 83, set()),
        ("eia", "ALL", ("2021-01-01T00", "2025-12-31T23"), 80, {"BHBA", "NSB", "SWPW"}),
        ("eia", "BAS", API, 67, {"BHBA", "SWPW"}),
        ("eia", "REGIONS", API, 14, set()),
        ("bulk", "ALL", ("2016-01-01T00", "2025-12-31T23"), 68, {"BHBA", "SWPW"}),
    ],
)
def test_groups_are_the_respondents_that_report_in_the_period(
    source: str, group: str, period: tuple[str, str], count: int, idle: set[str]
) -> None:
    found, left = expand_groups((group,), *period, get_source(source).serves)
    assert (len(found), set(left)) == (count, idle)
    kinds = {RESPONDENTS[code].kind for code in found}
    assert kinds <= ({REGION} if group == "REGIONS" else {BALANCING_AUTHORITY} if group == "BAS" else kinds)


def test_a_named_code_is_asked_for_beside_a_group() -> None:
    found, left = expand_groups(("SWPW", "REGIONS", "CAL"), *API, EIA.serves)
    assert (found[0], len(found), left) == ("SWPW", 15, ())
    with pytest.raises(UsageError, match="no regions"):
        expand_groups(("REGIONS",), *API, get_source("bulk").serves)


def options(tmp_path: Any, **given: Any) -> ExtractOptions:
    """Return the options of a command line."""
    from coordinator.cli.settings import resolve

    flags = {"data": tmp_path / "data", **given}
    settings = {name: entry.value for name, entry in resolve(flags, {}, tmp_path).items()}
    return ExtractOptions.from_settings({**settings, "update": False, "rebuild": False})


def test_what_a_request_leaves_out_is_said(tmp_path: Any) -> None:
    wide = options(tmp_path, respondents="all", routes="all")
    assert len(wide.shards) == 7 * (3 * 81 + 8)
    assert wide.notes == (
        "not reporting in this period, and not asked for: BHBA 2026-06-01T00 to …, SWPW 2026-06-01T00 to …",
        "eia region-sub-ba-data is not published for 73 of the respondents",
    )
    with pytest.raises(UsageError, match=r"region-sub-ba-data is published for CISO, .*SWPP only"):
        options(tmp_path, respondents="PACW", routes="region-sub-ba-data")
    assert not options(tmp_path).notes


def test_all_routes_of_one_respondent_leave_out_what_is_not_published_for_it(tmp_path: Any) -> None:
    one = options(tmp_path, respondents="PACW", routes="all")
    assert {shard.route for shard in one.shards} == {"region-data", "fuel-type-data", "interchange-data"}
    assert one.notes == ("eia region-sub-ba-data is not published for PACW",)
    with pytest.raises(UsageError, match="region-sub-ba-data is published for"):
        options(tmp_path, respondents="PACW", routes="all,region-sub-ba-data")


def test_groups_of_recordings_are_the_respondents_and_routes_in_the_files(tmp_path: Any) -> None:
    """Each of 81 respondents of the built-in table was asked for, and fuels that no file has."""
    for code in ("BPAT", "AVA", "CAL"):
        (tmp_path / f"{code}.csv").write_text("date_time,demand (MW)\n2020-01-01 00:00:00,5\n")
    given = {"source": f"recordings:{tmp_path}", "start": "2020", "end": "2020"}
    found = options(tmp_path, respondents="all", **given)
    assert (set(found.respondents), found.routes, found.notes) == ({"AVA", "BPAT", "CAL"}, ("region-data",), ())
    assert len(found.shards) == 3
    assert options(tmp_path, respondents="regions", **given).respondents == ("CAL",)
    fuels = options(tmp_path, respondents="all", routes="region-data,fuel-type-data", **given)
    assert fuels.routes == ("region-data", "fuel-type-data")
    (tmp_path / "stations.csv").write_text("name,lat\nDALLES,45.6\n")
    with pytest.raises(UsageError, match=r"stations.csv: the column 'name' is not a time"):
        options(tmp_path, respondents="all", **given)


def test_totals_are_checked_against_their_parts() -> None:
    months = np.ones(3, np.int8)
    values = {
        "TI": [100.0, 100, 100],
        "ID.A": [60.0, 60, 60],
        "ID.B": [40.0, 30, 40],
        "D": [5.0, 5, 5],
        "D.X": [5.0, 5, 5],
    }
    found = balances({name: np.array(value) for name, value in values.items()}, months)
    assert [(one.check, one.hours, one.over) for one in found] == [("TI-neighbours", 3, 1), ("D-areas", 3, 0)]
