"""Extractions from each source: recorded hours, bulk files, OASIS, the monitored script; and the dry run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from ingest.columns import hour_number
from ingest.emulator.process import Emulator
from ingest.loader import available, load_series
from ingest.verify import verify
from scripts.dev import run_full_extraction_monitored
from tests.support.eia_client import FEW
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
            assert set(present["reason"][given]) <= {"ok", "outlier", "suspect"}


def demand_file(folder: Path, code: str, value: int, hours: int = 6) -> Path:
    """Write one respondent's recording of `hours` hours of 1 January 2020, `value` MWh in each."""
    lines = [f"2020-01-01 {hour:02d}:00:00,{value},{value + 1}" for hour in range(hours)]
    path = folder / f"{code}.csv"
    path.write_text("\n".join(["date_time,demand (MW),forecast demand (MW)", *lines, ""]))
    return path


def test_mistyped_path_and_unreadable_recording_are_one_line(coordinator: Coordinator, tmp_path: Path) -> None:
    """A typing error printed twelve lines of another program's usage, under exit code 1."""
    typo = coordinator("start", "--extract", "--source", "recordings:nowhere.csv", "--respondents", "BPAT")
    assert (typo.code, typo.stderr.count("\n")) == (2, 1)
    assert "no such file or folder: nowhere.csv" in typo.stderr
    path = tmp_path / "BPAT.csv"
    path.write_text("date_time,colour\n2020-01-01 00:00:00,blue\n")
    wrong = coordinator("start", "--extract", "--source", f"recordings:{path}", "--respondents", "BPAT")
    assert (wrong.code, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
    assert (
        f"{path}: no column of hourly values among date_time, colour; known columns of values are demand"
        in wrong.stderr
    )
    foreign = tmp_path / "folder" / "stations.csv"
    foreign.parent.mkdir()
    foreign.write_text("name,lat\nDALLES,45.6\n")
    mixed = coordinator("start", "--extract", "--source", f"recordings:{foreign.parent}", "--respondents", "BPAT")
    assert (mixed.code, mixed.stderr.count("\n")) == (2, 1), mixed.stderr
    assert f"{foreign}: the column 'name' is not a time" in mixed.stderr
    assert "Move the file out of the folder" in mixed.stderr


def test_an_option_that_lists_codes_may_be_repeated(coordinator: Coordinator) -> None:
    run = coordinator(
        "start", "--extract", "--dry-run", "--json", "--respondents", "PACW", "--respondents", "ERCO,CISO"
    )
    assert run.result["respondents"] == ["PACW", "ERCO", "CISO"]


def test_respondent_with_nothing_is_named_first_and_nothing_at_all_is_a_failure(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """Both ended as complete: the one sign was a gap line among dozens of others. And every path of a source is read."""
    paths = [demand_file(tmp_path, code, value) for code, value in (("BPAT", 5000), ("AVA", 1000))]
    day = ("--source", f"recordings:{paths[0]},{paths[1]}", "--start", "2020-01-01T00", "--end", "2020-01-01T05")
    few = coordinator("start", "--extract", *day, "--respondents", "BPAT,ERCO", "--data", "few", "--json")
    assert few.code == 0, few.stderr
    assert few.result["shards"] == 2  # no file has fuels, and they were not named
    routes = ("--routes", "region-data,fuel-type-data")
    some = coordinator("start", "--extract", *day, *routes, "--respondents", "BPAT,AVA,ERCO")
    assert some.code == 0, some.stderr
    assert some.stdout.splitlines()[:4] == [
        f"{code}: eia {route}-data has no hour of 2020-01-01T00 to 2020-01-01T05"
        for code, route in (("BPAT", "fuel-type"), ("AVA", "fuel-type"), ("ERCO", "region"), ("ERCO", "fuel-type"))
    ]
    for code, value in (("BPAT", 5000), ("AVA", 1000)):
        series = load_series(tmp_path / "data", [code], ["D"], "2020-01-01T00", "2020-01-01T05")
        assert series.values.tolist() == [[value]] * 6
    # Recorded hours have happened: they are asked for by today's clock, not by that of the synthetic hours.
    asked = {
        json.loads(path.read_text())["proof"]["asked_at"]
        for path in (tmp_path / "data").glob("manifests/eia/*/*/*/*.json")
    }
    assert all(abs(hour_number(hour) - time.time() / 3600) < 2 for hour in asked)
    assert asked
    none = coordinator("start", "--extract", *day, "--respondents", "ERCO", "--data", "other")
    assert none.code == 1
    assert "has no hour of what was asked for" in none.stderr


@pytest.mark.long
def test_first_hours_of_a_bulk_extraction_come_from_the_file_before(
    coordinator: Coordinator, emulator: Emulator, tmp_path: Path
) -> None:
    """The first 9 hours of 1 July in UTC are of 30 June in Pacific time: they were absent, and no gap named them."""
    period = ("--start", "2024-07-01", "--end", "2024-07-02", "--respondents", "PACW")
    bulk = coordinator("start", "--extract", "--json", "--source", f"bulk+{emulator.url}", *period, "--data", "bulk")
    eia = coordinator("start", "--extract", "--json", "--source", emulator.url, *period, "--data", "eia")
    assert bulk.code == eia.code == 0, bulk.stderr + eia.stderr
    first, last = "2024-07-01T00", "2024-07-02T23"
    values = [load_series(tmp_path / folder, ["PACW"], ["D", "NG"], first, last).values for folder in ("bulk", "eia")]
    assert_array_equal(values[0], values[1])
    assert all(gap["start"] >= first for gap in bulk.result["gaps"])
    whole = coordinator("verify", "--data", "bulk", "--json")
    assert whole.code == 0, whole.stdout
    # Earlier hours than before: the file before is read again, now for all of its hours.
    earlier = ("--start", "2024-06-30", "--end", "2024-07-02", "--respondents", "PACW", "--data", "bulk", "--json")
    wider = coordinator("start", "--extract", "--source", f"bulk+{emulator.url}", *earlier)
    assert (wider.result["new_shards"], coordinator("verify", "--data", "bulk").code) == (1, 0)


@pytest.mark.long
def test_auto_takes_old_hours_from_files_and_compares_the_overlap(coordinator: Coordinator, tmp_path: Path) -> None:
    with Emulator(
        "--respondents", "PACW,CAL", "--quirks", "none", "--now", f"{datetime.now(UTC):%Y-%m-%dT%H}"
    ) as source:
        turn = datetime.now(UTC) - timedelta(days=30)
        first = f"{turn.year}-07-01" if turn.month > 6 else f"{turn.year}-01-01"  # the first day that no old file has
        span = ("--start", f"{date.fromisoformat(first) - timedelta(days=9)}", "--end", f"{date.fromisoformat(first)}")
        run = coordinator(
            "start", "--extract", "--json", "--source", f"auto+{source.url}", "--respondents", "PACW,CAL", *span
        )
    assert run.code == 0, run.stderr
    parts = [run.result[name] for name in ("extract 1 (bulk)", "extract 2 (eia)", "extract 3 (eia)")]
    assert [part["new_shards"] for part in parts] == [1, 2, 2] or len({span[1][:4], span[3][:4]}) == 2
    assert run.result["agreement"]["compared"] > 1_000
    assert run.result["agreement"]["differing"] == {}
    assert coordinator("verify").code == 0


@pytest.mark.long
def test_bulk_files_of_all_routes_equal_the_api(coordinator: Coordinator, tmp_path: Path) -> None:
    """Neighbours, sub-areas, imputed and adjusted values come without a key, and what both sources have is equal."""
    asked = ("--respondents", "CISO,PACW", "--start", "2024-08-01", "--end", "2024-08-05", "--json")
    with Emulator(*FEW, "--quirks", "none") as source:
        runs = [
            coordinator("start", "--extract", *asked, "--routes", "all", "--data", name, "--source", kind + source.url)
            for name, kind in (("bulk", "bulk+"), ("api", ""))
        ]
    assert [run.code for run in runs] == [0, 0], [run.stderr for run in runs]
    assert runs[0].result["notes"] == ["bulk SUBREGION is not published for PACW"]
    assert not runs[0].result["absent"]
    period = ("2024-08-01T00", "2024-08-05T23")
    for code in ("CISO", "PACW"):
        have = {name: available(tmp_path / name, code).variables for name in ("bulk", "api")}
        assert set(have["api"]) < set(have["bulk"])
        bulk, api = (load_series(tmp_path / name, [code], have["api"], *period) for name in ("bulk", "api"))
        assert_array_equal(bulk.values, api.values)
        adjusted = load_series(tmp_path / "bulk", [code], ["adjusted.D", "adjusted.NG.WAT"], *period)
        reported = load_series(tmp_path / "bulk", [code], ["D", "NG.WAT"], *period)
        assert_array_equal(adjusted.values, reported.values)  # the emulator adjusts nothing
    assert coordinator("verify", "--data", "bulk").code == 0


def test_bulk_files_and_oasis_are_extracted_the_same_way(
    coordinator: Coordinator, emulator: Emulator, tmp_path: Path
) -> None:
    """A bulk file that was read for one respondent is read again for another, as the next generation."""
    bulk = ("--source", f"bulk+{emulator.url}", "--start", "2024-07-02", "--end", "2024-12", "--json", "--data", "bulk")
    one = coordinator("start", "--extract", *bulk, "--respondents", "PACW")
    two = coordinator("start", "--extract", *bulk, "--respondents", "PACW,ERCO")
    oasis = ("--source", f"oasis+{emulator.url}", "--respondents", "CISO", "--start", "2024-01", "--end", "2024-01")
    caiso = coordinator("start", "--extract", *oasis, "--routes", "all", "--json", "--data", "oasis")
    for run in (one, two, caiso):
        assert run.code == 0, run.stderr
        assert run.result["rows"] == run.result["total"] > 0
    assert two.result["series"] > one.result["series"]
    names = ("D", "DF", "SLD_FCST.SYS_FCST_ACT_MW.CA ISO-TAC", "PRC_LMP.LMP_PRC.TH_SP15_GEN-APND")
    frame = load_series(tmp_path / "oasis", "CISO", names, "2024-01-02", "2024-01-30").to_frame()
    assert frame.notna().mean().min() > 0.99
    assert (frame["CISO.D"] == frame[f"CISO.{names[2]}"]).mean() > 0.99
    assert list(frame.attrs["units"].values()) == ["MWh", "MWh", "MWh", "USD/MWh"]


def test_all_routes_are_extracted_and_agree(coordinator: Coordinator, tmp_path: Path) -> None:
    """Flows to neighbours sum to the interchange, sub-areas to the demand, hours to days; each flow is the negative of its counterpart."""
    with Emulator("--quirks", "none") as source:
        asked = (
            "--respondents",
            "CISO,PACW,YAD",
            "--routes",
            "all,daily",
            "--start",
            "2024-03-01",
            "--end",
            "2024-03-03",
        )
        run = coordinator("start", "--extract", "--json", "--workers", "1", "--source", source.url, *asked)
    assert run.code == 0, run.stderr
    routes = ("region-sub-ba-data", "daily-region-sub-ba-data")
    assert run.result["notes"] == [f"eia {route} is not published for PACW, YAD" for route in routes]
    assert (run.result["shards"], run.result["gap_hours"]) == (20, 0)
    days = run.result["daily"]
    assert (days["respondents"], days["missing"], days["differing"]) == (3, 0, [])
    # The last local day ends after the last hour.
    assert days["compared"] == days["values"] * 2 // 3 > 0
    period = ("2024-03-01T00", "2024-03-03T23")

    def load(code: str) -> dict[str, Any]:
        variables = available(tmp_path / "data", code).variables
        got = load_series(tmp_path / "data", [code], variables, *period)
        assert got.mask.all()
        return dict(zip(variables, got.values.T, strict=True))

    ciso, pacw, yad = load("CISO"), load("PACW"), load("YAD")
    for series, whole, prefix in ((ciso, "TI", "ID."), (ciso, "D", "D."), (pacw, "TI", "ID."), (yad, "TI", "ID.")):
        assert_array_equal(series[whole], sum(series[name] for name in series if name.startswith(prefix)))
    assert_array_equal(ciso["ID.PACW"], -pacw["ID.CISO"])
    assert len([name for name in ciso if name.startswith("D.")]) == 4
    assert "D" not in yad  # it only generates
    assert verify(tmp_path / "data").whole


def test_monitored_extraction_counts_what_it_reports(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "dev" / "run_full_extraction_monitored.py"
    arguments = [sys.executable, str(script), "--test", "--respondents", "PACW"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "2024-01-01T00 to 2024-01-31T23" in done.stdout
    summary = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert f"{summary['rows']:,} verified in this run" in done.stdout
    assert "12,500 rows/s (data: synthetic)" in done.stdout
    assert "{" not in done.stderr  # progress was raw JSON
    assert " tasks\n" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "January 2024 only"),  # was a traceback
        (["--test", "--start", "2024-05"], 2, "--test means January 2024; leave out --start"),  # ran January
        (["--rollouts"], 2, "the script runs the extraction only"),
        (["--json"], 2, "coordinator start --extract --json"),
        (["--respondents", "PACX"], 2, "did you mean PACW"),
    ],
)
def test_monitored_extraction_has_help_and_refuses_what_it_ignored(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_full_extraction_monitored.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_full_extraction_monitored.main()
    out, err = capfd.readouterr()
    assert (ended.value.code, "Traceback" in err) == (code, False)
    assert said in out + err


def test_dry_run_prints_the_plan_and_requests_nothing(coordinator: Coordinator, tmp_path: Path) -> None:
    run = coordinator("start", "--extract", "--dry-run", "--json")
    assert run.code == 0
    assert len(run.result["shards"]) == 70
    assert run.result["requests"] == 749
    assert not (tmp_path / "data").exists()
