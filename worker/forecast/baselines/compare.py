"""How much better one forecast is than another, with the test of Diebold and Mariano; which baseline is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from worker.forecast.model.scores import DieboldMariano, daily_losses, diebold_mariano


@dataclass(frozen=True)
class Gain:
    """A forecast against another one, in units of MAE of the operators' forecast (DF): a difference of skills over DF."""

    skill: float
    test: DieboldMariano
    days: Int64s  # local days, days since 1970-01-01
    by_day: Floats  # [day] of the difference of losses

    def to_json(self) -> dict[str, float]:
        """Return the figures as a plain map."""
        return {"skill": self.skill, "statistic": self.test.statistic, "p": self.test.p}


def gain(
    actual: NDArray[np.floating],
    forecast: NDArray[np.floating],
    other: NDArray[np.floating],
    operator: NDArray[np.floating],
    day: Int64s,
) -> Gain:
    """Compare two forecasts of one respondent on the hours that both and the operators have.

    Args:
        actual: demand, MWh, [hour].
        forecast: MWh, [hour].
        other: the forecast to compare with, MWh, [hour].
        operator: DF, MWh, [hour].
        day: local day of each hour; all of its hours are forecast at once.
    """
    both = np.isfinite(actual) & np.isfinite(forecast) & np.isfinite(other) & np.isfinite(operator)
    unit = float(np.abs(actual - operator)[both].mean()) if both.any() else float("nan")
    days, mine = daily_losses(actual[both], forecast[both], day[both])
    _, theirs = daily_losses(actual[both], other[both], day[both])
    _, hours = np.unique(day[both], return_counts=True)
    by_day = (theirs - mine) / unit
    skill = float(by_day @ hours / hours.sum()) if len(days) else float("nan")
    return Gain(skill, diebold_mariano(by_day), days, by_day)


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """Return the gain averaged over respondents, with one test of the days' means, on all days that any respondent has."""
    days = np.unique(np.concatenate([one.days for one in gains]))
    table = np.full((len(gains), len(days)), np.nan)
    for row, one in zip(table, gains, strict=True):
        row[np.searchsorted(days, one.days)] = one.by_day
    by_day = np.nanmean(table, axis=0)
    return Gain(float(np.mean([one.skill for one in gains])), diebold_mariano(by_day), days, by_day)


def best_by_mean(skills: Mapping[str, Sequence[float]]) -> str:
    """Return the name whose skills over respondents have the greatest mean; the first of equal ones."""
    return max(skills, key=lambda name: float(np.mean(skills[name])))
