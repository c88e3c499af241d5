"""Gradient-boosted trees of the reference's error on the tokens, a respondent or pooled, by LightGBM (Ke et al. 2017).

LightGBM is not a dependency: it is in the group `bench-forecast`. A fit minimises the absolute error; hours count by their scale
over the respondent's mean scale, so that every respondent counts the same. A pooled model also knows which respondent an hour is of.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats
from worker.forecast.baselines.history import History, known_at_start
from worker.training.tokens import Period

SETTINGS: tuple[dict[str, Any], ...] = (  # tried
    {"num_leaves": 15, "min_data_in_leaf": 500},
)
COMMON: dict[str, Any] = {
    "objective": "regression_l1",
    "learning_rate": 0.03,
    "feature_fraction": 0.2,
    "bagging_fraction": 0.5,
    "bagging_freq": 1,
    "lambda_l2": 50.0,
    "seed": 0,
    "deterministic": True,  # the same at any number of threads, which OMP_NUM_THREADS sets
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS = (150, 300, 500, 700, 1000)  # numbers of trees tried


@dataclass(frozen=True)
class Trees:
    """What was chosen on the validation hours."""

    setting: dict[str, Any]
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Return it as a plain map."""
        return {**self.setting, "rounds": self.rounds}


def is_installed() -> bool:
    """Return whether LightGBM can be imported."""
    return importlib.util.find_spec("lightgbm") is not None


def boosting(
    histories: Sequence[History],
    validate: Period,
    test: Period,
    settings: Sequence[dict[str, Any]] = SETTINGS,
    rounds: Sequence[int] = ROUNDS,
) -> tuple[Trees, list[Floats]]:
    """Fit one model to all the respondents given.

    The model that forecasts a period is fitted to the hours known before it; setting and number of trees are those of the least
    error on the validation hours, in units of DF's, mean over respondents.

    Returns:
        The choice, and each respondent's forecast of both periods, MWh, [hour]; NaN elsewhere.
    """
    tried = []
    for setting in settings:
        model = _fit(histories, known_at_start(histories, validate), setting, max(rounds))
        for n in rounds:
            forecasts = [_forecast(model, region, history, validate, n) for region, history in enumerate(histories)]
            tried.append((_relative_error(histories, forecasts, validate), Trees(setting, n), forecasts))
    _, trees, forecasts = min(tried, key=lambda one: one[0])
    model = _fit(histories, known_at_start(histories, test), trees.setting, trees.rounds)
    for region, (history, forecast) in enumerate(zip(histories, forecasts, strict=True)):
        within = history.within(test)
        forecast[within] = _forecast(model, region, history, test, trees.rounds)[within]
    return trees, forecasts


def _fit(histories: Sequence[History], known: int, setting: dict[str, Any], rounds: int) -> Any:
    """Return a booster fitted to every measured hour up to `known` (an hour number)."""
    import lightgbm

    inputs, targets, weights = [], [], []
    for region, history in enumerate(histories):
        rows = np.flatnonzero(np.isfinite(history.target) & (history.hours <= known))
        if rows.size:
            inputs.append(_with_region(history.inputs[rows], region))
            targets.append(history.target[rows])
            weights.append(history.scale[rows] / history.scale[rows].mean())
    data = lightgbm.Dataset(
        np.concatenate(inputs),
        np.concatenate(targets),
        weight=np.concatenate(weights),
        categorical_feature=[inputs[0].shape[1] - 1],
    )
    return lightgbm.train({**COMMON, **setting}, data, rounds)


def _with_region(inputs: NDArray[np.float32], region: int) -> NDArray[np.float32]:
    """Return inputs [hour, input + 1] with the respondent's number as the last one."""
    return np.concatenate([inputs, np.full((len(inputs), 1), region, np.float32)], axis=1)


def _forecast(model: Any, region: int, history: History, period: Period, rounds: int) -> NDArray[np.float64]:
    """Return the forecast of a period's hours, MWh, [hour]; NaN elsewhere."""
    rows = np.flatnonzero(history.within(period))
    forecast = np.full(len(history.hours), np.nan)
    correction = model.predict(_with_region(history.inputs[rows], region), num_iteration=rounds)
    forecast[rows] = history.reference[rows] + correction * history.scale[rows]
    return forecast


def _relative_error(histories: Sequence[History], forecasts: Sequence[Floats], period: Period) -> float:
    """Return the mean over respondents of MAE / MAE of DF."""
    ratios = []
    for history, forecast in zip(histories, forecasts, strict=True):
        where = history.scored(period)
        error, own = (np.abs(history.demand - x)[where].mean() for x in (forecast, history.operator))
        ratios.append(error / own)
    return float(np.mean(ratios))
