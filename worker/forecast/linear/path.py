"""The linear forecast of every authority: own regressions, their mixture, and what the other authorities add."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingest.array_types import Floats
from worker.forecast.baselines.history import History
from worker.forecast.linear.mixture import mixture
from worker.forecast.linear.neighbours import neighbour_experts
from worker.forecast.linear.own import common_months, own_experts

OWN_RATE, RATE = 50.0, 100.0  # of the mixtures; chosen on 2018


def linear_forecasts(histories: Sequence[History], neighbours: bool = True) -> list[Floats]:
    """Return the forecast of each authority's hours, MWh, [hour]; the reference where there is nothing to correct it by.

    Nothing after an hour's issue time changes its forecast, of any authority.

    Args:
        histories: the authorities, which also tell about each other.
        neighbours: False leaves out what they tell, as an ablation.
    """
    months = common_months(histories)
    corrections = []
    for index, (history, experts) in enumerate(zip(histories, own_experts(histories, months), strict=True)):
        corrections.append(mixture(experts, history, index, months, OWN_RATE))
    if neighbours and len(histories) > 1:
        wide = neighbour_experts(histories, corrections, months)
        corrections = [
            mixture(experts, history, index, months, RATE)
            for index, (history, experts) in enumerate(zip(histories, wide, strict=True))
        ]
    return [
        history.reference + np.nan_to_num(correction * history.scale)
        for history, correction in zip(histories, corrections, strict=True)
    ]
