"""The judge of forecasts: planted peeks are named, honest forecasts are not, and a file that can't be judged is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ingest.calendar import calendar_of
from ingest.columns import hour_number
from ingest.errors import UsageError
from tests.support.data_folder import build_all, commit, shard
from worker.forecast.baselines.compare import gain
from worker.forecast.judge import peeking
from worker.forecast.judge.cli import main
from worker.forecast.judge.peeking import findings
from worker.forecast.judge.reference import BIAS, DF, LAST_ERROR, PERSISTENCE, Actuals, last_known, read_actuals, rivals
from worker.forecast.judge.scoring import mean_lines, score
from worker.forecast.judge.submission import Rows, read_submission

FIRST, DAYS = hour_number("2018-01-01T00"), 250
LEVELS = (0.1, 0.5, 0.9)


@cache
def world() -> tuple[Actuals, Rows]:
    """A year's part of demand with errors of DF that depend on each other, and rows of DF itself, issued at 10:00 of the day before."""
    draw = np.random.default_rng(4)
    hours = DAYS * 24
    noise = draw.normal(0, 60, hours)
    error = np.zeros(hours)
    for t in range(1, hours):
        error[t] = 0.9 * error[t - 1] + noise[t]
    clock = np.arange(hours)
    demand = np.round(9000 + 1500 * np.sin(2 * np.pi * clock / 24) + 400 * np.sin(2 * np.pi * clock / 168))
    operator = demand + 80.0 + np.round(draw.normal(0, 15, hours))
    demand = demand + np.round(error)
    calendar = calendar_of("PACW", FIRST, FIRST + hours - 1)
    bias = operator - 80.0
    actuals = Actuals("PACW", calendar, demand, operator, {BIAS: bias})
    rows = slice(24 * 30, 24 * (DAYS - 3))
    empty = np.full(hours, np.nan)
    whole = Rows(
        "PACW", calendar.hours, calendar.issue, empty, operator, np.stack([operator - 150, operator, operator + 150], 1)
    )
    return actuals, whole.part("PACW", rows)


def with_point(forecast: np.ndarray) -> Rows:
    """The rows with another point forecast, and an interval of constant width around it."""
    _, rows = world()
    return replace(rows, point=forecast, quantiles=np.stack([forecast - 150, forecast, forecast + 150], axis=1))


def value(lag: int = 0) -> np.ndarray:
    """The actual of the hour `lag` hours before each row's."""
    actuals, rows = world()
    return actuals.at(actuals.demand, rows.hour - lag)


def missed(lag: int = 0) -> np.ndarray:
    """The actual less DF of the hour `lag` hours before each row's."""
    actuals, rows = world()
    return actuals.at(actuals.demand - actuals.operator, rows.hour - lag)


def honest() -> np.ndarray:
    """A forecast of its own that knows nothing after a cutoff: DF less its mean error of two and three days before, with noise."""
    _, rows = world()
    return rows.point + 0.5 * (missed(48) + missed(72)) / 2 + np.random.default_rng(9).normal(0, 20, len(rows.hour))


def day_mean(values: np.ndarray) -> np.ndarray:
    actuals, rows = world()
    _, where = np.unique(actuals.calendar.day[actuals.index(rows.hour)], return_inverse=True)
    return (np.bincount(where, values) / np.bincount(where))[where]


def shifted_interval() -> Rows:
    rows = with_point(honest())
    toward = 0.5 * (value() - rows.point)
    return replace(rows, quantiles=rows.quantiles + np.stack([toward, 0 * toward, toward], axis=1))


def interval_of_the_error() -> Rows:
    rows = with_point(honest())
    width = 1.1 * np.abs(value() - rows.point)
    return replace(rows, quantiles=np.stack([rows.point - width, rows.point, rows.point + width], axis=1))


def every_tenth() -> np.ndarray:
    return np.where(np.arange(len(honest())) % 10 == 0, value(), honest())


def late() -> Rows:
    rows = with_point(honest())
    return replace(rows, cutoff=np.where(np.arange(len(rows.hour)) == 5, rows.hour, rows.cutoff))


def reissued(ahead: int) -> Rows:
    """Forecasts of the next six hours, issued every hour: DF and a part of the error `ahead` hours after the cutoff."""
    actuals, rows = world()
    horizon = np.repeat(np.arange(1, 7), len(rows.hour))
    hour = np.tile(rows.hour, 6)
    cutoff = hour - horizon
    error = actuals.at(actuals.demand - actuals.operator, cutoff + ahead)
    point = actuals.at(actuals.operator, hour) + error * 0.9**horizon
    return Rows("PACW", hour, cutoff, np.full(len(hour), np.nan), point, np.empty((len(hour), 0)))


PEEKS: dict[str, tuple[Callable[[], Rows], str]] = {
    "the actual": (lambda: with_point(value()), "copies"),
    "the actual with noise": (
        lambda: with_point(value() + np.random.default_rng(1).normal(0, 40, len(value()))),
        "error below",
    ),
    "a fifth of the actual": (lambda: with_point(0.8 * honest() + 0.2 * value()), "innovations"),
    "yesterday's hours, also those after the cutoff": (lambda: with_point(value(24)), "copies"),
    "the last hour's error, said to be the day before's": (
        lambda: with_point(world()[1].point + missed(1)),
        "innovations",
    ),
    "a centred mean": (lambda: with_point((value(-1) + value() + value(1)) / 3), "innovations"),
    "the day's own mean error": (lambda: with_point(world()[1].point + day_mean(missed())), "days' means"),
    "one hour late": (lambda: with_point(value(1)), "copies"),
    "the actual in a tenth of the hours": (lambda: with_point(every_tenth()), "copies"),
    "a cutoff at its own hour": (late, "cutoff not before ds"),
    "hourly forecasts whose cutoff is an hour early": (lambda: reissued(1), "innovations"),
    "an interval moved towards the actual": (shifted_interval, "q0.1 holds"),
    "an interval as wide as the error to come": (interval_of_the_error, "widths"),
}


@pytest.mark.parametrize("who", PEEKS)
def test_planted_peek_is_named(who: str) -> None:
    make, word = PEEKS[who]
    rows = make()
    found = findings(rows, LEVELS[: rows.quantiles.shape[1]], world()[0])
    assert any(one.peeks and word in str(one) for one in found), [str(one) for one in found]


def simple(name: str) -> np.ndarray:
    actuals, rows = world()
    return rivals(actuals, rows.hour, rows.cutoff)[name]


HONEST: dict[str, Callable[[], np.ndarray]] = {
    **{name: partial(simple, name) for name in (DF, PERSISTENCE, LAST_ERROR, BIAS)},
    "a forecast of its own": honest,
    "a week before": partial(value, 168),
}


@pytest.mark.parametrize("who", HONEST)
def test_honest_forecast_is_not_accused(who: str) -> None:
    assert findings(with_point(HONEST[who]()), LEVELS, world()[0]) == []


def test_honest_forecast_of_every_hour_is_not_accused() -> None:
    assert findings(reissued(0), (), world()[0]) == []


def test_news_of_a_day_from_elsewhere_is_no_peek(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the error, smooth over hours, as who has a better weather forecast foresees it: the forecasts of small authorities by their neighbours."""
    actuals, rows = world()
    kernel = np.exp(-((np.arange(-16, 17) / 5.0) ** 2) / 2)
    smooth = np.convolve(np.nan_to_num(actuals.demand - actuals.operator), kernel / kernel.sum(), "same")
    news = with_point(rows.point + 0.5 * actuals.at(smooth, rows.hour))
    assert findings(news, LEVELS, actuals) == []
    monkeypatch.setattr(peeking, "_stands_out", lambda fits, number: True)
    assert any("innovations" in str(one) for one in findings(news, LEVELS, actuals)), "the bounds alone would accuse it"


@pytest.mark.parametrize("name", [PERSISTENCE, LAST_ERROR])
def test_rivals_use_no_hour_after_the_cutoff(name: str) -> None:
    actuals, rows = world()
    row = slice(3000, 3001)
    spoilt = replace(actuals, demand=np.where(actuals.calendar.hours > rows.cutoff[row], 9e5, actuals.demand))
    before = rivals(actuals, rows.hour[row], rows.cutoff[row])[name]
    np.testing.assert_array_equal(rivals(spoilt, rows.hour[row], rows.cutoff[row])[name], before)
    assert np.isfinite(before).all()


def test_last_known_is_the_nearest_whole_step_not_after_the_cutoff() -> None:
    hour = np.array([100, 100, 100, 100])
    assert last_known(hour, np.array([99, 76, 75, 51]), 24).tolist() == [76, 76, 52, 28]


def test_wrong_actuals_are_named_and_are_no_peek() -> None:
    actuals, rows = world()
    (found,) = findings(replace(rows, actual=value() * 1.1), LEVELS, actuals)
    assert "disagrees" in found.kind and not found.peeks


def test_scores_are_those_of_plain_computations() -> None:
    actuals, rows = world()
    line = score(with_point(honest()), LEVELS, actuals)
    error, other = np.abs(value() - honest()), np.abs(missed())
    assert line["mae"] == pytest.approx(error.mean()) and line["skill"] == pytest.approx(
        1 - error.mean() / other.mean()
    )
    assert line["over"][DF]["skill"] == pytest.approx(line["skill"])
    assert line["coverage"]["80%"] == pytest.approx((error <= 150).mean(), abs=0.01)
    months = line["parts"]["month"].values()
    assert sum(one["hours"] for one in months) == line["scored"] == len(rows.hour)
    peaks = line["parts"]["hours"]["day's peak"]["hours"]
    assert abs(peaks - len(rows.hour) / 24) <= 2


def test_each_horizon_is_tested_against_the_operators() -> None:
    actuals, rows = world()
    line = score(with_point(honest()), LEVELS, actuals)
    ahead = rows.hour - rows.cutoff
    mean = mean_lines({"PACW": line})["parts"]["horizon"]
    assert len(mean) > 1 and sum(one["hours"] for one in mean.values()) == line["scored"]
    for label, one in line["parts"]["horizon"].items():
        low, high = map(int, label.removesuffix(" h").split("–"))
        part = (ahead >= low) & (ahead <= high)
        operator, day = (value() - missed())[part], actuals.calendar.day[actuals.index(rows.hour)][part]
        assert one["p"] == pytest.approx(gain(value()[part], honest()[part], operator, operator, day).test.p)
        assert (mean[label]["better"], mean[label]["of"]) == (int(one["p"] < 0.01 and one["skill"] > 0), 1)


def test_mean_leaves_out_a_region_that_holds_another_one_of_the_file() -> None:
    """TEX is ERCO: the mean of both and PACW is that of ERCO and PACW."""
    actuals, _ = world()
    good, poor = (score(with_point(forecast), LEVELS, actuals) for forecast in (honest(), simple(PERSISTENCE)))
    mean = mean_lines({"ERCO": good, "PACW": poor, "TEX": good})
    assert mean["respondents"] == ["ERCO", "PACW"]
    assert mean["over"][DF]["skill"] == pytest.approx((good["skill"] + poor["skill"]) / 2)
    assert mean["over"][DF]["of"] == 2
    assert mean_lines({"TEX": good})["respondents"] == ["TEX"]


def frame(**changes: object) -> pd.DataFrame:
    _, rows = world()
    stamps = {
        name: getattr(rows, name)[:48].astype("datetime64[h]").astype("datetime64[s]") for name in ("hour", "cutoff")
    }
    columns = {
        "unique_id": "PACW",
        "ds": stamps["hour"],
        "cutoff": stamps["cutoff"],
        "y": value()[:48],
        "q0.5": rows.point[:48],
    }
    return pd.DataFrame({**columns, **changes})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_both_forms_of_columns_read_the_same(tmp_path: Path, suffix: str) -> None:
    plain = frame(**{"q0.1": 8000.0, "q0.9": 9900.0})
    theirs = plain.rename(columns={"q0.5": "gbm", "q0.1": "gbm-lo-80", "q0.9": "gbm-hi-80"})
    theirs["arima"] = 1.0
    read = []
    for name, table in (("plain", plain), ("theirs", theirs)):
        path = tmp_path / f"{name}{suffix}"
        table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
        read.append(read_submission(path, "gbm" if name == "theirs" else ""))
    assert read[0].levels == read[1].levels == LEVELS and read[1].model == "gbm"
    for one in ("hour", "cutoff", "actual", "point", "quantiles"):
        np.testing.assert_array_equal(getattr(read[0].respondents[0], one), getattr(read[1].respondents[0], one))


WRONG: dict[str, tuple[Callable[[], pd.DataFrame], tuple[str, ...]]] = {
    "no cutoff": (lambda: frame().drop(columns="cutoff"), ("no column cutoff", "--help")),
    "no forecast": (lambda: frame().drop(columns="q0.5"), ("no forecast", "q0.5", "--help")),
    "two models": (lambda: frame().rename(columns={"q0.5": "a"}).assign(b=1.0), ("2 models", "--model a")),
    "a word for a number": (lambda: frame(**{"q0.5": "many"}), ("q0.5", "no number", "MWh")),
    "half an hour": (lambda: frame(ds="2018-02-01T00:30"), ("ds", "no whole hour", "2019-01-31T05")),
    "a word for a time": (lambda: frame(ds="noon"), ("ds", "no time", "2019-01-31T05")),
    "an unknown respondent": (lambda: frame(unique_id="PAKW"), ("unique_id", "PAKW", "PACW")),
    "repeated rows": (lambda: pd.concat([frame(), frame()]), ("two rows", "48 are repeated", "keep one")),
    "no rows": (lambda: frame().head(0), ("no rows", "write one")),
}  # fmt: skip


@pytest.mark.parametrize("why", WRONG)
def test_file_that_cannot_be_judged_is_refused_in_one_line(
    why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, words = WRONG[why]
    path = tmp_path / "theirs.csv"
    table().to_csv(path, index=False)
    assert main(["--file", str(path), "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and all(word in err for word in ("theirs.csv", *words)), err


def test_model_is_refused_where_the_file_names_none(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    frame().to_csv(path, index=False)
    with pytest.raises(UsageError, match="leave --model gbm out"):
        read_submission(path, "gbm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the world's hours."""
    actuals, _ = world()
    data = tmp_path_factory.mktemp("judge")
    one = shard("PACW", "2018-01-01T00", "2018-08-31T23")
    commit(data, one, {"D": actuals.demand[: one.hours], "DF": actuals.operator[: one.hours]})
    build_all(data)
    return data


def test_command_prints_a_verdict_and_exits_with_1_for_a_peek(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes, documents = [], []
    for name, forecast in (("honest", honest()), ("peek", 0.5 * honest() + 0.5 * value())):
        rows = with_point(forecast)
        stamps = [x.astype("datetime64[h]").astype("datetime64[s]") for x in (rows.hour, rows.cutoff)]
        table = pd.DataFrame({"unique_id": "PACW", "ds": stamps[0], "cutoff": stamps[1], "q0.5": forecast}).iloc[:4000]
        table.drop(index=range(100, 103)).to_parquet(path := folder / f"{name}.parquet")
        codes.append(main(["--file", str(path), "--data", str(folder), "--json", "--quiet"]))
        documents.append(json.loads(capsys.readouterr().out))
    assert codes == [0, 1] and [one["peeks"] for one in documents] == [False, True]
    assert {"DF", "persistence"} <= set(documents[0]["respondents"]["PACW"]["over"])
    notes = " ".join(documents[0]["notes"])
    assert "lacks 3 hours" in notes and "holds no finished training" in notes and "no ridge" in notes


def test_hours_outside_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    later = frame()
    later["ds"] += pd.Timedelta(days=4000)
    later.to_csv(path := tmp_path / "later.csv", index=False)
    rows = read_submission(path).respondents[0]
    with pytest.raises(UsageError, match=r"PACW.*are not in .*which has 2018"):
        read_actuals(folder, rows, print)
