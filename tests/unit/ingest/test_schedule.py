"""The schedule of `coordinator follow`, played for days without a server: what is asked, how often, and what a restart repeats."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ingest.columns import hour_number, hour_text
from ingest.hour_spans import merge
from ingest.models import FileEntry, Gap, PageEntry, Shard, ShardResult
from ingest.plan import plan_shards, plan_update
from ingest.schedule import REVISE_HOUR, daily_slot, hourly_slot, next_run, plan_cycle, superseded

FILE = FileEntry("pieces/x.parquet", 1, "0" * 64)
START = datetime(2026, 4, 10, 6, 10, tzinfo=UTC)
WANTED = plan_shards("eia", ("PACW",), ("2026-04-01T00", "2026-12-31T23"))
REVISE = 14


class Source:
    """Publishes an hour of demand after `lag[hour]` hours; its clock is `now`."""

    def __init__(self, lag: dict[int, int]) -> None:
        self.lag = lag
        self.asked: list[tuple[datetime, Shard]] = []
        self.ages: dict[tuple[str, int], int] = {}  # (route, hour) → age in hours at the last fetch

    def fetch(self, shard: Shard, now: datetime) -> ShardResult:
        self.asked.append((now, shard))
        present = int(now.timestamp()) // 3600
        hours = range(hour_number(shard.start), hour_number(shard.end) + 1)
        for hour in hours:
            if hour <= present:
                self.ages[shard.route, hour] = present - hour
        absent = [hour for hour in hours if hour + self.lag.get(hour, 0) > present]
        spans = merge((hour, hour + 1) for hour in absent)
        gaps = tuple(Gap("PACW", "D", hour_text(start), hour_text(end - 1), end - start) for start, end in spans)
        page = PageEntry(FILE, 0, 1, 1, "2026-11-29T00:00:00+00:00", 0.1)
        asked_at = hour_text(present)
        return ShardResult(shard, "synthetic", 1, 1, 0, gaps, (page,), FILE, "", 1, 0, asked_at=asked_at)


def follow(source: Source, days: int, out: range = range(0), fails: float = 0.0) -> list[ShardResult]:
    """Play the follower; `out`: hours since START in which nothing answers; `fails`: share of the shards of a cycle that are lost."""
    rng = np.random.default_rng(7)
    disk: dict[str, ShardResult] = {}
    provisional: set[str] = set()
    now = START
    while now < START + timedelta(days=days):
        failed = (now - START) // timedelta(hours=1) in out
        if not failed:
            cycle = plan_cycle(disk.values(), WANTED, now, REVISE)
            provisional |= set(cycle.provisional)
            for shard in cycle.shards:
                assert shard.key not in disk
                if rng.random() < fails:  # killed, or given up
                    failed = True
                    continue
                disk[shard.key] = source.fetch(shard, now)
            for result in superseded(disk.values(), provisional):
                del disk[result.shard.key]
        now = next_run(now, failed=failed)
    return list(disk.values())


@pytest.mark.long
def test_sixty_days_cost_a_request_an_hour_and_route() -> None:
    source = Source({})
    disk = follow(source, 60)
    per_cycle = Counter(now for now, _ in source.asked)
    assert set(per_cycle.values()) == {2}  # region and fuels, the day's fetch included
    assert len(per_cycle) == 60 * 24
    # Each hour that is old enough was fetched once more when it was settled.
    settled = [age for (_, hour), age in source.ages.items() if hour <= hourly_slot(START) + 45 * 24]
    assert min(settled) >= REVISE * 24
    assert len(settled) >= 2 * 45 * 24
    # The fetches of single hours go when the day's fetch has replaced them.
    assert len(disk) <= 2 * (60 + 24 + 2)


def test_restarts_failures_and_an_outage_lose_no_hour_and_repeat_nothing() -> None:
    rng = np.random.default_rng(1)
    lag = {hour: int(rng.integers(0, 30)) for hour in range(hour_number("2026-04-01T00"), hour_number("2026-07-01T00"))}
    source = Source(lag)
    disk = follow(source, 18, out=range(100, 160), fails=0.05)
    last = hourly_slot(START + timedelta(days=18)) - 1
    assert min(age for (_, hour), age in source.ages.items() if hour <= last - 16 * 24) >= REVISE * 24
    # No hour of the last two weeks but those that the source has not published is missing.
    present = datetime.fromtimestamp((last + 1) * 3600, UTC)
    missing = plan_update(disk, present, 0, WANTED)
    assert not [shard for shard in missing if hour_number(shard.start) < last - 31]
    # 60 hours without an answer cost no request, and a lost shard one more.
    assert len(source.asked) <= 2 * (18 * 24 - 60) * 1.08


def test_hours_that_were_published_late_come_with_a_later_cycle_of_one_request() -> None:
    late = hour_number("2026-04-10T05")
    source = Source({late: 20})
    follow(source, 2)
    region = [(now, shard) for now, shard in source.asked if shard.route == "region-data"][1:]
    with_late = [now for now, shard in region if hour_number(shard.start) <= late]
    assert len(with_late) == 20  # until it came, and the two daily fetches
    assert {len([one for one in region if one[0] == now]) for now in with_late} == {1}


def test_only_the_hours_ahead_and_those_not_fetched_are_asked_for_each_hour() -> None:
    source = Source({})
    follow(source, 1)
    hourly = [shard for now, shard in source.asked if now == START + timedelta(hours=3)]
    assert [(shard.route, shard.start, shard.end) for shard in hourly] == [
        ("region-data", "2026-04-10T09", "2026-04-12T09"),
        ("fuel-type-data", "2026-04-10T09", "2026-04-10T09"),
    ]


def test_day_of_an_outage_is_asked_for_when_the_source_answers_again() -> None:
    """Hours that grew old meanwhile are fetched once more, although they are out of the window of that day."""
    source = Source({})
    follow(source, 20, out=range(24 * 2, 24 * 5))
    old = [age for (_, hour), age in source.ages.items() if hour <= hourly_slot(START) + 4 * 24]
    assert min(old) >= REVISE * 24


def test_slots_are_ten_past_each_hour_and_noon() -> None:
    at = datetime(2026, 6, 24, 12, 9, tzinfo=UTC)
    assert hour_text(hourly_slot(at)) == "2026-06-24T11"
    assert hour_text(daily_slot(at)) == f"2026-06-23T{REVISE_HOUR}"
    assert next_run(at) == datetime(2026, 6, 24, 12, 10, tzinfo=UTC)
    later = at + timedelta(minutes=1)
    assert hour_text(daily_slot(later)) == f"2026-06-24T{REVISE_HOUR}"
    assert next_run(later) == datetime(2026, 6, 24, 13, 10, tzinfo=UTC)
    assert next_run(later, failed=True) == datetime(2026, 6, 24, 12, 20, tzinfo=UTC)


def test_old_extraction_is_settled_once_and_bulk_files_are_read_once_a_day() -> None:
    """A folder whose last hours were young when it was extracted is brought up to date with one request a route."""
    year = [replace(shard, end="2026-04-09T23") for shard in WANTED]
    source = Source({})
    disk = [source.fetch(shard, START) for shard in year]
    later = START + timedelta(days=30, hours=7)
    cycle = plan_cycle(disk, WANTED, later, REVISE)
    assert [(shard.route, shard.start) for shard in cycle.shards] == [
        ("region-data", "2026-04-01T00"),
        ("fuel-type-data", "2026-04-01T00"),
    ]
    assert cycle.daily
    bulk = plan_shards("bulk", ("PACW",), ("2026-04-01T00", "2026-06-30T23"))
    files = [source.fetch(shard, START) for shard in bulk]
    assert plan_cycle(files, bulk, START + timedelta(hours=1), REVISE).shards == ()
    assert plan_cycle(files, bulk, START + timedelta(hours=6), REVISE).shards


@pytest.mark.parametrize("days", [0, 14])
def test_superseded_are_provisional_only(days: int) -> None:
    source = Source({})
    disk = follow(source, 2)
    assert superseded(disk, ()) == ()
    assert plan_cycle(disk, WANTED, START + timedelta(days=2), days).shards
