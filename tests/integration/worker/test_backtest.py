"""Backtests: nothing after a cutoff reaches a row, finished walks are kept, and months outside the data are refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coordinator.report.collect.backtests import backtests
from coordinator.report.model import Absent
from ingest.calendar import calendar_of
from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.publication import DAY_BEFORE
from tests.support.data_folder import build_all, commit, shard
from tests.support.training_data import SMALL
from worker.forecast.backtest import linear, network, run
from worker.forecast.backtest.cli import main
from worker.forecast.backtest.network import NetworkContender
from worker.forecast.backtest.schedule import Walk, month_number, walks_of
from worker.forecast.model.network import QUANTILES

NAMES = ("PACW",)
SPANS = [("2018-08-20T00", "2018-12-31T23"), ("2019-01-01T00", "2019-01-31T23")]
FIRST = hour_number(SPANS[0][0])
LEVELS = [f"q{level:g}" for level in QUANTILES]
MONTHS = ("--from", "2018-12", "--to", "2019-01")


def make(data: Path, poison: int | None = None, names: tuple[str, ...] = NAMES) -> Path:
    """Authorities whose forecasts err every day alike; hours after `poison`, and DF published after it, are drawn anew."""
    for seed, name in enumerate(names):
        hours = sum(shard(name, *span).hours for span in SPANS)
        t = np.arange(hours)
        calendar = calendar_of(name, FIRST, FIRST + hours - 1)
        shape = 3000 + 500 * np.sin(2 * np.pi * t / 24)
        columns = {}
        for column, late in (("D", calendar.hours), ("DF", calendar.issue)):
            noise = [
                np.convolve(np.random.default_rng((seed, s, len(column))).normal(0, 60, hours), np.ones(8) / 3, "same")
                for s in (1, 2)
            ]
            late_part = late > poison if poison is not None else np.zeros(hours, bool)
            drawn = np.where(late_part, noise[1], noise[0])
            bias = 90 * np.sin(2 * np.pi * t / 24 + 1) if column == "DF" else 0
            columns[column] = np.round(shape + drawn + bias)
        start = 0
        for span in SPANS:
            one = shard(name, *span)
            commit(data, one, {key: x[start : start + one.hours] for key, x in columns.items()})
            start += one.hours
    build_all(data)
    return data


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder after a backtest of the linear path."""
    data = make(tmp_path_factory.mktemp("backtest"))
    assert main([*MONTHS, "--data", str(data), "--quiet"]) == 0
    return data


def table_of(data: Path) -> pd.DataFrame:
    return pd.read_parquet(data / "backtest" / "linear.parquet").set_index(["unique_id", "ds"])


def test_table_has_each_local_hour_of_the_months_once(clean: Path) -> None:
    table = table_of(clean)
    assert not table.index.duplicated().any()
    for name in NAMES:
        hours = table.loc[name].index
        # Pacific; of the last hours neither demand nor DF is on disk
        assert hours[0] == pd.Timestamp("2018-12-01T09") and hours[-1] == pd.Timestamp("2019-02-01T08")
        assert len(hours) == (hours[-1] - hours[0]) / pd.Timedelta(hours=1) + 1
        assert (table.loc[name, "cutoff"] < hours).all()
    assert (np.diff(table[LEVELS].dropna().to_numpy(), axis=1) >= 0).all() and table[
        LEVELS
    ].notna().to_numpy().mean() > 0.95
    inside = (table["y"] >= table["q0.1"]) & (table["y"] <= table["q0.9"])
    assert 0.7 < inside.mean() < 0.9
    skill = 1 - (table["y"] - table["q0.5"]).abs().mean() / 65  # the mean error of DF, which repeats every day
    assert skill > 0.1


def test_nothing_after_a_cutoff_changes_a_row(clean: Path, tmp_path: Path) -> None:
    """The poison begins within the first walk: the second one's fit must see it, and no row issued before may."""
    cutoff = pd.Timestamp("2018-12-19T18")
    data = make(tmp_path / "data", hour_number("2018-12-19T18"))
    assert main([*MONTHS, "--data", str(data), "--quiet"]) == 0
    before, after = table_of(clean), table_of(data)
    early = before["cutoff"] <= cutoff
    assert early.sum() > 24 * 17 * len(NAMES)
    pd.testing.assert_frame_equal(before.loc[early, LEVELS], after.loc[early, LEVELS], check_exact=True)
    assert (before.loc[~early, "q0.5"] != after.loc[~early, "q0.5"]).mean() > 0.9, "the poison reaches no row at all"


def test_interrupted_backtest_keeps_its_walks_and_asks_for_those_that_lack(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clean, data)
    kept, lost = sorted((data / "backtest" / "linear").iterdir())
    before = kept.stat().st_mtime_ns
    lost.unlink()

    def interrupted(self: linear.LinearContender, walks: list[Walk]) -> object:
        assert [str(walk) for walk in walks] == ["2019-01"]
        raise KeyboardInterrupt

    monkeypatch.setattr(linear.LinearContender, "forecast", interrupted)
    assert main([*MONTHS, "--data", str(data)]) == 130
    assert "finished walks are kept" in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == before and not lost.exists()


@pytest.mark.long
def test_walk_that_lacks_is_made_again_bit_by_bit(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clean, data)
    whole = (data / "backtest" / "linear.parquet").read_bytes()
    kept, lost = sorted((data / "backtest" / "linear").iterdir())
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert main([*MONTHS, "--data", str(data), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kept"] == 1 and "1 of 2 walks are on disk" in err
    assert kept.stat().st_mtime_ns == before and lost.read_bytes() == content
    assert (data / "backtest" / "linear.parquet").read_bytes() == whole


def test_summary_names_skill_and_coverage_by_month(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later run keeps both walks, writes CSV as well, and the judge says the same of it."""
    path = tmp_path / "table.csv"
    assert main([*MONTHS, "--data", str(clean), "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 walks are on disk" in err and "fitting" not in err
    assert "80% interval covers by month: 2018-12" in out and "no use of hours after a cutoff was found" in out
    assert "skill over" in out and "persistence" in out and "left out" not in out
    found = backtests(clean)
    assert not isinstance(found, Absent)
    assert [one.model for one in found.found] == ["linear", "table"] and not found.found[0].peeks
    assert set(found.found[0].rows) == set(NAMES) and found.found[0].months[0].size == 2
    read = pd.read_csv(path, parse_dates=["ds", "cutoff"]).set_index(["unique_id", "ds"])
    np.testing.assert_allclose(read[LEVELS], table_of(clean)[LEVELS], rtol=1e-6)


WRONG = {
    "months after the data": (("--from", "2019-02", "--to", "2019-03"), ("2019-02", "2018-08-2", "choose months from 2018-09 to 2019-01")),
    "months before the data": (("--from", "2018-08", "--to", "2018-12"), ("2018-08", "choose months from 2018-09 to 2019-01")),
    "too few hours before": (("--from", "2018-10", "--to", "2018-12"), ("2018-10", "2,160 hours", "later months")),
    "no month": (("--from", "2018", "--to", "2018-12"), ("--from 2018", "YYYY-MM")),
    "swapped months": (("--from", "2018-12", "--to", "2018-11"), ("2018-12", "2018-11", "swap")),
    "a respondent without series": ((*MONTHS, "--respondents", "MISO"), ("MISO", "PACW")),
    "an unknown respondent": ((*MONTHS, "--respondents", "PAKW"), ("'PAKW'", "PACW")),
    "no known form": ((*MONTHS, "--out", "table.txt"), ("table.txt", ".parquet", ".csv")),
    "training settings without a training": ((*MONTHS, "--train-config", "t.toml"), ("--train-config", "--model network")),
}  # fmt: skip


@pytest.mark.parametrize("why", WRONG)
def test_backtest_that_cannot_be_is_refused_in_one_line(
    why: str, clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words = WRONG[why]
    assert main([*flags, "--data", str(clean), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and all(word in err for word in words), err


def test_walks_are_whole_months_of_the_schedule() -> None:
    first, last = month_number("2018-11", "from"), month_number("2019-12", "to")
    assert [str(walk) for walk in walks_of(first, last, 3)] == [
        "2018-11 to 2019-01", "2019-02 to 2019-04", "2019-05 to 2019-07", "2019-08 to 2019-10", "2019-11 to 2019-12",
    ]  # fmt: skip
    assert len(walks_of(first, last, 1)) == 14 and len(walks_of(first, last, 12)) == 2
    march = Walk(month_number("2019-03", "from"), month_number("2019-03", "from"))
    assert march.hours("PACW").last - march.hours("PACW").first + 1 == 31 * 24 - 1  # daylight saving begins
    with pytest.raises(UsageError, match="swap"):
        walks_of(last, first, 1)


def test_training_of_a_walk_ends_before_its_first_issue_time(clean: Path) -> None:
    contender = NetworkContender(clean, NAMES, 3, DAY_BEFORE, None, clean / "runs", print)
    train, validate = contender.periods(Walk(month_number("2019-01", "from"), month_number("2019-01", "from")))
    # 10:00 Pacific of December 31 is known up to 18:00 UTC: the last whole day is the 30th.
    assert (train, validate) == ("2018:2018-10-01", "2018-10-02:2018-12-30")


@pytest.mark.parametrize(
    ("code", "ends"),
    [(75, 75), (2, 2), pytest.param(-9, 75, marks=pytest.mark.long), pytest.param(1, 1, marks=pytest.mark.long)],
)
def test_training_that_ends_early_says_how_to_go_on(
    code: int,
    ends: int,
    clean: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place of worker/train.py a program that prints its arguments and ends with a code, or is killed."""
    program = tmp_path / "train.py"
    ending = f"sys.exit({code})" if code > 0 else f"os.kill(os.getpid(), {-code})"
    program.write_text(
        f"import os, sys\nprint(*sys.argv[1:], flush=True)\nprint('UsageError: no hour of both', flush=True)\n{ending}\n"
    )
    monkeypatch.setattr(network, "TRAIN", program)
    assert main([*MONTHS, "--data", str(clean), "--model", "network", "--every", "year"]) == ends
    out, err = capsys.readouterr()
    assert not out and "training on hours to 2018-08-31, validated on 2018-09-01:2018-11-29" in err
    assert "--train=2018:2018-08-31 --validate=2018-09-01:2018-11-29" in err and "--respondents=PACW" in err
    assert "no hour of both" in err.splitlines()[-1] and ("same command" in err.splitlines()[-1]) == (ends == 75)


@pytest.mark.long
def test_what_is_not_published_in_time_changes_no_row(clean: Path, tmp_path: Path) -> None:
    """With the instructions' deadline a cutoff is an hour earlier, and DF of the day to forecast is unknown: drawn anew, it changes nothing."""
    tables = []
    for name, at in (("clean", None), ("poisoned", hour_number("2018-12-19T17"))):
        data = tmp_path / name
        make(data, at)  # DF of the days that are issued later is drawn anew as well
        flags = ("--from", "2018-12", "--to", "2018-12", "--publication", "deadline", "--data", str(data), "--quiet")
        assert main(flags) in (0, 1)
        tables.append(table_of(data))
    before, after = tables
    whole = table_of(clean).reindex(before.index)
    assert ((whole["cutoff"] - before["cutoff"]) == pd.Timedelta(hours=1)).all()
    early = before["cutoff"] <= pd.Timestamp("2018-12-19T17")
    assert early.sum() > 24 * 17
    pd.testing.assert_frame_equal(before.loc[early, LEVELS], after.loc[early, LEVELS], check_exact=True)
    assert (before["q0.5"] != whole["q0.5"]).mean() > 0.9, "DF of the day is used all the same"


@pytest.mark.long
def test_network_is_trained_anew_and_nothing_after_a_cutoff_changes_a_row(clean: Path, tmp_path: Path) -> None:
    """The poison begins after the first day of the second walk is issued: neither its training nor that day may see it."""
    config = tmp_path / "train.toml"
    names = [flag.removeprefix("--").replace("-", "_") for flag in SMALL[::2]]
    settings = {
        name: value for name, value in zip(names, SMALL[1::2], strict=True) if name not in ("train", "validate")
    }
    config.write_text("".join(f"{name} = {value}\n" for name, value in {**settings, "steps": 8}.items()))
    flags = (
        "--from",
        "2018-12",
        "--to",
        "2019-01",
        "--model",
        "network",
        "--every",
        "month",
        "--train-config",
        str(config),
    )
    poison = "2018-12-31T18"
    tables = []
    for name, at in (("clean", None), ("poisoned", hour_number(poison))):
        data = make(tmp_path / name, at, ("PACW", "ERCO"))
        assert main([*flags, "--data", str(data), "--quiet"]) in (0, 1)
        tables.append(pd.read_parquet(data / "backtest" / "network.parquet").set_index(["unique_id", "ds"]))
    before, after = tables
    early = before["cutoff"] <= pd.Timestamp(poison)
    assert (early & (before["cutoff"] > pd.Timestamp("2018-12-30T18"))).sum() == 2 * 24
    pd.testing.assert_frame_equal(before.loc[early, LEVELS], after.loc[early, LEVELS], check_exact=True)
    assert (before.loc[~early, "q0.5"] != after.loc[~early, "q0.5"]).mean() > 0.9
    assert len(list((tmp_path / "clean" / "backtest" / "runs").iterdir())) == 2
    runs = sorted((tmp_path / "clean" / "backtest" / "network").iterdir())
    stamps = [path.stat().st_mtime_ns for path in runs]
    assert main([*flags, "--data", str(tmp_path / "clean"), "--quiet"]) in (0, 1)
    assert [path.stat().st_mtime_ns for path in runs] == stamps and run.FOLDER == "backtest"
