"""The evaluation of control on a folder with other respondents and years than those of the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ingest.publication import NAMED, known_at
from rl.env.dataset import build_dataset
from rl.env.grid import Grid
from rl.env.region import region
from rl.evaluation.score import rollout
from rl.planning.mpc import PathMpc
from scripts.evaluate import control_baselines, control_tables
from scripts.evaluate.control_data import Recorded, recorded
from tests.support.data_folder import build_all, commit, daily, shard
from tests.support.recordings import demand, needs_recordings
from worker.control.datasets import standard_offset
from worker.forecast.hourly.authority import make_authority
from worker.forecast.hourly.forecasts import hourly_forecasts
from worker.training.tokens import Period

YEARS = range(2021, 2024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AZPS, three years; the first starts in March."""
    data = tmp_path_factory.mktemp("control-data")
    rng = np.random.default_rng(0)
    for year in YEARS:
        one = shard("AZPS", f"{year}-{'03' if year == YEARS[0] else '01'}-01T00", f"{year}-12-31T23")
        load = daily(one.hours) + rng.normal(0, 20, one.hours).cumsum() / 30
        commit(data, one, {"D": load, "DF": load + 20})
    build_all(data)
    return data


def lines(folder: Path, out: Path, *flags: str, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Run the script and return what it wrote."""
    command = ["control_baselines", "--data", str(folder), "--out", str(out), "--every", "26", *flags]
    monkeypatch.setattr("sys.argv", command)
    control_baselines.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_runs_on_any_year_and_region(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raised KeyError for a region that is not one of six, and ValueError for a year that is not 2018 or 2019."""
    for year in (2022, 2023):
        found = lines(
            folder,
            tmp_path / f"{year}.jsonl",
            "--year",
            str(year),
            "--only",
            "nothing,optimum",
            monkeypatch=monkeypatch,
        )
        assert [line["policy"] for line in found] == ["nothing", "optimum"]
        idle, best = found
        assert idle["region"] == "AZPS" and idle["year"] == year and idle["pop"] == pytest.approx(0, abs=1e-6)
        assert best["pop"] == pytest.approx(1, abs=1e-6)
        assert sum(quarter["weeks"] for quarter in idle["quarters"]) == idle["weeks"] == 2
        assert sum(quarter["cost"] for quarter in best["quarters"]) == pytest.approx(sum(best["parts"].values()))
    assert "AZPS" in control_tables.docs(found)


def test_nothing_of_the_validation_year_is_fitted_on(folder: Path) -> None:
    """Fits end where the validation year begins, and before the evaluated year."""
    one = recorded(folder, "AZPS", 2023)
    assert (one.trained, one.test) == ("2022-01-01T00", ("2023-01-01T00", "2024-01-01T00"))
    assert recorded(folder, "AZPS", 2022).trained == "2022-01-01T00"
    assert str(one.region.hours[0]) == "2021-03-01T00" and one.region.offset == -7


def test_a_year_that_is_not_on_disk_is_refused_in_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in ((("--year", "2025"), "2021 to 2023"), (("--regions", "NOPE"), "NOPE")):
        with pytest.raises(SystemExit):
            lines(folder, tmp_path / "none.jsonl", *flags, monkeypatch=monkeypatch)
        assert message in capsys.readouterr().err


@needs_recordings
@pytest.mark.long
@pytest.mark.parametrize("publication", list(NAMED))
@pytest.mark.parametrize("name", ["CISO", "PACW", "MISO"])
def test_plans_on_recorded_paths_use_nothing_published_later(name: str, publication: str) -> None:
    """From recorded demand and DF, over hourly paths and their blend, to the fleet's power: hours of 2019, before and after changes."""
    parsed = NAMED[publication]
    stamps, columns = demand(name)
    used = np.array(stamps, "datetime64[h]")
    end = int(np.searchsorted(used, np.datetime64("2019-04-01T00")))
    hours, numbers = used[:end], used[:end].astype(np.int64)
    load, issued = (
        np.where(np.isfinite(columns[one]) & (columns[one] > 0), columns[one], np.nan)[:end] for one in ("D", "DF")
    )
    load[load > 3 * np.nanmedian(load)] = np.nan  # real outliers of the recordings
    first = end - 24 * 9

    def powers(load: np.ndarray, issued: np.ndarray) -> np.ndarray:
        one = region(
            name, hours, load, offset=standard_offset(name), reference_end="2018-01-01T00", lag=parsed.actual_hours
        )
        found = Recorded(one, issued / one.peak, "2018-01-01T00", ("2019-03-23T00", "2019-03-29T00"), parsed)
        authority = make_authority(name, int(numbers[0]), load, issued, parsed)
        period = Period(int(numbers[first - 24 * 15]), int(numbers[-1]))  # a blend knows two weeks before
        table = {name: hourly_forecasts(authority, period, horizon=control_baselines.HORIZON, paths=10)}
        ahead = control_baselines.hourly_ahead(table, found)[1]
        late = control_baselines.corrected_df(found, 1)
        data = build_dataset([one], [late], *found.test, Grid())
        plans = PathMpc(Grid(), data.gather([ahead]), control_baselines.HORIZON)
        return rollout(Grid(), data, plans, np.array([0]), 96).power[..., 0]

    before = powers(load, issued)
    start = int(np.searchsorted(hours, np.datetime64("2019-03-23T00")))
    for hour in (17, 41, 70):  # decisions at different hours of the day
        known = known_at(name, numbers[start + hour - 1 : start + hour], parsed)
        after = powers(
            np.where(numbers > known.actual[0], load * 1.2, load),
            np.where(numbers > known.forecast[0], issued * 0.8, issued),
        )
        assert np.array_equal(before[: hour + 1], after[: hour + 1])
        assert (before[hour + 1 :] != after[hour + 1 :]).any()
