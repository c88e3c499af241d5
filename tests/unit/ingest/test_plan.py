"""The plan: shards, builds, expected requests, and updates."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.stages.extract.source import parse_source
from ingest.asked import open_gaps
from ingest.columns import EMPTY, hour_number, hour_text
from ingest.errors import UsageError
from ingest.http import HttpResponse
from ingest.models import FetchJob, FileEntry, Gap, PageEntry, Shard, ShardResult
from ingest.plan import build_job, expected_requests, plan_builds, plan_shards, plan_update
from ingest.sources import SOURCES
from ingest.sources.base import Page, Source

FILE = FileEntry("pieces/x.parquet", 1, "0" * 64)


def result_of(shard: Shard, *gaps: tuple[str, str]) -> ShardResult:
    named = tuple(
        Gap(shard.respondent, "D", start, end, hour_number(end) - hour_number(start) + 1) for start, end in gaps
    )
    page = PageEntry(FILE, 0, 1, 1, "2026-01-01T00:00:00", 0.1)
    return ShardResult(shard, "synthetic", 1, 1, 0, named, (page,), FILE, "", 1, 0)


def test_default_plan_is_70_shards_749_requests_and_35_builds() -> None:
    shards = plan_shards()
    assert len(shards) == len({shard.key for shard in shards}) == 70
    assert expected_requests(shards) == 749
    builds = plan_builds(shards)
    assert len(builds) == 35
    assert {key for build in builds for key in build.shards} == {shard.key for shard in shards}
    assert all(len(build.shards) == 2 for build in builds)


def test_leap_year_has_8784_hours() -> None:
    (shard,) = plan_shards("eia", ("PACW",), (2024,), ("region-data",))
    assert (shard.hours, shard.label) == (8784, "2024")


def test_period_is_cut_at_the_turn_of_the_year() -> None:
    shards = plan_shards("eia", ("PACW",), ("2023-12-30T05", "2024-01-31T23"), ("region-data",))
    assert [(shard.start, shard.end) for shard in shards] == [
        ("2023-12-30T05", "2023-12-31T23"),
        ("2024-01-01T00", "2024-01-31T23"),
    ]


def test_plan_itself_knows_no_first_hour() -> None:
    """Recordings are read by EIA's protocol, and begin in 2015."""
    assert len(plan_shards("eia", ("PACW",), (2016,))) == 2


def test_oasis_plan_is_by_query_and_year() -> None:
    shards = plan_shards("oasis", ("CISO",), (2023, 2024))
    assert len(shards) == 8
    assert expected_requests(shards) == 8 * 12
    with pytest.raises(UsageError, match="CISO only"):
        plan_shards("oasis", ("PACW",), (2024,))


def test_bulk_plan_is_by_file_and_begins_with_the_file_of_its_first_hours() -> None:
    """A file is cut in local time: the first UTC hours of 2020 lie in the file of July to December 2019."""
    shards = plan_shards("bulk", ("PACW", "CISO"), (2020, 2021))
    assert [shard.respondent for shard in shards] == ["ALL"] * 5
    assert [shard.start for shard in shards[:2]] == ["2019-07-01T00", "2020-01-01T00"]
    assert expected_requests(shards) == 5
    builds = {build.key: build.shards for build in plan_builds(shards, ("PACW", "CISO"), (2020, 2021))}
    assert set(builds) == {f"build/{code}/{year}" for code in ("PACW", "CISO") for year in (2020, 2021)}
    assert builds["build/PACW/2021"] == tuple(shard.key for shard in shards[2:])
    assert builds["build/CISO/2020"] == tuple(shard.key for shard in shards[:3])
    assert [shard.start for shard in plan_shards("bulk", ("PACW",), (2015,))] == ["2015-07-01T00"]  # EIA's first file
    noon = plan_shards("bulk", ("PACW",), ("2024-07-01T12", "2024-12-31T23"))
    assert [shard.start for shard in noon] == ["2024-07-01T00"]


def test_series_on_disk_is_built_again_where_a_file_has_hours_of_its_year() -> None:
    shards = plan_shards("bulk", ("PACW",), (2020,))
    builds = plan_builds(shards, ("PACW",), (2020,), built=("build/PACW/2021", "build/PACW/2019"))
    assert {build.year for build in builds} == {2019, 2020, 2021}


def test_bulk_refuses_regions_and_names_alternatives() -> None:
    with pytest.raises(UsageError, match=r"balancing authorities only, not the regions CAL, TEX.*CISO.*ERCO"):
        plan_shards("bulk", ("PACW", "CAL", "TEX"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "unknown source"),
        (("bulk", ("PACX",)), "PACW"),
        (("eia", ()), "no respondent"),
        (("eia", ("PACW",), ()), "no year"),
        (("eia", ("PACW",), (2024,), ("region-dat",)), "did you mean region-data"),
        (("eia", ("PACW",), ("2024-02-01T00", "2024-01-01T00")), "ends before"),
        (("eia", ("PACW",), ("2024-02-01", "2024-03-01")), "YYYY-MM-DDTHH"),
    ],
)
def test_invalid_plan_is_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_shards(*arguments)


def test_build_job_orders_pieces_by_generation() -> None:
    year = plan_shards("eia", ("PACW",), (2024,), ("region-data",))[0]
    later = Shard("eia", "region-data", "PACW", "2024-12-01T00", "2024-12-31T23", 1)
    other = Shard("eia", "region-data", "ERCO", "2024-01-01T00", "2024-12-31T23")
    job = build_job("PACW", 2024, "synthetic", [result_of(later), result_of(other), result_of(year)])
    assert [piece.shard for piece in job.pieces] == [year, later]


def test_update_plans_new_revisable_and_missing_hours() -> None:
    shards = plan_shards("eia", ("PACW",), ("2023-01-01T00", "2024-05-31T23"), ("region-data",))
    results = [result_of(shards[0], ("2023-03-01T00", "2023-03-01T04")), result_of(shards[1])]
    now = datetime(2024, 6, 10, 12, 30, tzinfo=UTC)
    fresh = plan_update(results, now)
    assert [(shard.start, shard.end, shard.generation) for shard in fresh] == [
        ("2023-03-01T00", "2023-03-01T04", 1),  # a named gap
        ("2024-05-27T13", "2024-06-12T12", 1),  # 14 days, to the end of tomorrow's forecast; June was never fetched
    ]
    # After two fetches the gap is the source's own: it is not requested again.
    settled = [*results, *(result_of(shard, ("2023-03-01T00", "2023-03-01T04")) for shard in fresh[:1])]
    again = plan_update([*settled, result_of(fresh[1])], now)
    assert [(shard.start, shard.end, shard.generation) for shard in again] == [("2024-05-27T13", "2024-06-10T12", 2)]


def test_update_returns_a_missing_year_as_planned() -> None:
    wanted = plan_shards("eia", ("PACW",), (2022, 2023), ("region-data",))
    fresh = plan_update([result_of(wanted[0])], datetime(2026, 1, 1, tzinfo=UTC), 14, wanted)
    assert fresh == (wanted[1],)


def test_update_plans_whole_bulk_files() -> None:
    wanted = plan_shards("bulk", ("PACW",), (2024,))[1:]
    fresh = plan_update([result_of(one) for one in wanted], datetime(2024, 12, 30, tzinfo=UTC), 14, wanted)
    assert [(shard.start, shard.end, shard.generation) for shard in fresh] == [("2024-07-01T00", "2024-12-31T23", 1)]


class Tiny(Source):
    """The least that a source defines."""

    url, routes, deadline_s, suffix = "http://tiny.test", ("load",), 1.0, ".bin"

    def request(self, job: FetchJob, offset: int) -> str:
        return "/load"

    def receive(self, job: FetchJob, response: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        return response.body, self.parse(job, response.body)

    def parse(self, job: FetchJob, stored: bytes) -> Page:
        return Page(EMPTY, 0, 0)


def test_registered_source_is_planned_and_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "tiny", f"{__name__}.Tiny")
    shards = plan_shards("tiny", ("PACW",), (2023, 2024))
    assert [shard.key for shard in shards] == ["tiny/load/PACW/2023/g000", "tiny/load/PACW/2024/g000"]
    assert expected_requests(shards) == 2
    assert [build.year for build in plan_builds(shards)] == [2023, 2024]
    assert parse_source("tiny").base_url == "http://tiny.test"
    assert parse_source("tiny+http://127.0.0.1:1/").kind == "tiny"


FIRST = hour_number("2023-01-01T00")
spans = st.tuples(st.integers(0, 17_000), st.integers(1, 4000)).map(lambda s: (FIRST + s[0], FIRST + s[0] + s[1]))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(spans, st.integers(0, 3), st.lists(spans, max_size=3)), max_size=5),
    st.integers(0, 20_000),
    spans,
)
def test_update_covers_needed_hours_and_none_beyond_the_forecast(
    drawn: list, elapsed: int, wish: tuple[int, int]
) -> None:
    def shard_of(span: tuple[int, int], generation: int = 0) -> Shard:
        return Shard("eia", "region-data", "PACW", hour_text(span[0]), hour_text(span[1] - 1), generation)

    results = []
    for span, generation, holes in drawn:
        inside = [(max(a, span[0]), min(b, span[1])) for a, b in holes if max(a, span[0]) < min(b, span[1])]
        texts = [(hour_text(a), hour_text(b - 1)) for a, b in inside]
        results.append(result_of(shard_of(span, generation), *texts))
    horizon = FIRST + elapsed
    now = datetime.fromtimestamp(horizon * 3600 + 1, UTC)
    ahead = horizon + 48  # of the day-ahead forecast
    wanted = range(wish[0], min(wish[1], ahead + 1))
    asked = Counter(hour for span, *_ in drawn for hour in range(*span))
    absent = {hour for gap in open_gaps(results) for hour in range(hour_number(gap.start), hour_number(gap.end) + 1)}
    once = {hour for hour in absent if asked[hour] == 1}
    need = {hour for hour in wanted if not asked[hour] or hour in once or horizon - 14 * 24 < hour <= horizon}
    fresh = plan_update(results, now, 14, [shard_of(wish)])
    got = [hour for one in fresh for hour in range(hour_number(one.start), hour_number(one.end) + 1)]
    assert need <= set(got)
    assert len(got) == len(set(got))
    assert not got or max(got) <= ahead
    assert bool(need) == bool(got)
    for one in fresh:
        assert one.start[:4] == one.end[:4]
        for span, generation, _ in drawn:
            if span[0] <= hour_number(one.end) and hour_number(one.start) < span[1]:
                assert one.generation > generation
    assert plan_update([*results, *map(result_of, fresh)], now, 0, [shard_of(wish)]) == ()
