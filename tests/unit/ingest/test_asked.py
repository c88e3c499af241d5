"""What was asked, and when: gaps of hours to come, fetches that count, verified hours that are reused, respondents with nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ingest.asked import absences, clip_period, open_gaps, reuse_verified
from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.models import FileEntry, Gap, PageEntry, Shard, ShardResult
from ingest.plan import plan_shards, plan_update

FILE = FileEntry("pieces/x.parquet", 1, "0" * 64)


def shard(start: str, end: str, generation: int = 0, respondent: str = "PACW", route: str = "region-data") -> Shard:
    return Shard("eia", route, respondent, start, end, generation)


def fetched(one: Shard, asked_at: str, *gaps: tuple[str, str], rows: int = 1, variable: str = "NG.SUN") -> ShardResult:
    """Return a result of which the pages were served in the hour `asked_at`."""
    named = tuple(
        Gap(one.respondent, variable, start, end, hour_number(end) - hour_number(start) + 1) for start, end in gaps
    )
    page = PageEntry(FILE, 0, rows, rows, "2026-11-29T00:00:00+00:00", 0.1)
    return ShardResult(one, "synthetic", rows, rows, 0, named, (page,), FILE, "", 1, 0, asked_at=asked_at)


def test_two_fetches_within_the_publication_lag_do_not_settle_a_gap() -> None:
    """EIA posts generation a day late: two updates on one afternoon say nothing about that day."""
    gap = ("2026-06-23T16", "2026-06-24T14")
    own = [
        fetched(shard("2026-06-01T00", "2026-06-24T14", 0), "2026-06-24T14", gap),
        fetched(shard("2026-06-10T15", "2026-06-24T15", 1), "2026-06-24T15", gap),
    ]
    wanted = [shard("2026-06-01T00", "2026-12-31T23")]
    later = plan_update(own, datetime(2026, 7, 20, 12, 30, tzinfo=UTC), 14, wanted)
    assert later[0].start == gap[0]
    # Two days after the gap a fetch counts, and after two of these the gap is the source's own.
    again = [fetched(replace(later[0], generation=n), f"2026-07-2{n}T12", gap) for n in (2, 3)]
    settled = plan_update([*own, *again], datetime(2026, 8, 20, 12, 30, tzinfo=UTC), 14, wanted)
    assert min(one.start for one in settled) > gap[1]


def test_an_hour_that_had_not_happened_is_neither_a_gap_nor_covered() -> None:
    year = fetched(shard("2026-01-01T00", "2026-12-31T23"), "2026-06-24T06", ("2026-06-24T05", "2026-12-31T23"))
    assert [(gap.start, gap.end) for gap in open_gaps([year])] == [("2026-06-24T05", "2026-06-24T06")]
    (update,) = plan_update([year], datetime(2026, 11, 10, 9, 30, tzinfo=UTC), 14, [year.shard])
    assert (update.start, update.generation) == ("2026-06-24T05", 1)


def test_update_asks_for_the_forecast_of_tomorrow() -> None:
    """The day-ahead forecast is published at 10:00 local time for the next local day, which ends within 48 hours."""
    year = shard("2026-01-01T00", "2026-12-31T23")
    now = datetime(2026, 6, 24, 14, 20, tzinfo=UTC)
    (update,) = plan_update([fetched(year, "2026-06-24T10")], now, 14, [year])
    assert update.end == "2026-06-26T14"
    fuels = replace(year, route="fuel-type-data")
    (generation,) = plan_update([fetched(fuels, "2026-06-24T10")], now, 14, [fuels])
    assert generation.end == "2026-06-24T14"
    assert plan_update([fetched(year, "2026-06-24T10")], now, 14)[0].end == "2026-06-26T14"


def test_narrower_request_reuses_what_is_verified() -> None:
    """After January to December, March alone was fetched again, and both were counted."""
    year = fetched(shard("2024-01-01T00", "2024-12-31T23"), "2025-06-01T00")
    assert reuse_verified([shard("2024-03-01T00", "2024-03-31T23")], [year]) == (year.shard,)
    wider = reuse_verified(
        [shard("2024-01-01T00", "2024-12-31T23")], [fetched(shard("2024-03-01T00", "2024-03-31T23"), "2025-06-01T00")]
    )
    assert [(one.start, one.end, one.generation) for one in wider] == [
        ("2024-03-01T00", "2024-03-31T23", 0),
        ("2024-01-01T00", "2024-02-29T23", 0),
        ("2024-04-01T00", "2024-12-31T23", 0),
    ]
    # Hours that had not happened then are fetched, as a generation of their own; an equal request is left to --update.
    early = fetched(shard("2024-01-01T00", "2024-12-31T23"), "2024-03-10T00")
    assert reuse_verified([early.shard], [early]) == (early.shard,)
    march = reuse_verified([shard("2024-03-01T00", "2024-03-31T23")], [early])
    assert [(one.start, one.end, one.generation) for one in march] == [
        ("2024-01-01T00", "2024-12-31T23", 0),
        ("2024-03-10T01", "2024-03-31T23", 1),
    ]
    other = shard("2024-03-01T00", "2024-03-31T23", respondent="ERCO")
    assert reuse_verified([other], [year]) == (other,)


def test_respondents_and_routes_without_a_row_are_named() -> None:
    asked = plan_shards("eia", ("PACW", "NSB"), (2021, 2022))
    rows = {
        ("PACW", "region-data"): 5,
        ("PACW", "fuel-type-data"): 0,
        ("NSB", "region-data"): 0,
        ("NSB", "fuel-type-data"): 0,
    }
    results = [fetched(one, "2026-01-01T00", rows=rows[one.respondent, one.route]) for one in asked]
    assert [str(one) for one in absences(asked, results, ("PACW", "NSB"))] == [
        "PACW: eia fuel-type-data has no hour of 2021-01-01T00 to 2022-12-31T23",
        "NSB: eia region-data has no hour of 2021-01-01T00 to 2022-12-31T23",
        "NSB: eia fuel-type-data has no hour of 2021-01-01T00 to 2022-12-31T23",
    ]
    assert absences(asked, results[:-1], ("NSB",))[-1].route == "region-data"  # a shard that failed is not an absence
    (file,) = plan_shards("bulk", ("PACW", "NSB"), ("2021-01-02T00", "2021-06-30T23"))
    bulk = fetched(file, "2026-01-01T00")
    bulk = replace(bulk, gaps=(Gap("NSB", "*", file.start, file.end, 4344),))
    assert [one.respondent for one in absences([file], [bulk], ("PACW", "NSB"))] == ["NSB"]

    before, file = plan_shards("bulk", ("PACW", "NSB"), ("2021-01-01T00", "2021-06-30T23"))
    spill = replace(fetched(before, "2026-01-01T00"), gaps_from=file.start)
    assert [one.respondent for one in absences([before, file], [spill, bulk], ("PACW", "NSB"))] == ["NSB"]


NOW = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)


def test_period_outside_a_sources_hours_is_cut_and_said_or_refused() -> None:
    start, end, notes = clip_period("eia", "2015-01-01T00", "2099-12-31T23", NOW)
    assert (start, end) == ("2019-01-01T00", "2026-12-31T23")
    assert "no hour before 2019-01-01T00" in notes[0]
    assert "2099-12-31T23" in notes[1]
    assert clip_period("eia", "2019-01-01T00", "2026-12-31T23", NOW) == ("2019-01-01T00", "2026-12-31T23", ())
    with pytest.raises(UsageError, match="bulk has no hour before 2015-07-01T00"):
        clip_period("bulk", "2012-01-01T00", "2012-12-31T23", NOW)
    with pytest.raises(UsageError, match="has not happened"):
        clip_period("eia", "2099-01-01T00", "2099-12-31T23", NOW)
    with pytest.raises(UsageError, match="oasis has no hour before"):
        clip_period("oasis", "2000-01-01T00", "2000-12-31T23", NOW)
