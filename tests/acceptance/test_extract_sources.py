"""Extractions from each source: recorded hours, bulk files, OASIS, the monitored script; and the dry run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.emulator.process import Emulator
from ingest.loader import load_series
from tests.support.program import RECORDINGS, ROOT, Coordinator, environment


def test_recorded_real_hours_reach_the_series(coordinator: Coordinator, tmp_path: Path) -> None:
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


def demand_file(folder: Path, code: str, value: int, hours: int = 6) -> Path:
    """Write one respondent's recording of `hours` hours of 1 January 2020, `value` MWh in each."""
    lines = [f"2020-01-01 {hour:02d}:00:00,{value},{value + 1}" for hour in range(hours)]
    path = folder / f"{code}.csv"
    path.write_text("\n".join(["date_time,demand (MW),forecast demand (MW)", *lines, ""]))
    return path


def test_every_path_of_a_recordings_source_is_read(coordinator: Coordinator, tmp_path: Path) -> None:
    """Two respondents in two files: the source served the last path only, and the run ended as complete."""
    paths = [demand_file(tmp_path, code, value) for code, value in (("BPAT", 5000), ("AVA", 1000))]
    day = ("--start", "2020-01-01T00", "--end", "2020-01-01T05", "--json")
    source = f"recordings:{paths[0]},{paths[1]}"
    run = coordinator("start", "--extract", "--source", source, "--respondents", "BPAT,AVA", *day)
    assert run.code == 0, run.stderr
    assert run.result["series"] == 2
    for code, value in (("BPAT", 5000), ("AVA", 1000)):
        series = load_series(tmp_path / "data", [code], ["D"], "2020-01-01T00", "2020-01-01T05")
        assert series.values.tolist() == [[value]] * 6


def test_an_option_that_lists_codes_may_be_repeated(coordinator: Coordinator) -> None:
    run = coordinator("start", "--extract", "--dry-run", "--json", "--respondents", "PACW", "--respondents", "ERCO,CISO")
    assert run.result["respondents"] == ["PACW", "ERCO", "CISO"]


def test_bulk_files_and_oasis_are_extracted_the_same_way(coordinator: Coordinator, emulator: Emulator) -> None:
    """A bulk file that was read for one respondent is read again for another, as the next generation."""
    bulk = ("--source", f"bulk+{emulator.url}", "--start", "2024-07", "--end", "2024-12", "--json", "--data", "bulk")
    one = coordinator("start", "--extract", *bulk, "--respondents", "PACW")
    two = coordinator("start", "--extract", *bulk, "--respondents", "PACW,ERCO")
    oasis = ("--source", f"oasis+{emulator.url}", "--respondents", "CISO", "--start", "2024-01", "--end", "2024-01")
    caiso = coordinator("start", "--extract", *oasis, "--json", "--data", "oasis")
    for run in (one, two, caiso):
        assert run.code == 0, run.stderr
        assert run.result["rows"] == run.result["total"] > 0
    assert two.result["series"] > one.result["series"]


def test_monitored_extraction_counts_what_it_reports(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "dev" / "run_full_extraction_monitored.py"
    arguments = [sys.executable, str(script), "--test", "--respondents", "PACW"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "2024-01-01T00 to 2024-01-31T23" in done.stdout
    summary = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert f"{summary['rows']:,} verified in this run" in done.stdout
    assert "12,500 rows/s (data: synthetic)" in done.stdout


def test_dry_run_prints_the_plan_and_requests_nothing(coordinator: Coordinator, tmp_path: Path) -> None:
    run = coordinator("start", "--extract", "--dry-run", "--json")
    assert run.code == 0
    assert len(run.result["shards"]) == 70
    assert run.result["requests"] == 735
    assert not (tmp_path / "data").exists()
