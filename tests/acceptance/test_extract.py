"""The extract stage from outside: a whole run, again, with faults, with bad input."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from ingest.emulator.process import Emulator
from tests.support.program import RECORDINGS, ROOT, SMALL, Run, command, environment, series_digest
from tests.support.waiting import until
from worker.training.rank_runner import free_port

Coordinator = Callable[..., Run]
LASTING = (
    "--respondents",
    "PACW,ERCO",
    "--start",
    "2024",
    "--end",
    "2024",
)  # about 40 pages: a run to look at meanwhile


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The small plan over the default world, undisturbed: its data folder and its series' digests."""
    data = tmp_path_factory.mktemp("faultless") / "data"
    with Emulator() as emulator:
        arguments = command("start", "--extract", "--json", "--source", emulator.url, "--data", data, *SMALL)
        done = subprocess.run(
            arguments, capture_output=True, text=True, env=environment(), check=False, cwd=data.parent
        )
    assert done.returncode == 0, done.stderr
    return data, series_digest(data)


def test_the_default_run_needs_nothing_and_proves_all(coordinator: Coordinator, tmp_path: Path) -> None:
    run = coordinator("start", "--extract", "--json", "--respondents", "PACW", "--start", "2024-01", "--end", "2024-02")
    assert run.code == 0, run.stderr
    result = run.result
    assert result["rows"] == result["total"] > 0
    assert result["duplicates"] == 0
    assert result["origins"] == ["synthetic"]
    assert (tmp_path / "data" / "coverage.png").stat().st_size > 0
    again = coordinator(
        "start", "--extract", "--json", "--respondents", "PACW", "--start", "2024-01", "--end", "2024-02"
    )
    assert again.code == 0
    assert again.result["new_shards"] == 0
    assert again.result["requests"] == 0
    verified = coordinator("verify")
    assert verified.code == 0, verified.stdout


# Every form that the API's answers are known to fail in; each spoils the first answer of some pages, drawn by the seed.
FAULTS: dict[str, dict[str, object]] = {
    "429": {"kind": "429"},
    "403-suspend": {"kind": "403-suspend", "params": {"seconds": 1}},
    "403-invalid": {"kind": "403-invalid"},
    "500-404": {"kind": "500-404"},
    "502": {"kind": "502"},
    "html": {"kind": "html"},
    "truncated": {"kind": "truncated"},
    "cut": {"kind": "cut"},
    "short": {"kind": "short"},
    "repeated": {"kind": "repeated"},
    "total-high": {"kind": "total", "params": {"delta": 100}},
    "total-low": {"kind": "total", "params": {"delta": -100}},
    "case": {"kind": "case"},
    "nulls": {"kind": "nulls"},
    "reset": {"kind": "reset"},
    "slow": {"kind": "slow", "params": {"seconds": 0.5}},
    "dribble": {"kind": "dribble", "params": {"seconds": 0.5}},
}


def spoilt(*names: str, probability: float) -> list[dict[str, object]]:
    return [{**FAULTS[name], "match": {"probability": probability}, "times": 1} for name in names]


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_the_series_as_it_was(
    coordinator: Coordinator, faultless: tuple[Path, dict[str, str]], tmp_path: Path, fault: str
) -> None:
    with Emulator(faults=spoilt(fault, probability=0.25)) as emulator:
        run = coordinator("start", "--extract", "--json", "--source", emulator.url, *SMALL)
        hit = emulator.stats()["faults"]
    assert run.code == 0, run.stderr
    assert hit, "the plan spoilt nothing: this test proves nothing"
    assert run.result["rows"] == run.result["total"]
    assert series_digest(tmp_path / "data") == faultless[1]


def test_all_faults_together(coordinator: Coordinator, faultless: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with Emulator(faults=spoilt(*FAULTS, probability=0.1)) as emulator:
        run = coordinator("start", "--extract", "--json", "--source", emulator.url, *SMALL)
        hit = emulator.stats()["faults"]
    assert run.code == 0, run.stderr
    assert len(hit) >= 6
    assert series_digest(tmp_path / "data") == faultless[1]


def test_what_can_not_be_mended_is_quarantined_and_the_rest_finishes(coordinator: Coordinator, tmp_path: Path) -> None:
    """Every page of one shard is short, for ever: never a partial success."""
    forever = {"kind": "short", "match": {"route": "region-data", "respondent": "ERCO"}, "times": None}
    with Emulator(faults=[forever]) as emulator:
        small = ("--source", emulator.url, "--retries", "2", *SMALL)
        run = coordinator("start", "--extract", "--json", *small)
        assert run.code == 75, run.stderr
        result = run.result
        assert [task for task, _, _ in result["quarantined"]] == ["eia/region-data/ERCO/20240101T00-20240630T23/g000"]
        assert result["proved"] == 3
        assert result["series"] == 1
        emulator.set_faults([])
        resumed = coordinator("start", "--extract", "--json", *small)
    assert resumed.code == 0, resumed.stderr
    assert resumed.result["new_shards"] == 1
    assert resumed.result["series"] == 2


def test_recorded_real_hours_come_through(coordinator: Coordinator, tmp_path: Path) -> None:
    """Every real value is in the series, each hour without one has its reason; outliers keep their raw value."""
    folder = RECORDINGS / "eia-demand" / "2020_Oct"
    if not folder.is_dir():
        pytest.skip(f"real recordings are not at {folder}")
    pd = pytest.importorskip("pandas")
    period = ("--start", "2016", "--end", "2016", "--respondents", "PACW,ERCO")
    run = coordinator("start", "--extract", "--json", "--source", f"recordings:{folder}", *period)
    assert run.code == 0, run.stderr
    assert run.result["origins"] == ["recordings"]
    for respondent in ("PACW", "ERCO"):
        real = pd.read_csv(folder / f"{respondent}.csv", parse_dates=["date_time"]).set_index("date_time").loc["2016"]
        long = pd.read_parquet(tmp_path / "data" / "series" / respondent / "2016" / "long.parquet")
        for variable, column in (("D", "demand (MW)"), ("DF", "forecast demand (MW)")):
            want = pd.to_numeric(real[column], errors="coerce")
            got = long[long["variable"] == variable].set_index("period")
            got.index = got.index.tz_localize(None)
            assert len(got) == 8784
            present = got.loc[want.index]
            given = want.notna().to_numpy()
            assert (present["raw"].to_numpy()[given] == want.to_numpy()[given]).all()
            assert set(present["reason"][~given]) <= {"missing", "null"}
            assert set(present["reason"][given]) <= {"ok", "outlier"}


def test_a_wrong_key_is_an_authentication_error(coordinator: Coordinator) -> None:
    with Emulator() as emulator:
        run = coordinator(
            "start", "--extract", "--source", emulator.url, *SMALL, EIA_API_KEY="INVALID-key-of-forty-characters-or-so"
        )
    assert run.code == 4
    assert "EIA_API_KEY" in run.stderr + run.stdout


def test_an_unknown_respondent_is_named_with_near_matches_before_any_request(coordinator: Coordinator) -> None:
    with Emulator() as emulator:
        run = coordinator("start", "--extract", "--source", emulator.url, "--respondents", "PACX")
        asked = emulator.requests()
    assert run.code == 2
    assert "PACW" in run.stderr
    assert not asked


def test_a_second_coordinator_on_the_folder_is_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    with Emulator("--latency-ms", "1000") as emulator:
        arguments = command("start", "--extract", "--source", emulator.url, "--quiet", *LASTING)
        first = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
        try:
            until(lambda: emulator.requests() or first.poll() is not None, "the first request")
            second = coordinator("start", "--extract", "--source", emulator.url, *SMALL)
            seen = coordinator("status", "--json")
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):  # twice: at once
                first.send_signal(number)
            assert first.wait(60) == 130
    assert second.code == 2
    assert str(first.pid) in second.stderr
    assert seen.code == 0
    assert seen.result["running"] is True


def test_a_damaged_journal_is_named_and_rebuilt_from_the_manifests(coordinator: Coordinator, tmp_path: Path) -> None:
    with Emulator() as emulator:
        small = ("--source", emulator.url, "--respondents", "PACW", "--start", "2024-03", "--end", "2024-03")
        assert coordinator("start", "--extract", *small).code == 0
        journal = tmp_path / "data" / "journal.sqlite"
        before = series_digest(tmp_path / "data")
        journal.write_bytes(b"not a journal" * 1000)
        refused = coordinator("start", "--extract", *small, "--end", "2024-04")
        assert refused.code == 1
        assert "--rebuild" in refused.stderr
        rebuilt = coordinator("start", "--extract", "--rebuild", "--json", *small)
    assert rebuilt.code == 0, rebuilt.stderr
    assert rebuilt.result["requests"] == 0
    assert series_digest(tmp_path / "data") == before


def test_the_key_is_nowhere(coordinator: Coordinator, tmp_path: Path) -> None:
    """The server echoes the key in every body; after a full run no file holds it."""
    key = "Kq7vTESTKEYneverwrittenZ2"
    with Emulator("--echo-header-key") as emulator:
        small = ("--source", emulator.url, "--respondents", "PACW", "--start", "2024-03", "--end", "2024-03")
        run = coordinator("start", "--extract", *small, EIA_API_KEY=key)
    assert run.code == 0, run.stderr
    assert key not in run.stdout + run.stderr
    needle = key.encode()
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        assert needle not in content, path
    assert any(path.suffix == ".gz" for path in files)


def test_update_asks_for_what_may_be_revised_and_keeps_both_vintages(coordinator: Coordinator, tmp_path: Path) -> None:
    """The emulator's clock says June 2026; a week later the hours that it had restated are a new generation."""
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


def test_bulk_and_oasis_come_the_same_way(coordinator: Coordinator) -> None:
    """A bulk file read for one respondent is read again for another, as the next generation."""
    with Emulator() as emulator:
        bulk = (
            "--source",
            f"bulk+{emulator.url}",
            "--start",
            "2024-07",
            "--end",
            "2024-12",
            "--json",
            "--data",
            "bulk",
        )
        one = coordinator("start", "--extract", *bulk, "--respondents", "PACW")
        two = coordinator("start", "--extract", *bulk, "--respondents", "PACW,ERCO")
        oasis = ("--source", f"oasis+{emulator.url}", "--respondents", "CISO", "--start", "2024-01", "--end", "2024-01")
        caiso = coordinator("start", "--extract", *oasis, "--json", "--data", "oasis")
    for run in (one, two, caiso):
        assert run.code == 0, run.stderr
        assert run.result["rows"] == run.result["total"] > 0
    assert (one.result["series"], two.result["series"]) == (1, 2) or two.result["series"] > one.result["series"]


def test_a_full_disk_is_resumable(coordinator: Coordinator, tmp_path: Path) -> None:
    """A small tmpfs: exit 75 with the path and the next command; with room, the same command finishes."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small tmpfs needs root on Linux")
    data = tmp_path / "data"
    data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(data)], check=False).returncode:
        pytest.skip("tmpfs can't be mounted here")
    try:
        with Emulator() as emulator:
            small = ("--source", emulator.url, "--respondents", "PACW,ERCO", "--start", "2023", "--end", "2024")
            full = coordinator("start", "--extract", *small)
            assert full.code == 75, full.stderr
            assert "space" in full.stdout + full.stderr
            subprocess.run(["mount", "-o", "remount,size=200m", str(data)], check=True)
            resumed = coordinator("start", "--extract", "--json", *small)
            assert resumed.code == 0, resumed.stderr
            assert resumed.result["proved"] == resumed.result["shards"] == 8
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def test_garbage_on_the_socket_is_dropped_and_counted(coordinator: Coordinator, tmp_path: Path) -> None:
    """Random, oversized and half-right frames while a run goes on: it ends as if nothing had been."""
    with Emulator("--latency-ms", "150") as emulator:
        arguments = command("start", "--extract", "--json", "--quiet", "--source", emulator.url, *LASTING)
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        endpoint = tmp_path / "data" / ".endpoint"
        until(lambda: endpoint.exists() and endpoint.read_text(), "the endpoint")
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(endpoint.read_text())
        draw = random.Random(7)
        for size in (0, 1, 17, 1000, 100_000):
            for _ in range(20):
                socket.send_multipart([draw.randbytes(size)] * draw.randint(1, 4))
        socket.send(draw.randbytes(9 << 20))  # over the limit: the connection is cut, not the service
        seen = coordinator("status", "--json")
        socket.close(linger=0)
        context.term()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(output)["rows"] == json.loads(output)["total"]
    assert seen.result["counters"]["bad"] >= 90


def test_a_worker_with_a_folder_of_its_own_sends_its_files(coordinator: Coordinator, tmp_path: Path) -> None:
    """As on another host: it shares nothing with the coordinator but the connection; what it fetched is proved here."""
    # 12 shards: more than one worker holds. It waits for the coordinator, so it is there before the coordinator's own worker.
    plan = ("--respondents", "PACW,ERCO,MISO", "--start", "2023-12", "--end", "2024-01", "--workers", "1")
    bind = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
    remote = [sys.executable, "-m", "worker", "--coordinator", bind, "--data", str(tmp_path / "far")]
    worker = subprocess.Popen(remote, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "far").exists, "the worker")
        with Emulator() as emulator:
            run = coordinator("start", "--extract", "--json", "--source", emulator.url, "--bind", bind, *plan)
        assert run.code == 0, run.stderr
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert run.result["rows"] == run.result["total"]
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "data" / "manifests" / "eia").rglob("*.json")]
    assert any(f"-{worker.pid}-" in manifest["worker"] for manifest in manifests)
    assert coordinator("verify").code == 0


def test_the_monitored_extraction_counts_what_it_reports(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "dev" / "run_full_extraction_monitored.py"
    arguments = [sys.executable, str(script), "--test", "--respondents", "PACW"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "2024-01-01T00 to 2024-01-31T23" in done.stdout
    summary = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert f"{summary['rows']:,} verified in this run" in done.stdout
    assert "12,500 rows/s (data: synthetic)" in done.stdout


def test_dry_run_prints_the_plan_and_asks_nothing(coordinator: Coordinator, tmp_path: Path) -> None:
    run = coordinator("start", "--extract", "--dry-run", "--json")
    assert run.code == 0
    assert len(run.result["shards"]) == 70
    assert run.result["requests"] == 735
    assert not (tmp_path / "data").exists()
