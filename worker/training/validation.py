"""Validation: skill, coverage and interval widths of the present weights on the validation hours, over the ranks of a ring."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ingest.calendar import calendar_of
from ingest.errors import UsageError
from ingest.features import Reference
from worker.forecast.model import conformal
from worker.forecast.model.network import MEDIAN, QUANTILES, Forecaster
from worker.training.data import LocalBatch
from worker.training.tokens import Period, TokenStore


@dataclass(frozen=True)
class Validation:
    """Scores of the validation hours, the same on every rank."""

    skills: dict[str, float]  # MAE skill over DF (without it, over the reference) by respondent that has such hours
    coverage: float  # share of hours inside the 80% interval
    widths: dict[str, list[float]]  # of each respondent's intervals after these hours
    tokens: int  # hours of the sequences, context included
    seconds: float


class _Sums:
    """Sums over the validated hours of this rank, by respondent."""

    def __init__(self, names: Sequence[str], period: Period) -> None:
        self.period = period
        self.scores = np.zeros((len(names), 4))  # errors, those of the rival, hours inside the 80% interval, hours
        # 1 + ratio of each hour and interval; 0 where not measured
        self.ratios = np.zeros((len(names), period.last - period.first + 1, len(conformal.PAIRS)), np.float32)

    def add(self, local: LocalBatch, quantiles: NDArray[np.float64], reference: Reference) -> None:
        """Add the hours of a sequence."""
        valid, target = np.array(local.valid) > 0, np.array(local.target)
        regions, found, outcome = local.regions[valid], quantiles[valid], target[valid]
        _, scale, demand, operator = local.columns[valid].T
        inside = (outcome >= found[:, QUANTILES.index(0.1)]) & (outcome <= found[:, QUANTILES.index(0.9)])
        errors = np.abs(outcome - found[:, MEDIAN]) * scale
        rival = np.abs(outcome) * scale
        if reference == "linear":
            # It is judged by what both add to DF, as one that corrects DF is; where there is none, by what the network adds.
            rival = np.where(np.isfinite(operator), np.abs(demand - operator), rival)
        for column, x in enumerate((errors, rival, inside, np.ones_like(scale))):
            self.scores[:, column] += np.bincount(regions, x, minlength=len(self.scores))
        at = regions, local.hours[valid] - self.period.first
        self.ratios[at] = 1 + conformal.ratios(found, outcome)


def validate(
    model: Forecaster,
    batches: Iterable[LocalBatch],
    store: TokenStore,
    period: Period,
    group: mx.distributed.Group,
) -> Validation:
    """Score a model; all ranks call it with their parts of the same sequences.

    Args:
        model: the forecaster.
        batches: this rank's part of each sequence; only the hours of `period` have targets that count.
        store: tokens of the respondents.
        period: the validation hours.
        group: the ranks.

    Raises:
        UsageError: if no respondent has an hour that can be validated.
    """
    names = store.respondents
    began, tokens, sums = time.monotonic(), 0, _Sums(names, period)
    for local in batches:
        sums.add(local, np.array(model(local.batch)).astype(np.float64), store.reference)
        tokens += local.total
    total = mx.distributed.all_sum(mx.array(sums.scores.astype(np.float32)), group=group)
    errors, rivals, covered, count = np.array(total).T
    there = np.flatnonzero(rivals)
    if not len(there):
        raise UsageError(
            f"no hour of {period} has both a demand and a reference forecast to validate with; choose another period with --validate"
        )
    ratio = np.array(mx.distributed.all_sum(mx.array(sums.ratios), group=group)) - 1
    ratio[ratio < 0] = np.nan
    widths = {}
    for name, each in zip(names, ratio, strict=True):
        calendar = calendar_of(name, period.first, period.last, publication=store.publication)
        widths[name] = conformal.widths_after(each, calendar.hours, calendar.issue).tolist()
    skills = {names[i]: float(1 - errors[i] / rivals[i]) for i in there.tolist()}
    return Validation(skills, float(covered.sum() / count.sum()), widths, tokens, time.monotonic() - began)
