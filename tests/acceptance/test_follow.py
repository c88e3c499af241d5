"""`coordinator follow` against an emulator whose clock is moved: the folder afterwards, the requests, kills, outages, forecasts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coordinator.stages.follow.state import read_state
from ingest import manifest
from ingest.build_series import build
from ingest.emulator.process import Emulator
from ingest.fetch import fetch_shard
from ingest.models import FetchJob
from ingest.plan import build_job, plan_shards
from ingest.verify import verify
from tests.support.follow_process import World, hour, play
from tests.support.program import ROOT, TRAINING, command, environment, run_here
from tests.support.stub_server import bench
from tests.support.waiting import end_of, until

DAYS, KILLS = 60, 4

SERIES = (
    "period",
    "respondent",
    "variable",
    "value",
    "raw",
    "reason",
)  # all but vintages: these tell when a value came


def series(data: Path) -> dict[str, dict[str, list[object]]]:
    found = {}
    for path in sorted((data / "series").glob("*/*/long.parquet")):
        found["/".join(path.parts[-3:-1])] = pq.read_table(path, columns=list(SERIES)).to_pydict()
    return found


def fetched_at_the_end(world: World, data: Path) -> Path:
    """Fetch the same hours at once, at the emulated time at which the follower ended, and build the series."""
    now, code = world.now, world.settings["respondents"]
    shards = plan_shards(
        "eia", code.split(","), (f"{world.settings['start']}T00", f"{now + timedelta(hours=48):%Y-%m-%dT%H}")
    )
    with Emulator("--now", f"{now:%Y-%m-%dT%H}", "--clock-scale", "0") as emulator, bench(data) as one:
        emulator.advance(now.minute * 60)
        results = [fetch_shard(FetchJob(shard, emulator.url), one.context) for shard in shards]
    for respondent in code.split(","):
        for year in sorted({shard.start[:4] for shard in shards}):
            build(build_job(respondent, int(year), "synthetic", results), data)
    return data


def test_followed_hours_equal_those_fetched_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six hours up to the day's fetch, with an outage of two: one line a cycle, no request but the schedule's."""
    monkeypatch.setattr(
        "coordinator.stages.follow.controller.write_coverage", lambda data: None
    )  # a second of matplotlib
    settings = {"respondents": "PACW", "start": "2026-06-20"}
    outage = ("2026-06-24T09", "2026-06-24T10")
    world = World(tmp_path / "world.json", "2026-06-24T07", "2026-06-24T13", settings, (outage,)).write()
    assert play(world, tmp_path / "data").status == "done"
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert "following PACW" in err
    done = [line for line in lines if "FAILED" not in line]
    assert [line[11:16] for line in done] == ["07:10", "08:10", "11:00", "12:10"]  # tried every ten minutes meanwhile
    assert [line[:24] for line in lines if "daily" in line] == ["2026-06-24T12:10Z daily "]
    assert all("Connection refused · next" in line for line in lines if line not in done)
    data = tmp_path / "data"
    assert series(data) == series(fetched_at_the_end(world, tmp_path / "end"))
    # The fetches of single hours gave way to the day's, and what is left is whole.
    assert all(result.shard.hours > 60 for result in manifest.shard_results(data))
    assert verify(data).whole
    assert read_state(data).next == "2026-06-24T13:10"
    assert Counter(route for route, _ in pages(world))["fuel-type-data"] == 4


def pages(world: World) -> list[tuple[str, str]]:
    """Return route and time of every request in the emulator's log."""
    lines = map(json.loads, world.log.read_text().splitlines())
    return [(line["route"], line["time"][:16]) for line in lines if line["route"].endswith("-data")]


@pytest.mark.long
def test_command_prints_a_line_a_cycle_and_ends_with_0_when_told_to(tmp_path: Path) -> None:
    """As a service manager runs it. A second follower is refused; `coordinator status` says when the next cycle is due."""
    words = ("follow", "--json", "--respondents", "PACW", "--start", "2026-06-20")
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        cycle = json.loads(process.stdout.readline())
        assert (cycle["event"], cycle["shards"], cycle["failed"]) == ("cycle", 2, [])
        assert cycle["at"] == "2026-06-24T06:00"
        status = run_here(tmp_path, "status")
        assert f"next cycle {cycle['next']}Z" in status.stdout
        second = run_here(tmp_path, *words)
        assert (second.code, "is in use by a coordinator" in second.stderr) == (2, True)
        process.send_signal(signal.SIGTERM)
        _, err = end_of(process, "the end of the follower")
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err


@pytest.mark.long
@pytest.mark.timeout(600)
def test_forecast_of_the_day_is_issued_when_its_hours_have_come(tmp_path: Path) -> None:
    """From 10:00 in Portland (17:00 UTC), and once: a follower that is started again issues no second one."""
    period = ("--respondents", "PACW", "--start", "2023", "--end", "2026-06-24T06")
    assert run_here(tmp_path, "start", "--extract", "--quiet", *period).code == 0
    config = "".join(f"{name} = {value}\n" for name, value in ({**TRAINING, "steps": 4, "validate_every": 2}).items())
    (tmp_path / "small.toml").write_text(config)
    trained = run_here(tmp_path, "start", "--train", "--quiet", *period[:2], "--train-config", "small.toml")
    assert trained.code == 0, trained.stderr
    data = tmp_path / "data"
    settings = {"respondents": "PACW", "start": "2023"}
    for last in ("2026-06-25T17", "2026-06-25T18", "2026-06-25T20"):
        world = World(tmp_path / "world.json", "2026-06-25T15", last, settings).write()
        assert play(world, data, data / "train").status == "done"
        issued = {path: path.stat().st_mtime_ns for path in (data / "forecasts").glob("*/*.json")}
        if last.endswith("17"):
            assert not issued
        elif last.endswith("18"):
            first = issued
    assert list(first) == [data / "forecasts" / "PACW" / "2026-06-25T10.json"]
    assert issued == first
    hours = json.loads(next(iter(first)).read_text())["hours"]
    assert [hours[0]["period"], hours[-1]["period"]] == ["2026-06-26T08", "2026-06-27T07"]
    assert all(hour["q0.5"] > 0 and hour["demand"] is None for hour in hours)


def reached(world: World, moment: datetime) -> bool:
    return world.now >= moment


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sixty_days_with_revisions_outages_and_kills_equal_a_fetch_at_the_end(tmp_path: Path) -> None:
    """The follower is killed four times at random moments. What it asks for is within 5% of the least that its schedule needs."""
    begin, days = hour("2026-04-20T07"), DAYS
    settings = {"respondents": "PACW", "start": "2026-04-10"}
    outages = tuple(
        (f"{begin + timedelta(hours=first):%Y-%m-%dT%H}", f"{begin + timedelta(hours=last):%Y-%m-%dT%H}")
        for first, last in ((30, 34), (24 * 12, 24 * 12 + 30), (24 * 40 + 3, 24 * 40 + 3))
        if last < days * 24
    )
    end = begin + timedelta(days=days, hours=6)
    world = World(tmp_path / "world.json", f"{begin:%Y-%m-%dT%H}", f"{end:%Y-%m-%dT%H}", settings, outages).write()
    data, draw, log = tmp_path / "data", random.Random(3), (tmp_path / "output").open("a")
    moments = [begin + timedelta(hours=draw.uniform(2, days * 24)) for _ in range(KILLS)]
    for moment in [*sorted(moments), None]:
        words = [sys.executable, "-m", "tests.support.follow_process", str(world.path), str(data)]
        process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)
        try:
            if moment is not None:
                until(partial(reached, world, moment), "the time", lambda: world.now)
                time.sleep(draw.uniform(0, 0.3))  # at any point of a cycle
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            else:
                end_of(process, "the end", lambda: world.now)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, (tmp_path / "output").read_text()[-2000:]
    assert series(data) == series(fetched_at_the_end(world, tmp_path / "end"))
    report = verify(data)
    assert report.whole, report.to_text()
    # The least: a request an hour and route while the source answers, and two pages of the first fetch.
    out = sum(1 + (hour(last) - hour(first)) // timedelta(hours=1) for first, last in outages)
    least = 2 * (days * 24 + 6 - out)
    spent = len(pages(world))
    print(f"{spent} requests, {least} the least, {spent / least - 1:.2%} more; {len(list(data.rglob('*')))} files")
    assert spent <= 1.05 * least
