"""Score point and quantile forecasts of a test period against the operators' and the best baseline; used by `python -m scripts.evaluate.forecast run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.calendar import Calendar, calendar_of
from ingest.features import COLUMNS, CONDITION, FEATURES
from worker.forecast.baselines.compare import Gain, best_by_mean, gain, mean_gain
from worker.forecast.baselines.table import OWN_HOURS, BaselineTable, Points
from worker.forecast.model import scores
from worker.forecast.model.network import QUANTILES
from worker.forecast.predict import Forecast
from worker.training.tokens import Period, TokenStore

WEEK = 168  # hours
Line = dict[str, Any]
Forecasts = Mapping[str, NDArray[np.floating]]  # respondent → [hour] of the test period, MWh


@dataclass(frozen=True)
class Actuals:
    """The test hours of one respondent; arrays are [hour], MWh."""

    calendar: Calendar
    demand: NDArray[np.float32]
    operator: NDArray[np.float32]  # DF
    week: NDArray[np.float32]  # demand a week before: the naive forecast
    history: NDArray[np.float32]  # demand of the hours before the validation, for MASE


@dataclass(frozen=True)
class Contest:
    """What every contender is scored on, and the forecasts that it is compared with."""

    actuals: dict[str, Actuals]  # by respondent
    rivals: dict[str, Forecasts]  # by name
    averaged: tuple[str, ...]  # respondents of the mean

    def lines(self, who: str, forecasts: Forecasts, about: Mapping[str, Line]) -> Iterator[Line]:
        """Return a line for each respondent, then one of their mean, with the gain over every rival.

        Args:
            who: the contender.
            forecasts: its forecast of every respondent of the contest.
            about: further fields of each respondent's line.
        """
        gains: dict[str, dict[str, Gain]] = {name: {} for name in self.rivals if name != who}
        found = []
        for respondent, actuals in self.actuals.items():
            for name, own in gains.items():
                own[respondent] = _gain(actuals, forecasts[respondent], self.rivals[name][respondent])
            line = {"who": who, "respondent": respondent, **about.get(respondent, {})}
            line |= points(actuals, forecasts[respondent])
            found.append({**line, "over": {name: own[respondent].to_json() for name, own in gains.items()}})
        yield from found
        mean: Line = {"who": who, "respondent": "mean", "averaged": list(self.averaged)}
        mean |= {key: found[0][key] for key in ("run", "seed", "context") if key in found[0]}
        for key in ("skill", "validation_skill"):
            if key in found[0]:
                mean[key] = float(np.mean([line[key] for line in found if line["respondent"] in self.averaged]))
        over = {name: mean_gain([own[one] for one in self.averaged]).to_json() for name, own in gains.items()}
        yield {**mean, "over": over}


def open_contest(
    store: TokenStore,
    respondents: list[str],
    period: Period,
    before: Period,
    table: BaselineTable | None,
    averaged: tuple[str, ...],
) -> Contest:
    """Read the test hours, and find the best baseline on own hours by the mean of the validation hours.

    Args:
        store: tokens of all the respondents.
        respondents: who is scored.
        period: test hours.
        before: validation hours; those before them are MASE's history.
        table: the baselines, if any.
        averaged: those of the respondents whose mean is reported, and decides.
    """
    actuals = {name: _actuals(store, name, period, before) for name in respondents}
    rivals: dict[str, Forecasts] = {"operators": {name: one.operator for name, one in actuals.items()}}
    if table is not None:
        skills = validation_skills(table, list(averaged))
        best = best_by_mean({who: skills[who] for who in OWN_HOURS if who in skills})
        rivals[best] = baseline_forecasts(table, respondents, period)[best]
    return Contest(actuals, rivals, averaged)


def baseline_forecasts(table: BaselineTable, respondents: list[str], period: Period) -> dict[str, Forecasts]:
    """Return each baseline's forecasts of a period; NaN at hours that a respondent's table lacks."""
    names = table.respondents[respondents[0]].by_name
    return {who: {name: _aligned(table.respondents[name], who, period) for name in respondents} for who in names}


def _aligned(points: Points, who: str, period: Period) -> NDArray[np.floating]:
    part = points.within(period)
    forecast = np.full(period.last - period.first + 1, np.nan)
    forecast[part.hour - period.first] = part.by_name[who]
    return forecast


def validation_skills(table: BaselineTable, respondents: list[str]) -> dict[str, list[float]]:
    """Return each baseline's skill over DF in the validation hours, a respondent."""
    parts = [table.respondents[name].within(table.validate) for name in respondents]
    return {who: [_skill(part, who) for part in parts] for who in parts[0].by_name}


def _skill(part: Points, who: str) -> float:
    return scores.skill(part.demand, part.by_name[who], part.operator)


def points(actuals: Actuals, point: NDArray[np.floating]) -> Line:
    """Return the scores of a point forecast; the skill is over the operators' forecast, on hours that both forecast."""
    demand, operator, calendar = actuals.demand, actuals.operator, actuals.calendar
    month = (calendar.day.astype("datetime64[D]").astype("datetime64[M]").astype(int)) % 12

    def skill(where: NDArray[np.bool_]) -> float:
        return scores.skill(demand[where], point[where], operator[where])

    return {
        "hours": int((np.isfinite(demand) & np.isfinite(point) & np.isfinite(operator)).sum()),
        "skill": skill(np.ones(len(demand), bool)),
        "mae": scores.mae(demand, point),
        "mape": scores.mape(demand, point),
        "peak_mape": scores.peak_mape(demand, point, calendar.day),
        "mase": scores.mase(demand, point, actuals.history),
        "skill_by_month": [skill(month == m) for m in range(12)],
        "skill_by_hour": [skill(calendar.hour == h) for h in range(24)],
    }


def intervals(forecast: Forecast) -> Line:
    """Return the scores of a forecast's quantiles."""
    actual, q = forecast.demand, forecast.quantiles
    return {
        "pinball": scores.pinball(actual, q, QUANTILES),
        "crps": scores.crps(actual, q, QUANTILES),
        "coverage_80": scores.coverage(actual, q[:, 1], q[:, -2]),
        "coverage_95": scores.coverage(actual, q[:, 0], q[:, -1]),
    }


def _gain(actuals: Actuals, forecast: NDArray[np.floating], other: NDArray[np.floating]) -> Gain:
    return gain(actuals.demand, forecast, other, actuals.operator, actuals.calendar.day)


def _actuals(store: TokenStore, respondent: str, period: Period, before: Period) -> Actuals:
    region = store.respondents.index(respondent)
    return Actuals(
        calendar_of(respondent, period.first, period.last),
        _column(store, region, period, "demand"),
        _column(store, region, period, "operator"),
        _column(store, region, Period(period.first - WEEK, period.last - WEEK), "demand"),
        _column(store, region, Period(store.period(region).first, before.first - 1), "demand"),
    )


def _column(store: TokenStore, region: int, period: Period, name: str) -> NDArray[np.float32]:
    """Return a column at every hour of a period; NaN where the store has no such hour."""
    first, rows = store.maps[region]
    at = np.arange(period.first, period.last + 1) - first
    inside = (at >= 0) & (at < len(rows))
    column = rows[np.clip(at, 0, len(rows) - 1), len(FEATURES) + len(CONDITION) + COLUMNS.index(name)]
    return np.where(inside, column, np.float32(np.nan))
