"""Extractions on a folder that holds data: nothing to do, revised hours, results from a worker with a separate folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ingest.emulator.process import Emulator
from tests.support.data_folder import build_all, commit, daily, shard
from tests.support.program import Coordinator, environment, series_digest
from tests.support.waiting import end_of, until
from worker.training.rank_runner import free_port


def test_default_run_needs_no_key_and_the_next_one_requests_nothing(
    program: Coordinator, coordinator: Coordinator, tmp_path: Path
) -> None:
    period = ("--respondents", "PACW", "--start", "2024-01", "--end", "2024-02")
    run = program("start", "--extract", "--json", *period)
    assert run.code == 0, run.stderr
    result = run.result
    assert result["rows"] == result["total"] > 0
    assert result["duplicates"] == 0
    assert result["origins"] == ["synthetic"]
    assert (tmp_path / "data" / "coverage.png").stat().st_size > 0
    again = coordinator("start", "--extract", "--json", *period)
    assert again.code == 0
    assert again.result["new_shards"] == 0
    assert again.result["requests"] == 0
    verified = coordinator("verify")
    assert verified.code == 0, verified.stdout
    assert_repaired(coordinator, tmp_path / "data", period)


def test_torn_manifest_of_a_series_is_named_and_the_series_is_built_again(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """It ended every start until somebody removed it. Also that of a series which the request does not cover."""
    data = tmp_path / "data"
    for respondent in ("ERCO", "PACW"):
        for route, code in (("region-data", "D"), ("fuel-type-data", "SUN")):
            one = shard(respondent, "2024-01-01T00", "2024-01-31T23", route=route)
            commit(data, one, {code: daily(one.hours)})
    build_all(data)
    series = series_digest(data)
    torn = [data / "manifests" / "build" / respondent / "2024.json" for respondent in ("ERCO", "PACW")]
    for path in torn:
        path.write_bytes(path.read_bytes()[:100])
    month = ("--source", "http://127.0.0.1:1", "--respondents", "PACW", "--start", "2024-01", "--end", "2024-01")
    run = coordinator("start", "--extract", *month)
    assert run.code == 0, run.stderr
    lines = run.stdout.splitlines()
    for path, line in zip(torn, lines[:2], strict=True):
        assert f"{path.relative_to(tmp_path)} is not a readable manifest" in line
        assert "its series is built again" in line
        assert path.exists()
    # The summary keeps this request apart from what the folder holds.
    assert lines[2] == "2 of 2 shards verified for this request"
    assert lines[3].startswith("data holds 2 series (synthetic): rows 2,976 = Σ total 2,976")
    assert "nothing was left to do" not in run.stdout
    assert "this run: no new shard; 6 files of series built from the shards on disk" in lines
    assert series_digest(data) == series
    # A damaged file has the name of the series, of the dataset and of the snapshot: one repair makes all of them whole.
    os.truncate(data / "dataset/year=2024/PACW.parquet", 1000)
    assert coordinator("verify").code == 1
    repaired = coordinator("start", "--extract", *month)
    assert repaired.code == 0 and "nothing was left to do" not in repaired.stdout, repaired.stderr
    verified = coordinator("verify")
    assert verified.code == 0, verified.stdout
    assert "nothing was left to do" in coordinator("start", "--extract", *month).stdout


def assert_repaired(coordinator: Coordinator, data: Path, period: tuple[str, ...]) -> None:
    """Lose a page, cut a piece and lose a series; the same extraction makes them again, with one request."""
    series = series_digest(data)
    next(data.glob("raw/eia/region-data/**/*.gz")).unlink()
    piece = next(data.glob("pieces/*fuel-type-data*"))
    piece.write_bytes(piece.read_bytes()[:-8])
    next(data.glob("series/**/wide.parquet")).unlink()
    assert "repeat the extraction" in coordinator("verify").stdout
    repaired = coordinator("start", "--extract", "--json", *period)
    assert repaired.code == 0, repaired.stderr
    assert repaired.result["new_shards"] == 2
    assert repaired.result["requests"] >= 1
    assert series_digest(data) == series
    assert coordinator("verify").code == 0


def test_update_refetches_revisable_hours_and_keeps_both_generations(coordinator: Coordinator, tmp_path: Path) -> None:
    """The emulator's clock is in June 2026; a week later the hours that it has revised are a new generation."""
    period = ("--respondents", "PACW", "--start", "2026-05", "--end", "2026-07")
    with Emulator("--now", "2026-06-20T06") as emulator:
        first = coordinator("start", "--update", "--json", "--source", emulator.url, *period)
        assert first.code == 0, first.stderr
        emulator.advance(7 * 86400)
        second = coordinator("start", "--update", "--json", "--source", emulator.url, *period)
        assert second.code == 0, second.stderr
    assert second.result["new_rows"] < first.result["new_rows"]
    assert second.result["revised"] > 0
    assert list((tmp_path / "data" / "manifests").rglob("*/g000.json"))
    assert list((tmp_path / "data" / "manifests").rglob("*/g001.json"))
    assert coordinator("verify").code == 0


def test_worker_with_its_own_folder_uploads_its_files(coordinator: Coordinator, tmp_path: Path) -> None:
    """As on another host: it shares only the connection with the coordinator; what it fetched is verified here."""
    # 8 shards: more than one worker holds. Slow responses keep the coordinator's own worker busy until this one is there.
    plan = ("--respondents", "PACW,ERCO", "--start", "2023-12", "--end", "2024-01")
    bind = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
    remote = [sys.executable, "-m", "worker", "--coordinator", bind, "--data", str(tmp_path / "far")]
    log = tmp_path / "far.log"
    with log.open("w") as stderr:
        worker = subprocess.Popen(remote, cwd=tmp_path, env=environment(), stderr=stderr)
    try:
        until((tmp_path / "far").exists, "the worker")
        with Emulator("--latency-ms", "1000") as emulator:
            run = coordinator("start", "--extract", "--json", "--source", emulator.url, "--bind", bind, *plan)
        assert run.code == 0, run.stderr
        end_of(worker, "the worker's end")
        assert worker.returncode == 0, log.read_text()
    finally:
        worker.kill()
        worker.wait()
    assert run.result["rows"] == run.result["total"]
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "data" / "manifests" / "eia").rglob("*.json")]
    assert any(f"-{worker.pid}-" in manifest["worker"] for manifest in manifests)
    assert coordinator("verify").code == 0
