"""A fetch that resumes another: no page is requested twice, no contradictory page is kept."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingest import fetch, http, outage, store
from ingest.errors import SourceError, StorageError
from ingest.fetch import fetch_shard
from ingest.models import FetchJob
from tests.support.stub_server import Reply, Stub, bench, eia_job, serve


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", (0.005, 0.02))
    monkeypatch.setattr(outage, "PAUSE_S", (0.005, 0.02))


def year(url: str) -> FetchJob:
    """Four pages: 19,400 rows."""
    return eia_job(url, start="2023-01-01T00", end="2023-07-22T01")


def test_only_missing_pages_are_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LIMIT_S", 0.3)
    stub = Stub()
    stub.script = lambda query, nth: Reply(502) if query["offset"] == 10000 else None
    with serve(stub) as url, bench(tmp_path) as one:
        with pytest.raises(SourceError):
            fetch_shard(year(url), one.context)
        whole = {int(path.name[:8]) for path in tmp_path.rglob("*.json.gz")}
        assert 0 in whole
        assert 10000 not in whole
        stub.script = lambda query, nth: None
        stub.asked.clear()
        result = fetch_shard(year(url), one.context)
        assert set(stub.asked) == {0, 5000, 10000, 15000} - whole
        assert result.reused == len(whole)
        again = fetch_shard(year(url), one.context)
    assert (again.requests, again.reused, again.digest, again.piece) == (0, 4, result.digest, result.piece)
    assert again.origin == result.origin == "synthetic"
    assert [page.file for page in again.pages] == [page.file for page in result.pages]


def test_total_is_known_without_the_first_page(tmp_path: Path) -> None:
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(year(url), one.context)
        (tmp_path / result.pages[0].file.path).unlink()
        stub.asked.clear()
        assert fetch_shard(year(url), one.context).digest == result.digest
    assert stub.asked == {0: 1}


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "twice"])
def test_damaged_page_is_set_aside_and_fetched_again(tmp_path: Path, damage: str) -> None:
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(year(url), one.context)
        path = tmp_path / result.pages[1].file.path
        content = path.read_bytes()
        if damage == "twice":
            # A complete page under a second name, as after two vintages: the first by name counts.
            store.write_page(
                tmp_path, result.shard, 5000, (tmp_path / result.pages[1].file.path).read_bytes() + b"", ".json.gz"
            )
            other = (tmp_path / result.pages[0].file.path).read_bytes()
            store.write_page(tmp_path, result.shard, 5000, other, ".json.gz")
        else:
            path.write_bytes(
                {"flipped": content[:99] + b"\0" + content[100:], "cut": content[:-9], "empty": b""}[damage]
            )
        again = fetch_shard(year(url), one.context)
    assert again.digest == result.digest
    assert again.faults
    assert list(tmp_path.rglob("*.stale"))


def test_pages_with_another_total_are_set_aside(tmp_path: Path) -> None:
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        old = fetch_shard(year(url), one.context)
        (tmp_path / old.pages[2].file.path).unlink()
        stub.missing = {("2023-01-01T05", "D"), ("2023-01-01T06", "D")}  # the source has changed meanwhile
        new = fetch_shard(year(url), one.context)
        assert len(list(tmp_path.rglob("*.stale"))) == 3
    with serve(stub) as url, bench(tmp_path / "fresh") as one:
        fresh = fetch_shard(year(url), one.context)
    assert (new.total, new.digest, new.piece.sha256) == (fresh.total, fresh.digest, fresh.piece.sha256)
    assert new.reused == 0


def test_page_at_an_unexpected_offset_is_ignored(tmp_path: Path) -> None:
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(year(url), one.context)
        odd = http.inflate((tmp_path / result.pages[3].file.path).read_bytes())
        rows = json.loads(odd)
        rows["response"]["data"] = rows["response"]["data"][-400:]
        store.write_page(tmp_path, result.shard, 19000, gzip.compress(json.dumps(rows).encode()), ".json.gz")
        again = fetch_shard(year(url), one.context)
    assert again.digest == result.digest
    assert sum(page.rows for page in again.pages) == again.total == result.total
    assert again.faults == {"repeated": 1}


def test_pages_of_two_origins_never_mix(tmp_path: Path) -> None:
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        old = fetch_shard(year(url), one.context)
        (tmp_path / old.pages[2].file.path).unlink()
        stub.world = "recordings"
        new = fetch_shard(year(url), one.context)
    assert (new.origin, new.reused, new.faults) == ("recordings", 0, {"origin": 1})


def test_pages_whose_origin_is_damaged_or_unknown_are_fetched_again(tmp_path: Path) -> None:
    """They would be taken for another world's: `api.eia.gov` for real hours, any other name for a host."""
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        old = fetch_shard(year(url), one.context)
        path = store.page_folder(tmp_path, old.shard) / "origin"
        for damaged in (path.read_bytes().replace(b"synthetic", b"synthftic"), None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            new = fetch_shard(year(url), one.context)
            assert (new.origin, new.reused, new.digest) == ("synthetic", 0, old.digest)
    assert new.faults == {"stale": len(old.pages)}


KILLED = """
import sys, os, threading, pathlib
sys.path.insert(0, {here!r})
from tests.support.stub_server import bench, eia_job
from ingest import store
from ingest.fetch import fetch_shard
from ingest.models import FetchJob
real, left = store.atomic_write, [2]
def write(path, content):
    if path.suffix == ".gz":
        left[0] -= 1
        if left[0] < 0:
            path.parent.joinpath(".half.1-1.tmp").write_bytes(content[:100])
            os.kill(os.getpid(), 9)
    real(path, content)
store.atomic_write = write
with bench(pathlib.Path({data!r}), connections=1) as one:
    fetch_shard(eia_job({url!r}, start="2023-01-01T00", end="2023-07-22T01"), one.context)
"""


def test_kill_9_loses_only_the_page_in_flight(tmp_path: Path) -> None:
    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        script = KILLED.format(here=str(Path(__file__).parents[3]), data=str(tmp_path), url=url)
        assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
        stored = {int(path.name[:8]) for path in tmp_path.rglob("*.json.gz")}
        assert len(stored) == 2
        before = stub.asked.copy()
        result = fetch_shard(year(url), one.context)
        assert all(stub.asked[offset] == before[offset] for offset in stored)
    assert result.reused == 2
    assert not any(".half" in page.file.path for page in result.pages)


def test_full_disk_is_a_storage_error_and_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with serve(stub) as url, bench(tmp_path) as one:
        with monkeypatch.context() as patched, pytest.raises(StorageError, match=r"No space left.*free some space"):
            patched.setattr(os, "fsync", full)
            fetch_shard(year(url), one.context)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        result = fetch_shard(year(url), one.context)
    assert result.rows == result.total


def test_second_generation_shares_no_file_with_the_first(tmp_path: Path) -> None:
    from dataclasses import replace

    stub = Stub()
    with serve(stub) as url, bench(tmp_path) as one:
        job = eia_job(url)
        first = fetch_shard(job, one.context)
        later: Any = replace(job, shard=replace(job.shard, generation=1))
        second = fetch_shard(later, one.context)
    assert second.reused == 0
    assert second.digest == first.digest
    assert {page.file.path for page in first.pages}.isdisjoint(page.file.path for page in second.pages)
