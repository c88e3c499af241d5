"""The judge on recorded hours of six regions: a year is scored in less than a minute of a core, and planted peeks are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ingest.columns import hour_number
from tests.support.data_folder import build_all, commit, shard
from tests.support.program import ROOT
from tests.support.recordings import needs_recordings, year_of
from worker.forecast.judge.cli import main
from worker.forecast.judge.reference import BIAS, RIDGE, Actuals, add_baselines, read_actuals
from worker.forecast.judge.submission import Rows
from worker.training.tokens import Period

pytestmark = [pytest.mark.long, needs_recordings]
SIX = ("CAL", "CISO", "ERCO", "MISO", "PACW", "TEX")
YEAR = Period(hour_number("2019-01-01T00"), hour_number("2019-12-31T23"))
LIMIT_S = 60.0  # of one core, for six regions and a year


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of three recorded years."""
    data = tmp_path_factory.mktemp("recorded")
    for name in SIX:
        for year in (2017, 2018, 2019):
            first, last, columns = year_of(name, year)
            commit(data, shard(name, first, last), columns, "recordings")
    build_all(data)
    return data


@pytest.fixture(scope="module")
def actuals(folder: Path) -> dict[str, Actuals]:
    """The hours of each region with the judge's baselines."""
    found = {}
    hours = np.arange(YEAR.first, YEAR.last + 1)
    empty = np.full(len(hours), np.nan)
    for name in SIX:
        rows = Rows(name, hours, hours - 38, empty, empty, np.empty((len(hours), 0)))
        found[name] = read_actuals(folder, rows, print)
        add_baselines(found[name], folder, YEAR, print, lambda text: None)
    return found


def of_year(own: Actuals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hours, cutoffs and an honest forecast of the year."""
    inside = own.calendar.hours >= YEAR.first
    honest = (own.day_ahead[RIDGE] + own.day_ahead[BIAS])[inside] / 2
    return own.calendar.hours[inside], own.calendar.issue[inside], honest


def frame(
    name: str, hour: np.ndarray, cutoff: np.ndarray, point: np.ndarray, width: np.ndarray | float
) -> pd.DataFrame:
    stamps = [x.astype("datetime64[h]").astype("datetime64[s]") for x in (hour, cutoff)]
    columns = {"unique_id": name, "ds": stamps[0], "cutoff": stamps[1]}
    return pd.DataFrame({**columns, "q0.1": point - width, "q0.5": point, "q0.9": point + width})


def test_six_regions_and_a_year_take_less_than_a_minute(
    folder: Path, actuals: dict[str, Actuals], tmp_path: Path
) -> None:
    parts = [frame(name, *of_year(own), float(np.nanstd(own.demand - own.operator))) for name, own in actuals.items()]
    pd.concat(parts).to_parquet(path := tmp_path / "honest.parquet")
    command = [sys.executable, "-m", "coordinator", "judge", str(path), "--data", str(folder), "--json", "--quiet"]
    program = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime); sys.exit(done.returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    document, seconds = done.stdout.splitlines()
    print(f"{float(seconds):.1f} s of a core")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(document)
    assert not verdict["peeks"] and set(verdict["respondents"]) == set(SIX)
    for line in verdict["respondents"].values():
        assert line["rows"] == 8760 and {BIAS, RIDGE, "DF", "persistence"} <= set(line["over"])
        assert len(line["parts"]["month"]) == 13  # the first hours are of December, local
    assert verdict["mean"]["over"]["DF"]["skill"] > 0.15
    assert float(seconds) < LIMIT_S


def planted(kind: str, own: Actuals) -> pd.DataFrame:
    """A file of one region that uses hours after its cutoffs."""
    hour, cutoff, honest = of_year(own)
    draw = np.random.default_rng(7)

    def actual(back: int) -> np.ndarray:
        return own.at(own.demand, hour - back)

    def error(back: int) -> np.ndarray:
        return own.at(own.demand - own.operator, hour - back)

    operator = own.at(own.operator, hour)
    _, day = np.unique(own.calendar.day[own.index(hour)], return_inverse=True)
    known = np.isfinite(error(0))
    day_error = np.bincount(day, np.nan_to_num(error(0))) / np.maximum(np.bincount(day, known), 1)
    width = np.full(len(hour), np.nanstd(actual(0) - honest))
    points = {
        "the actual": actual(0),
        "the actual with noise of a percent": actual(0) * (1 + 0.01 * draw.normal(size=len(hour))),
        "a third of the actual": 0.7 * honest + 0.3 * actual(0),
        "yesterday's hours, also those after the cutoff": actual(24),
        "DF and the error an hour before": operator + error(1),
        "a centred mean of three hours": (actual(-1) + actual(0) + actual(1)) / 3,
        "DF and the day's own mean error": operator + day_error[day],
        "the actual in a tenth of the hours": np.where(draw.random(len(hour)) < 0.1, actual(0), honest),
        "one hour late": actual(1),
        "intervals as wide as the error to come": honest,
    }
    if kind == "intervals as wide as the error to come":
        width = 1.05 * np.abs(actual(0) - honest)
    return frame(own.respondent, hour, cutoff, points[kind], width)


PEEKS = (
    "the actual", "the actual with noise of a percent", "a third of the actual", "yesterday's hours, also those after the cutoff",
    "DF and the error an hour before", "a centred mean of three hours", "DF and the day's own mean error",
    "the actual in a tenth of the hours", "one hour late", "intervals as wide as the error to come",
)  # fmt: skip


@pytest.mark.parametrize("kind", PEEKS)
def test_planted_file_is_named_in_each_region(
    kind: str, folder: Path, actuals: dict[str, Actuals], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "planted.parquet"
    pd.concat([planted(kind, own) for own in actuals.values()]).to_parquet(path)
    assert main(["--file", str(path), "--data", str(folder), "--json", "--quiet"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    named = {one["respondent"] for one in verdict["findings"] if one["peeks"]}
    assert named == set(SIX), verdict["findings"]
