"""Forecasts from a checkpoint: the command line and the table for control."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ingest.calendar import calendar_of
from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.features import COLUMNS
from ingest.loader import load_series
from ingest.publication import DAY_BEFORE, DEADLINE
from ingest.snapshot import series_folder
from tests.support.data_folder import build_all, commit, shard
from worker.forecast import fallback
from worker.forecast.basis import basis_of
from worker.forecast.cli import main
from worker.forecast.hourly.table import read_hourly
from worker.forecast.judge.cli import main as judge_main
from worker.forecast.model.network import QUANTILES
from worker.forecast.predict import hours_of_issue, load_model, predict, predict_raw
from worker.training.tokens import TARGET, Period, open_token_store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def trained(data: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder after a training, with the run in its default folder."""
    folder = tmp_path_factory.mktemp("trained") / "data"
    shutil.copytree(data, folder)
    shutil.copytree(alone, folder / "train")
    return folder


Forecast = Callable[..., tuple[int, str, str]]


@pytest.fixture
def forecast(trained: Path, capsys: pytest.CaptureFixture[str]) -> Forecast:
    """Run the program in this process; return its exit code, stdout and stderr."""

    def run(*flags: str) -> tuple[int, str, str]:
        try:
            code = main(["--data", str(trained), *flags])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


def cut_off(data: Path, last: str, last_forecast: str) -> None:
    """Leave PACW of 2023 as a folder has it before the rest comes: demand to one hour, DF to another."""
    start, end = "2023-01-01T00", "2023-02-28T23"
    found = load_series(data, ["PACW"], ["D", "DF"], start, end)
    values = {
        name: np.where(
            np.arange(len(found.hours)) <= hour_number(until) - hour_number(start), found.values[:, i], np.inf
        )
        for i, (name, until) in enumerate((("D", last), ("DF", last_forecast)))
    }
    commit(data, shard("PACW", start, end), values)
    build_all(data)


def test_hours_without_df_start_from_history_and_say_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DF of the day is there, partly there, or not at all; then demand too is missing for weeks, and nothing can be said."""
    monkeypatch.setattr(fallback, "MARGIN", 0.3)  # eight steps of training are hardly better than history here
    data = tmp_path / "data"
    shutil.copytree(trained, data)
    flags = ["--data", str(data), "--region", "PACW", "--issue", "2023-02-01T10"]
    found = {}
    for name, last, last_forecast in (
        ("whole", "2023-02-28T23", "2023-02-28T23"),
        ("part", "2023-02-01T18", "2023-02-02T19"),
        ("none", "2023-02-01T15", "2023-02-02T08"),
    ):
        cut_off(data, last, last_forecast)
        assert main([*flags, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    references = {name: [hour["reference"] for hour in one["hours"]] for name, one in found.items()}
    assert references == {
        "whole": ["DF"] * 24,
        "part": ["DF"] * 11 + ["own history"] * 13,
        "none": ["own history"] * 24,
    }
    assert [one["awaited"] for one in found.values()] == [0, 13, 24]
    assert found["whole"]["reasons"] == [] and found["whole"]["publication"] == "day-before"
    assert found["part"]["reasons"] == [
        "13 of 24 hours have no DF on disk: they start from the authority's own history"
    ]
    assert found["none"]["reasons"][1:] == [
        "demand on disk ends at 2023-02-01T15, 3 h before the last that the issue time knows"
    ]
    whole, none = ([hour["q0.5"] for hour in found[name]["hours"]] for name in ("whole", "none"))
    actual = [hour["demand"] for hour in found["whole"]["hours"]]
    assert np.abs(np.subtract(none, actual)).mean() < 400 and none != whole
    assert main(flags) == 0
    shown = capsys.readouterr().out
    assert (
        "note: 24 of 24 hours have no DF on disk" in shown
        and shown.count("* Thu ") == 23
        and "\n* starts from" in shown
    )
    cut_off(data, "2023-01-01T15", "2023-01-01T15")
    assert main(flags) == 1
    assert "nothing can be said of PACW" in (said := capsys.readouterr().err) and "coordinator start --extract" in said


def test_a_model_without_df_awaits_none(trained: Path) -> None:
    model = load_model(trained / "train")
    day = hours_of_issue("PACW", "2023-02-01T10")
    found = predict(model, model.open_store(trained), "PACW", day)
    found = dataclasses.replace(found, replaced=np.zeros(24, bool))
    basis = basis_of(trained, found, DEADLINE, "week")
    assert basis.names == ["week before"] * 24 and not basis.awaited and not list(basis.reasons(DEADLINE))
    (reason,) = basis_of(trained, found, DEADLINE, "DF").reasons(DEADLINE)
    assert reason.startswith("24 of 24 hours are forecast before their DF is published (deadline)")


def test_another_publication_than_that_of_the_training_is_refused(forecast: Forecast) -> None:
    day = ("--region", "PACW", "--issue", "2023-02-01T10")
    assert forecast(*day, "--publication", "day-before")[0] == 0
    code, _, err = forecast(*day, "--publication", "deadline")
    assert code == 2 and "was trained for values known as in `day-before`" in err
    code, _, err = forecast(*day, "--publication", "soon")
    assert code == 2 and "publication 'soon' is unknown" in err


def test_local_day_is_forecast_hour_by_hour(forecast: Forecast) -> None:
    code, out, err = forecast("--region", "pacw", "--issue", "2023-02-01T10", "--json")
    assert code == 0, err
    hours = json.loads(out)["hours"]
    assert [row["period"] for row in hours] == [f"2023-02-02T{h:02d}" for h in range(9, 24)] + [
        f"2023-02-03T{h:02d}" for h in range(9)
    ]
    for row in hours:
        values = [row[f"q{level:g}"] for level in QUANTILES]
        assert values == sorted(values) and 1000 < values[3] < 6000


def test_live_forecasts_day_by_day_have_the_intervals_of_a_backtest(trained: Path) -> None:
    """Each live forecast sees a store in which nothing after its issue time was measured."""
    model = load_model(trained / "train")
    assert set(model.state["widths"]) == {"PACW", "ERCO"} and np.any(model.state["widths"]["PACW"])
    store = open_token_store(trained, model.respondents, model.reference)
    days = [hours_of_issue("PACW", f"2023-02-{day:02d}T10") for day in range(1, 28, 4)]
    whole = Period(days[0].first, days[-1].last)
    backtest = predict(model, store, "PACW", whole)
    raw = predict_raw(model, store, "PACW", whole)
    own = raw.forecast(whole, raw.quantiles)
    region = model.respondents.index("PACW")
    first, rows = store.maps[region]
    for day in days:
        issue = int(calendar_of("PACW", day.first, day.last).issue[0])
        live = np.array(rows)
        live[issue + 1 - first :, [TARGET, TARGET + COLUMNS.index("demand")]] = np.nan
        maps = tuple((first, live) if i == region else each for i, each in enumerate(store.maps))
        found = predict(model, dataclasses.replace(store, maps=maps), "PACW", day)
        part = slice(day.first - days[0].first, day.last + 1 - days[0].first)
        np.testing.assert_allclose(found.quantiles, backtest.quantiles[part], rtol=1e-5)
        assert np.abs(found.quantiles - own.quantiles[part]).max() > 1  # MWh: there is something to compare


def test_judge_compares_a_file_with_the_trained_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On hours after those that validated it; a file of earlier ones is judged without it, and a note says so."""
    model = load_model(trained / "train")
    store = open_token_store(trained, model.respondents, model.reference)
    found = {}
    for first, last, names in (
        ("2023-02-01", "2023-02-26", model.respondents),
        ("2023-01-31", "2023-02-02", ("PACW",)),
    ):
        parts = []
        for name in names:
            one = predict(model, store, name, Period.parse(f"{first}:{last}", "period"))
            cutoff = calendar_of(name, int(one.hours[0]), int(one.hours[-1])).issue
            ds, known = (hours.astype("datetime64[h]").astype("datetime64[s]") for hours in (one.hours, cutoff))
            columns = {"unique_id": name, "ds": ds, "cutoff": known, "q0.5": one.operator - 5, "ours": one.median}
            parts.append(pd.DataFrame({**columns, "actual": one.demand}))
        whole = pd.concat(parts)
        whole[["unique_id", "ds", "cutoff", "q0.5"]].to_parquet(path := tmp_path / f"{first}.parquet")
        assert judge_main(["--file", str(path), "--data", str(trained), "--json", "--quiet"]) == 0
        found[first] = json.loads(capsys.readouterr().out), whole
    verdict, whole = found["2023-02-01"]
    for name in model.respondents:
        own = whole[whole["unique_id"] == name]
        mae = (own["actual"] - own["ours"]).abs().mean()
        line = verdict["respondents"][name]
        assert line["over"]["ours"]["mae"] == pytest.approx(mae, rel=1e-4)
        assert line["over"]["ours"]["skill"] == pytest.approx(1 - line["mae"] / mae, rel=1e-4)
    assert verdict["mean"]["over"]["ours"]["of"] == len(model.respondents)
    verdict, _ = found["2023-01-31"]
    assert "ours" not in verdict["mean"]["over"]
    assert any("validated on hours up to 2023-01-31T23" in note for note in verdict["notes"])


def test_coordinator_prints_a_table_and_draws_a_fan_chart(trained: Path, tmp_path: Path) -> None:
    plot = tmp_path / "fan.png"
    flags = ("--region", "ERCO", "--issue", "2023-02-01T10", "--plot", str(plot))
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", "forecast", "--data", str(trained), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and plot.read_bytes()[:4] == b"\x89PNG"
    lines = done.stdout.splitlines()
    assert lines[0].endswith("MWh; data: synthetic") and "Fri" not in lines[3] and "Thu 01:00" in lines[3]
    plain = [line for line in lines if not line.startswith(("note: ", "* starts from "))]
    assert len(plain) == 28 and plain[27].startswith("peak of 2023-02-02: median ")


def test_names_of_issue_times_follow_the_demand_on_disk(
    forecast: Forecast, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Demand ends at 2023-02-01T18 UTC, 10:00 in Oregon; DF of the next day is there up to a point. ERCO has no series at all."""
    data = tmp_path / "data"
    shutil.copytree(trained, data)
    cut_off(data, "2023-02-01T18", "2023-02-02T19")
    shutil.rmtree(series_folder(data) / "ERCO")
    shutil.rmtree(data / "tokens")
    found = {}
    for name, *flags in (
        ("tomorrow",),
        ("2023-02-01T10",),
        ("latest", "--publication", "2h,-1T10,local", "--horizon", "24"),
    ):
        out = tmp_path / f"{name[:3]}.csv"
        words = ["--data", str(data), "--region", "PACW", "--issue", name, "--out", str(out), "--json", *flags]
        assert main(words) == 0
        stdout, stderr = capsys.readouterr()
        found[name] = json.loads(stdout)
        rows = pd.read_csv(out)
        assert rows.columns[:4].tolist() == ["unique_id", "ds", "cutoff", "y"]
        assert rows["q0.5"].round(1).tolist() == pytest.approx(
            [hour["q0.5"] for hour in found[name]["hours"] if hour["q0.5"] is not None], abs=0.06
        )
        assert set(rows["cutoff"]) == {found[name]["cutoff"]}
    assert "--issue latest is 2023-02-01T12" in stderr, "the newest demand is published two hours later"
    assert found["tomorrow"] == found["2023-02-01T10"] and "trained model" in found["tomorrow"]["model"]
    one = found["tomorrow"]["hours"][0]
    assert (one["period"], one["local"]) == ("2023-02-02T09", "2023-02-02T01:00:00-08:00")
    assert one["difference"] == pytest.approx(one["q0.5"] - one["operator"], abs=0.11)
    assert found["latest"]["cutoff"] == "2023-02-01T18" and found["latest"]["origin"] == "synthetic"
    assert [hour["operator"] is None for hour in found["latest"]["hours"]].index(True) == 23
    assert any("have no DF on disk" in reason for reason in found["latest"]["reasons"])


def test_hours_without_a_forecast_are_named_and_their_days_have_no_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one month on disk only the hours with DF have a forecast. The exit code was 0, and a peak was that of two hours."""
    data = tmp_path / "data"
    one = shard("PACW", "2023-03-01T00", "2023-03-31T23")
    load = 3000 + np.random.default_rng(0).normal(0, 100, one.hours).round()
    demand = np.where(np.arange(one.hours) < 700, load, np.inf)
    commit(data, one, {"D": demand, "DF": np.where(np.arange(one.hours) < 712, 3100.0, np.inf)})
    build_all(data)
    flags = ["--data", str(data), "--region", "PACW", "--issue", "latest"]
    assert main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    known = [hour["q0.5"] is not None for hour in found["hours"]]
    assert any(known) and not all(known) and found["peaks"] == []
    assert found["reasons"][0].startswith(f"{known.count(False)} of 48 hours") and "--extract" in found["reasons"][0]


def test_a_respondent_without_demand_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was told to ask for every route, which has no demand of it either."""
    one = shard("AVRN", "2023-03-01T00", "2023-03-01T23")
    commit(tmp_path / "data", one, {"NG": 30.0})
    build_all(tmp_path / "data")
    assert main(["--data", str(tmp_path / "data"), "--region", "AVRN", "--issue", "latest"]) == 2
    assert "have no demand (D) to forecast, only NG; name another --region" in capsys.readouterr().err


@pytest.mark.long
def test_tomorrow_at_the_end_of_the_years_on_disk_is_forecast_and_drawn(
    trained: Path, forecast: Forecast, tmp_path: Path
) -> None:
    """The day of a year that has no series yet was refused, and so was its picture."""
    data, plot = tmp_path / "data", tmp_path / "day.png"
    shutil.copytree(trained, data)
    rest = shard("PACW", "2023-03-01T00", "2023-12-31T23")
    load = 3000 + 500 * np.sin(np.arange(rest.hours) * np.pi / 12)
    load += np.random.default_rng(0).normal(0, 50, rest.hours)
    commit(data, rest, {"D": load.round(), "DF": np.full(rest.hours, 3050.0)})
    build_all(data)
    words = ("--data", str(data), "--region", "PACW", "--issue", "tomorrow", "--plot", str(plot), "--json")
    code, out, err = forecast(*words)
    assert code == 0 and "the series of PACW end with 2023, and the trained model reads DF of the day from them" in err
    assert [hour["local"][:13] for hour in json.loads(out)["hours"]][::23] == ["2024-01-01T01", "2024-01-02T00"]
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert forecast("--data", str(data), "--region", "PACW", "--issue", "2023-12-31T10", "--json")[:2] == (0, out)


def test_a_day_that_the_training_saw_is_said_to_be_one(forecast: Forecast, trained: Path) -> None:
    state = load_model(trained / "train").state
    for name, words in (
        ("train", "are among those that the model was trained on"),
        ("validate", "chose the checkpoint"),
    ):
        day = str(np.datetime64(state[name][1] - 72, "h").astype("datetime64[D]"))
        code, out, err = forecast("--region", "PACW", "--issue", f"{day}T10")
        assert code == 0 and f"note: the hours {words} (" in out, err


@pytest.mark.parametrize("file", ["result.json", "state.json", "average.safetensors"])
def test_a_damaged_file_of_a_training_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    """A damaged result.json ended in a traceback, a damaged state.json in the words of the JSON decoder."""
    run = tmp_path / "train"
    shutil.copytree(trained / "train", run)
    best = run / json.loads((run / "result.json").read_text())["checkpoint"]
    (damaged,) = [path / file for path in (run, best) if (path / file).exists()]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    flags = ["--data", str(trained), "--run", str(run), "--region", "PACW", "--issue", "2023-02-01T10"]
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert f"{damaged} is" in said and "damaged: `rm " in said and "the command of the training" in said, said


@pytest.mark.long
def test_tomorrow_needs_its_issue_time_and_no_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained, data)
    flags = ["--data", str(data), "--region", "PACW", "--issue", "tomorrow"]
    cut_off(data, "2023-02-01T19", "2023-02-02T19")
    shutil.rmtree(data / "train")
    assert main([*flags, "--json"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "the hourly regressions forecast the day" in stderr
    assert [hour["local"][:13] for hour in json.loads(stdout)["hours"]][::23] == ["2023-02-02T01", "2023-02-03T00"]
    cut_off(data, "2023-02-01T17", "2023-02-02T19")
    assert main(flags) == 2
    assert "demand of PACW on disk ends at 2023-02-01T09; `--issue latest`" in capsys.readouterr().err


def test_table_for_control_has_every_hour(forecast: Forecast, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    code, out, err = forecast("--table", str(path), "--period", "2023-02-01:2023-02-10", "--json")
    assert code == 0 and json.loads(out)["rows"] == 480, err
    table = pq.read_table(path)
    assert table.num_rows == 480
    assert set(table.column("respondent").to_pylist()) == {"PACW", "ERCO"}
    assert len(table.column("embedding")[0]) == 16
    q = np.stack([table.column(f"q{level:g}").to_numpy() for level in QUANTILES])
    assert (np.diff(q, axis=0) > 0).all()


def test_other_issue_hours_are_forecast_by_the_hourly_regressions(forecast: Forecast, tmp_path: Path) -> None:
    """At 10:00 too where a horizon or paths are asked for; the file for control has the same numbers."""
    flags = ("--region", "PACW", "--horizon", "3", "--paths", "4", "--seed", "7")
    for issue in ("2023-02-01T15", "2023-02-01T10"):
        code, out, err = forecast(*flags, "--issue", issue, "--json")
        assert code == 0 and "hourly regressions" in err, err
        found = json.loads(out)
        first = int(np.datetime64(issue, "h").astype(int)) + 8  # PST
        assert found["model"] == "hourly regressions"
        assert [hour_number(row["period"]) for row in found["hours"]] == [first + k for k in (1, 2, 3)]
        for row in found["hours"]:
            values = [row[f"q{level:g}"] for level in QUANTILES]
            assert values == sorted(values) and 1000 < values[3] < 6000 and len(row["paths"]) == 4
    code, out, err = forecast(*flags, "--issue", "2023-02-01T15", "--publication", "deadline", "--json")
    late = json.loads(out)
    assert code == 0 and late["publication"] == "deadline" and late["hours"][0]["operator"] is not None, err
    path = tmp_path / "hourly.parquet"
    code, out, err = forecast("--hourly", str(path), *flags, "--period", "2023-02-01:2023-02-02", "--json")
    assert code == 0 and json.loads(out)["rows"] == 48, err
    hourly = read_hourly(path, DAY_BEFORE)["PACW"]
    with pytest.raises(UsageError, match="as in `day-before`, not `deadline`"):
        read_hourly(path, DEADLINE)
    row = int(np.searchsorted(hourly.issues, first))
    for name, lists in (("q0.5", hourly.median), ("paths", hourly.paths)):
        np.testing.assert_allclose(lists[row], [hour[name] for hour in found["hours"]], atol=0.06)
    assert hourly.quantiles.shape == (48, 3, len(QUANTILES)) and hourly.paths.shape == (48, 3, 4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--region", "MISO", "--issue", "2023-02-01T10"), "not among those trained on"),
        (("--region", "PACW", "--issue", "01.02.2023"), "YYYY-MM-DDTHH"),
        (("--region", "PACW", "--issue", "2023-03-12T02"), "the clock of America/Los_Angeles skips that hour"),
        (("--region", "PACW", "--issue", "2033-02-01T09"), "coordinator start --extract"),
        (("--region", "PACW", "--issue", "2023-02-01T09", "--horizon", "49"), "1 and 48"),
        (("--hourly", "x.parquet", "--paths", "-1"), "coordinator: --paths -1"),
        (("--region", "PACW", "--issue", "2023-02-01T09", "--paths", "2", "--seed", "-1"), "--seed -1"),
        (("--hourly", "x.parquet", "--paths", "2", "--seed", str(2**64)), "--seed 18446744073709551616"),
        (("--table", "x.parquet", "--plot", "x.png"), "--plot draws the forecast of one --issue"),
        (("--hourly", "x.csv", "--period", "2023-02"), "--hourly x.csv is to be a Parquet file"),
        (("--region", "PACW", "--issue", "2033-02-01T10"), "coordinator start --extract"),
        (("--region", "PACW"), "--issue"),
        (("--region", "PACW", "--issue", "latest", "--out", "x.json"), "--out x.json ends in no known form"),
        (("--region", "PACW", "--issue", "yesterday"), "or latest or tomorrow"),
        (("--region", "PACW", "--issue", "latest", "--out", "nowhere/x.csv"), "there is no folder nowhere"),
        (("--hourly", "nowhere/x.parquet"), "there is no folder nowhere"),
        (("--hourly", "x.parquet", "--out", "x.csv"), "--out writes the forecast of one --issue"),
        (("--region", "PACW", "--issue", "2023-02-01T10", "--run", "nowhere"), "coordinator start --train"),
        (
            ("--region", "PACW", "--issue", "2023-02-01T10", "--run", "nowhere"),
            "with `--horizon 48` the hourly regressions",
        ),
        (("--region", "PACW", "--issue", "2023-02-01T10", "--data", "nowhere"), "there is no folder nowhere"),
        (("--table", "x.parquet", "--data", "nowhere"), "there is no folder nowhere"),
        (("--region", "PACW,MISO", "--issue", "2023-02-01T10"), "names 2 respondents"),
    ],
)
def test_wrong_request_names_the_fix(forecast: Forecast, flags: tuple[str, ...], words: str) -> None:
    code, _, err = forecast(*flags)
    assert code == 2 and words in err, err


def test_days_of_clock_changes_have_23_and_25_hours() -> None:
    assert (lambda p: p.last - p.first + 1)(hours_of_issue("PACW", "2024-03-09T10")) == 23
    period = hours_of_issue("PACW", "2024-11-02T10")
    assert period.last - period.first + 1 == 25
    assert set(calendar_of("PACW", period.first, period.last).hour) == set(range(24))
