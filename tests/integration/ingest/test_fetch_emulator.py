"""The three sources against the emulator, a real server process: without faults, and with mixed faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest import fetch, outage, store
from ingest.columns import from_table
from ingest.emulator.process import Emulator
from ingest.fetch import fetch_shard
from ingest.models import FetchJob, Shard, ShardResult
from tests.support.eia_client import FEW
from tests.support.stub_server import bench

EIA = [
    FetchJob(Shard("eia", "region-data", "PACW", "2023-01-01T00", "2023-06-30T23"), ""),
    FetchJob(Shard("eia", "fuel-type-data", "ERCO", "2024-01-01T00", "2024-03-31T23"), ""),
    FetchJob(Shard("eia", "daily-interchange-data", "PACW", "2023-01-01T00", "2023-12-31T23"), ""),
]
OTHERS = [
    FetchJob(Shard("oasis", "SLD_FCST", "CISO", "2023-01-01T01", "2023-02-15T00"), ""),
    FetchJob(Shard("oasis", "SLD_REN_FCST", "CISO", "2023-01-01T01", "2023-01-08T00"), ""),
    FetchJob(Shard("oasis", "ENE_SLRS", "CISO", "2023-01-01T01", "2023-01-03T00"), ""),
    FetchJob(Shard("bulk", "BALANCE", "ALL", "2020-01-01T00", "2020-06-30T23"), "", ("PACW", "ERCO")),
    FetchJob(Shard("bulk", "BALANCE", "ALL", "2025-01-01T00", "2025-06-30T23"), "", ("CISO", "MISO")),
]


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "BACKOFF_S", (0.005, 0.02))
        patch.setattr(outage, "PAUSE_S", (0.005, 0.02))
        yield


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(*FEW, "--clock-scale", "1000") as running:
        yield running


def fetched(emulator: Emulator, jobs: list[FetchJob], folder: Path) -> list[ShardResult]:
    with bench(folder) as one:
        return [fetch_shard(replace(job, base_url=emulator.url), one.context) for job in jobs]


def test_mixed_faults_do_not_change_the_data(tmp_path: Path, emulator: Emulator) -> None:
    clean = fetched(emulator, EIA, tmp_path / "clean")
    kinds = [
        "short",
        "repeated",
        "nulls",
        "total",
        "truncated",
        "cut",
        "reset",
        "502",
        "500-404",
        "html",
        "429",
        "case",
    ]
    # The first request of a page meets the first fault, the second the next, …: at most five checks may fail in a row.
    for some in (kinds[:4], kinds[4:8], kinds[8:]):
        emulator.set_faults([{"kind": kind, "times": 1} for kind in some])
        try:
            spoilt = fetched(emulator, EIA, tmp_path / some[0])
        finally:
            emulator.set_faults([])
        for before, after in zip(clean, spoilt, strict=True):
            assert after.digest == before.digest
            assert after.gaps == before.gaps
            assert sum(after.faults.values()) >= len(some) - 1  # another spelling of a name is not a fault
    assert all(result.origin == "synthetic" and result.rows == result.total for result in clean)


@pytest.fixture(scope="module")
def others(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ShardResult]]:
    folder = tmp_path_factory.mktemp("others")
    return folder, fetched(emulator, OTHERS, folder)


def test_oasis_and_bulk_fetch_and_reuse(emulator: Emulator, others: tuple[Path, list[ShardResult]]) -> None:
    folder, results = others
    for result in results:
        assert result.origin == "synthetic"
        assert result.rows == result.total > 0
        assert (folder / result.piece.path).stat().st_size == result.piece.bytes
    again = fetched(emulator, OTHERS, folder)
    assert [result.requests for result in again] == [0] * len(OTHERS)
    assert [result.digest for result in again] == [result.digest for result in results]


def test_bulk_and_api_agree(emulator: Emulator, others: tuple[Path, list[ShardResult]]) -> None:
    folder, results = others
    job = FetchJob(Shard("eia", "region-data", "PACW", "2020-02-01T00", "2020-02-29T23"), "")
    bulk, api = results[3], fetched(emulator, [job], folder)[0]
    cells = []
    for result in (bulk, api):
        columns = from_table(store.read_piece(folder, result.piece))
        cells.append(
            {
                (int(hour), *columns.series[index]): value
                for hour, index, value in zip(columns.hour, columns.index, columns.value, strict=True)
                if value == value
            }
        )
    assert len(cells[1]) > 2500
    assert {cell: cells[0].get(cell) for cell in cells[1]} == cells[1]
