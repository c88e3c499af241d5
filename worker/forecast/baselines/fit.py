"""Fit every baseline to the respondents of a token store: settings are chosen on the validation hours, test hours are only forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ingest.array_types import Floats
from ingest.errors import UsageError
from worker.forecast.baselines.boosting import boosting, is_installed
from worker.forecast.baselines.history import History, read_history
from worker.forecast.baselines.ridge import ridge
from worker.forecast.baselines.running_bias import running_bias
from worker.forecast.baselines.table import BIAS, MEAN, MIXTURE, NEIGHBOURS, OWN, POOLED, RIDGE, BaselineTable, Points
from worker.forecast.linear.path import linear_forecasts
from worker.training.tokens import Period, TokenStore

ENOUGH = 0.25  # of a period's hours have demand and DF, or the respondent is left out
MIN_TRAINING = 90 * 24  # measured hours before the validation, or the respondent is left out

Log = Callable[[str], None]


def fit_baselines(
    store: TokenStore, validate: Period, test: Period, log: Log, neighbours: TokenStore | None = None
) -> BaselineTable:
    """Return the forecasts of every baseline; respondents with too few hours and absent libraries are left out by name.

    Args:
        store: tokens of the respondents to forecast.
        validate: hours that decide.
        test: hours that are only forecast.
        log: called with a message before each fit.
        neighbours: tokens of the authorities that the linear path attends to; None: it is left out.

    Raises:
        UsageError: no respondent has enough hours, or the validation does not end before the test.
    """
    if validate.last >= test.first:
        raise UsageError(f"the validation hours {validate} do not end before the test hours {test}: name other periods")
    histories = []
    for region in range(len(store.respondents)):
        history = read_history(store, region)
        reason = unusable(history, validate, test)
        if reason:
            log(f"{history.respondent} is left out: {reason}")
        else:
            histories.append(history)
    if not histories:
        raise UsageError(f"no respondent has enough hours with demand and DF from {validate} and {test}: extract them")
    found = [_linear(history, validate, test, log) for history in histories]
    if is_installed():
        _add_trees(found, histories, validate, test, log)
    else:
        log(f"{OWN}, {POOLED} and {MEAN} are left out: lightgbm is not installed (group bench-forecast)")
    if neighbours is not None:
        _add_linear(found, histories, neighbours, log)
    whole = Period(validate.first, test.last)
    return BaselineTable(validate, test, {one.respondent: one.within(whole) for one in found}, store.publication)


def unusable(history: History, validate: Period, test: Period) -> str:
    """Return why a respondent cannot be compared, or nothing."""
    measured = np.isfinite(history.target) & np.isfinite(history.operator)
    training = int((measured & (history.hours < validate.first)).sum())
    if training < MIN_TRAINING:
        return f"{training:,} hours with demand and DF before the validation, {MIN_TRAINING:,} are needed"
    for period in (validate, test):
        share = history.scored(period).sum() / (period.last - period.first + 1)
        if share < ENOUGH:
            return f"{share:.0%} of the hours {period} have demand and DF, {ENOUGH:.0%} are needed"
    return ""


def _linear(history: History, validate: Period, test: Period, log: Log) -> Points:
    """Return running bias and ridge of one respondent, all hours."""
    log(f"{history.respondent}: {BIAS}, {RIDGE}")
    bias, by_bias = running_bias(history, validate)
    penalty, by_ridge = ridge(history, validate, test)
    calendar = history.calendar
    return Points(
        history.respondent,
        history.hours,
        calendar.issue,
        calendar.day,
        history.demand,
        history.operator,
        {BIAS: by_bias, RIDGE: by_ridge},
        {BIAS: bias._asdict(), RIDGE: {"penalty": penalty}},
    )


def _add_trees(found: Sequence[Points], histories: Sequence[History], validate: Period, test: Period, log: Log) -> None:
    """Add the trees' forecasts, and the mean of the pooled ones and ridge."""
    for points, history in zip(found, histories, strict=True):
        log(f"{history.respondent}: {OWN}")
        trees, (forecast,) = boosting([history], validate, test)
        _add(points, OWN, forecast, trees.to_json())
    log(f"{len(histories)} respondents: {POOLED}")
    trees, forecasts = boosting(histories, validate, test)
    for points, forecast in zip(found, forecasts, strict=True):
        _add(points, POOLED, forecast, trees.to_json())
        _add(points, MEAN, (points.by_name[RIDGE] + forecast) / 2, {})


def _add_linear(found: Sequence[Points], histories: Sequence[History], neighbours: TokenStore, log: Log) -> None:
    """Add the linear forecasts, from own hours and from those of all authorities."""
    others = [read_history(neighbours, region) for region in range(len(neighbours.respondents))]
    names = {history.respondent for history in histories}
    every = [*histories, *(other for other in others if other.respondent not in names)]
    log(f"{MIXTURE}, {NEIGHBOURS} of {len(every)}")
    for points, forecast in zip(found, linear_forecasts(every), strict=False):  # the respondents come first
        _add(points, MIXTURE, forecast.own, {})
        _add(points, NEIGHBOURS, forecast.neighbours, {})


def _add(points: Points, name: str, forecast: Floats, choice: dict[str, object]) -> None:
    points.by_name[name] = forecast
    points.choices[name] = choice
