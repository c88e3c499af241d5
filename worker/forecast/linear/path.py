"""The linear forecast of every authority: own regressions, their mixture, and what its neighbours add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats
from worker.forecast.baselines.history import History
from worker.forecast.linear.mixture import mixture, share_of
from worker.forecast.linear.neighbours import neighbour_experts
from worker.forecast.linear.own import Month, common_months, own_experts

OWN_RATE, RATE = 50.0, 100.0  # of the mixtures; chosen on 2018


class LinearForecast(NamedTuple):
    """Forecasts of one authority's hours, MWh, [hour]; the reference where there is nothing to correct it by."""

    own: Floats  # from its own hours, and coefficients that all authorities share
    neighbours: Floats  # and from the forecasts of the authorities around


def linear_forecasts(
    histories: Sequence[History],
    months: Sequence[Month] | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> list[LinearForecast]:
    """Return the forecasts of each authority.

    Nothing after an hour's issue time changes its forecast, of any authority.

    Args:
        histories: the authorities, which tell about each other.
        months: what one fit forecasts, as `common_months` returns them; None: each month.
        log: called with a message now and then.
    """
    months = common_months(histories) if months is None else months
    own = _mixtures(own_experts(histories, months, log), histories, months, OWN_RATE)
    wide = _mixtures(neighbour_experts(histories, own, months, log), histories, months, RATE)
    return [
        LinearForecast(
            *(history.reference + np.nan_to_num(share_of(one, history) * history.scale) for one in corrections)
        )
        for history, *corrections in zip(histories, own, wide, strict=True)
    ]


def _mixtures(
    experts: Sequence[NDArray[np.float32]], histories: Sequence[History], months: Sequence[Month], rate: float
) -> list[Floats]:
    return [
        mixture(each, history, index, months, rate)
        for index, (each, history) in enumerate(zip(experts, histories, strict=True))
    ]
