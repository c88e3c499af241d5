"""Options of an extraction: default end, default respondents, and the clock of a server that states none."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli.settings import resolve
from coordinator.stages.extract.controller import ExtractController
from coordinator.stages.extract.plan import ExtractOptions, make_plan
from coordinator.stages.extract.stage import server_time
from ingest import manifest
from ingest.errors import UsageError
from ingest.plan import DEFAULT_RESPONDENTS
from tests.support.data_folder import build_all, commit, shard


def options(tmp_path: Path, *, update: bool = False, **flags: Any) -> ExtractOptions:
    given = {"data": tmp_path / "data", **flags}
    settings = {name: entry.value for name, entry in resolve(given, {}, tmp_path).items()}
    return ExtractOptions.from_settings({**settings, "update": update, "rebuild": False})


def test_update_without_end_goes_to_the_present_hour_of_the_source_and_the_next_day_ahead(tmp_path: Path) -> None:
    """It stopped at the default of an extraction, the end of 2025."""
    now = datetime(2027, 3, 4, 5, 30, tzinfo=UTC)
    wanted = options(tmp_path, update=True, respondents="PACW", start="2026").at(now)
    assert wanted.end == "2027-03-06T05"
    ends = {shard.route: shard.end for shard in make_plan(wanted, now).missing}
    assert ends == {"region-data": "2027-03-06T05", "fuel-type-data": "2027-03-04T05"}
    assert {build.year for build in make_plan(wanted, now).builds} == {2026, 2027}


@pytest.mark.parametrize("source", ["synthetic", "eia"])
def test_start_after_the_present_hour_is_refused_as_such(source: str, tmp_path: Path) -> None:
    """Of a follower or an update, which have no end, it said that the period ends before it starts."""
    words = r"--start 2090-01-01T00 lies after the present hour of the source, \d{4}-\d\d-\d\dT\d\d UTC; give an earlier --start"
    with pytest.raises(UsageError, match=words):
        options(tmp_path, update=True, source=source, start="2090-01")


@pytest.mark.parametrize(
    ("given", "name", "address"),
    [
        ("EIA", "eia", "https://api.eia.gov"),
        ("Bulk+http://127.0.0.1:8000/Files", "bulk", "http://127.0.0.1:8000/Files"),
        ("http://127.0.0.1:8000/V2", "eia", "http://127.0.0.1:8000/V2"),
    ],
)
def test_name_of_a_source_is_read_in_either_case(given: str, name: str, address: str, tmp_path: Path) -> None:
    source = options(tmp_path, source=given, respondents="PACW").source
    assert (source.kind, source.base_url) == (name, address)


def test_end_of_an_extraction_stays_and_a_named_end_of_an_update_too(tmp_path: Path) -> None:
    later = datetime(2031, 1, 1, tzinfo=UTC)
    assert options(tmp_path).at(later).end == "2025-12-31T23"
    assert options(tmp_path, update=True, end="2024-06").at(later).end == "2024-06-30T23"


def test_default_respondents_that_a_source_lacks_are_left_out_and_said(tmp_path: Path) -> None:
    """The default respondents were refused. Those that a user names still are."""
    assert options(tmp_path, source="bulk").respondents == DEFAULT_RESPONDENTS
    oasis = options(tmp_path, source="oasis")
    assert oasis.respondents == ("CISO",)
    left_out = set(DEFAULT_RESPONDENTS) - set(oasis.respondents)
    assert all(code in " ".join(oasis.notes) for code in left_out)
    with pytest.raises(UsageError, match="balancing authorities only, not the regions CAL"):
        options(tmp_path, source="bulk", respondents="PACW,CAL")


def test_line_for_a_period_that_ends_in_the_future_does_not_contradict_itself(tmp_path: Path) -> None:
    """It said that later hours have not happened, and that the period ends with one of them."""
    year = datetime.now(UTC).year
    wanted = options(tmp_path, source="eia", respondents="PACW", start=str(year), end=str(year + 3))
    (note,) = wanted.notes
    assert note.startswith(
        f"{year + 3}-12-31T23 was asked for: the period ends with {year}-12-31T23, the end of the present year"
    )
    assert "`--update` fetches them when they have" in note


def test_builds_that_wait_for_fetches_count_in_the_total_from_the_start(tmp_path: Path) -> None:
    """The total of the progress grew with every build that was opened."""
    wanted = options(tmp_path, respondents="PACW,ERCO", start="2023", end="2024")
    now = datetime.now(UTC)
    controller = ExtractController(make_plan(wanted, now))
    assert (len(controller.open_tasks("", limited=False)), controller.to_come()) == (8, 4)
    for route, code in (("region-data", "D"), ("fuel-type-data", "SUN")):
        commit(wanted.data_dir, shard("PACW", "2023-01-01T00", "2023-12-31T23", route=route), {code: 1.0})
    controller = ExtractController(make_plan(wanted, now))
    assert (len(controller.open_tasks("", limited=False)), controller.to_come()) == (7, 3)  # one build is open already


def test_series_of_an_older_layout_are_built_again_also_beside_the_request(tmp_path: Path) -> None:
    """Their generation numbers are int16: readers such as Polars refuse a dataset of both widths."""
    wanted = options(tmp_path, respondents="PACW", start="2023", end="2023")
    for year in (2022, 2023):
        commit(wanted.data_dir, shard("PACW", f"{year}-01-01T00", f"{year}-12-31T23"), {"D": 1.0})
    builds = build_all(wanted.data_dir)
    now = datetime.now(UTC)
    assert [build.key for build in make_plan(wanted, now).builds] == ["build/PACW/2023"]
    for build in builds:
        path = manifest.manifest_path(wanted.data_dir, build.key)
        path.write_text(path.read_text().replace('"layout": 2', '"layout": 1'))
    plan = make_plan(wanted, now)
    assert {build.key for build in plan.builds} == {"build/PACW/2022", "build/PACW/2023"}
    assert set(plan.built.values()) == {()}
    assert "build/PACW/2022" in {task.id for task in ExtractController(plan).open_tasks("", limited=False)}


def test_server_without_a_clock_is_read_by_this_hosts() -> None:
    class Clockless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Clockless) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = server_time(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert abs(found - datetime.now(UTC)) < timedelta(minutes=10)


def test_slip_in_the_name_of_a_variable_is_refused(tmp_path: Path) -> None:
    """A variable that is near none of a setting is another program's: Kubernetes names a service's host and port so."""
    other = {
        "COORDINATOR_SERVICE_HOST": "10.0.0.1",
        "COORDINATOR_PORT": "tcp://10.0.0.1:1",
        "COORDINATOR_TIMEOUT_S": "5",
    }
    assert resolve({}, {**other, "COORDINATOR_START": "2024"}, tmp_path)["start"].value == "2024-01-01T00"
    with pytest.raises(
        UsageError, match=r"COORDINATOR_STRT is no setting \(did you mean COORDINATOR_START\?\).*unset COORDINATOR_STRT"
    ):
        resolve({}, {"COORDINATOR_STRT": "2024"}, tmp_path)
