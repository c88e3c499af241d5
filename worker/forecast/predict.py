"""Probabilistic forecasts of demand: load a trained model and predict the quantiles of every hour of a period.

A forecast is issued at 10:00 local time for the hours of the next local day, from what was known then.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest import features
from ingest.calendar import ISSUE_HOUR, Calendar, calendar_of
from ingest.errors import UsageError, quoted
from ingest.features import COLUMNS, cut_calendar
from ingest.loader import respondents_on_disk
from ingest.own_history import own_history
from ingest.publication import Publication
from ringattn.layout import Layout
from worker.forecast.fallback import REACH, history_instead
from worker.forecast.linear.mixture import supported
from worker.forecast.model import checkpoint
from worker.forecast.model.checkpoint import CheckpointError
from worker.forecast.model.conformal import PAIRS, WARM_UP, calibrated
from worker.forecast.model.network import MEDIAN, QUANTILES, Forecaster, ModelConfig, ascending
from worker.training.data import build_local_batch
from worker.training.segments import groups_of, segment_of
from worker.training.tokens import TARGET, Normalisation, Period, Piece, TokenStore, open_token_store


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint that is ready to forecast: averaged weights, normalisation, and the state of its training."""

    path: Path
    model: Forecaster
    norm: Normalisation
    respondents: tuple[str, ...]
    reference: features.Reference
    state: dict[str, Any]  # of `model.checkpoint.Checkpoint`

    @property
    def publication(self) -> Publication:
        """What counted as known in its training, and does in its forecasts."""
        return Publication.parse(self.state["publication"])

    def check_publication(self, wanted: str | None) -> None:
        """Refuse another publication than that of the training; None accepts it.

        Raises:
            UsageError: they differ.
        """
        if wanted is not None and Publication.parse(wanted) != self.publication:
            raise UsageError(
                f"{self.path} was trained for values known as in `{self.publication}`, not `{wanted}`: leave out --publication, or "
                f'train with publication = "{wanted}" in the file of --train-config'
            )

    def seen(self, hours: Period) -> Iterator[str]:
        """Yield a sentence where the training saw `hours`, so that the error of their forecast is no measure of that of coming days."""
        uses = {"train": "are among those that the model was trained on", "validate": "chose the checkpoint"}
        for name, use in uses.items():
            first, last = self.state[name]
            if hours.first <= last and hours.last >= first:
                yield (
                    f"the hours {use} ({Period(first, last)}): how well they are forecast says nothing of coming days"
                )

    def open_store(
        self, data_dir: Path, log: Callable[[str], None] = lambda message: None, region: str | None = None
    ) -> TokenStore:
        """Open the tokens that it forecasts from.

        Args:
            data_dir: data folder with the series.
            log: called with messages.
            region: the one respondent to forecast, which needs the series of those alone that it attends to; of these, a series that
                is not on disk is named and masked. None: all respondents.
        """
        if region not in self.respondents:
            return open_token_store(data_dir, self.respondents, self.reference, log, self.publication)
        (members,) = (
            {self.respondents[i] for i in group}
            for group in groups_of(self.respondents, self.model.config.scope)
            if self.respondents.index(region) in group
        )
        there = {*respondents_on_disk(data_dir), region}
        if absent := sorted(members - there):
            log(f"{', '.join(absent)}: no series on disk; {region} is forecast without them")
        return open_token_store(data_dir, self.respondents, self.reference, log, self.publication, members & there)


@dataclass(frozen=True)
class Forecast:
    """Consecutive hours of one respondent; arrays are [hour], in MWh unless stated."""

    respondent: str
    hours: NDArray[np.int64]  # hour numbers, UTC, hour-ending
    quantiles: NDArray[np.float64]  # [hour, level] of QUANTILES; NaN where there is no reference to correct
    demand: NDArray[np.float32]  # NaN where not measured (yet)
    operator: NDArray[np.float32]  # the operators' own forecast, DF
    embedding: NDArray[np.float32]  # [hour, dim], no unit
    replaced: NDArray[np.bool_]  # own history takes the place of the model, which did worse of late

    @property
    def median(self) -> NDArray[np.float64]:
        """The level 0.5 of every hour, MWh, [hour]."""
        return self.quantiles[:, MEDIAN]


@dataclass(frozen=True)
class RawForecast:
    """Consecutive hours of one respondent before the calibration of their intervals; arrays are [hour]."""

    respondent: str
    hours: NDArray[np.int64]
    issue: NDArray[np.int64]  # the last hour whose outcome the hour's forecast knows
    quantiles: NDArray[np.float64]  # [hour, level], errors of the reference in units of its scale
    outcome: NDArray[np.float64]  # in the same unit; NaN where not measured
    columns: NDArray[np.float32]  # [hour, (reference, scale, demand, operator)], MWh
    embedding: NDArray[np.float32]  # [hour, dim]
    replaced: NDArray[np.bool_]  # as in `Forecast`

    def forecast(self, period: Period, quantiles: NDArray[np.float64]) -> Forecast:
        """Return the hours of `period`, with `quantiles` [hour, level] in the place of the raw ones."""
        inside = slice(period.first - int(self.hours[0]), period.last + 1 - int(self.hours[0]))
        reference, scale, demand, operator = self.columns[inside].T
        wide = reference[:, None] + quantiles[inside] * scale[:, None]
        return Forecast(
            self.respondent, self.hours[inside], wide, demand, operator, self.embedding[inside], self.replaced[inside]
        )


def load_model(run: Path) -> TrainedModel:
    """Load a trained model.

    Args:
        run: folder of a finished run, whose result.json names the checkpoint, or the folder of one checkpoint.

    Raises:
        CheckpointError: if there is neither, or if the checkpoint was trained on another version of the features.
    """
    result = run / "result.json"
    path = run / _checkpoint_of(result) if result.exists() else run
    if not (path / "state.json").exists():
        where = (
            f"--data {quoted(run.parent)}" if run.name == "train" else f"--run {quoted(run)}"
        )  # DATA/train is the default
        raise CheckpointError(
            f"{run} holds no finished training: `coordinator start --train {where}` makes one, or name its folder with --run"
        )
    found = checkpoint.load(path)
    state = found.state
    inputs = [features.VERSION, *features.FEATURES, *features.CONDITION]
    if state["features"] != inputs or state["quantiles"] != list(QUANTILES):
        raise CheckpointError(
            f"{path} was trained on features of another version: `coordinator start --train --run NEW` trains again"
        )
    model = Forecaster(ModelConfig(**state["model"]))
    model.update(found.average)
    norm = Normalisation.from_state(state["normalisation"])
    return TrainedModel(path, model, norm, tuple(state["respondents"]), state["reference"], state)


def _checkpoint_of(result: Path) -> str:
    """Return the checkpoint that a result.json names.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return str(json.loads(result.read_text("utf-8"))["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{result} is damaged: `rm {quoted(result)}`, then the command of the training (`coordinator start --train`) writes it again"
        ) from error


def predict(trained: TrainedModel, store: TokenStore, respondent: str, period: Period) -> Forecast:
    """Forecast every hour of a period, each as issued on the day before; arguments and errors are those of `predict_raw`."""
    return calibrated_forecast(trained, predict_raw(trained, store, respondent, period), period)


def calibrated_forecast(trained: TrainedModel, raw: RawForecast, period: Period) -> Forecast:
    """Return the forecast of a period whose raw one is `raw`, with intervals from outcomes that each issue time knows."""
    # Older checkpoints have no widths: their intervals start as the model's own.
    start = np.array(trained.state.get("widths", {}).get(raw.respondent, np.zeros(len(PAIRS))))
    return raw.forecast(period, calibrated(raw.quantiles, raw.outcome, raw.hours, raw.issue, start))


def predict_raw(trained: TrainedModel, store: TokenStore, respondent: str, period: Period) -> RawForecast:
    """Forecast every hour of a period and of the `WARM_UP` before it, with the model's own intervals, or those of history in its place.

    Args:
        trained: the model.
        store: tokens of the model's respondents.
        respondent: its code.
        period: hours to forecast.

    Raises:
        UsageError: if the model was not trained on the respondent, or if the store lacks hours of the period.
    """
    if respondent not in trained.respondents:
        raise UsageError(
            f"{respondent} is not among those trained on: {', '.join(trained.respondents)}; train with --respondents, or "
            f"forecast without a training: `coordinator forecast --region {respondent} --horizon 48`"
        )
    region = trained.respondents.index(respondent)
    stored = store.period(region)
    if period.first < stored.first or period.last > stored.last:
        raise UsageError(
            f"{respondent} has hours from {stored}, not all of {period}: `coordinator start --extract --respondents {respondent} --end YYYY-MM` "
            "fetches later ones"
        )
    first = max(stored.first, period.first - trained.model.config.context - WARM_UP - REACH)
    whole = Period(first, period.last)
    (members,) = (group for group in groups_of(trained.respondents, trained.model.config.scope) if region in group)
    segment = segment_of(store, [Piece(one, first, period.last - first + 1) for one in members])
    ring = Layout("contiguous")
    local = build_local_batch(store, [segment], trained.norm, layout=ring, size=1, rank=0, scored=whole, region=region)
    embedding = trained.model.embedding(local.batch)
    rows = local.regions[0] == region
    hours = in_time(local.hours, rows)
    asked = (hours >= first) & (hours <= period.last)
    arrays = (
        np.array(ascending(trained.model.head(embedding))).astype(np.float64),
        np.where(np.array(local.valid) > 0, np.array(local.target), np.nan),
        local.columns,
        np.array(embedding),
    )
    quantiles, outcome, columns, kept = (in_time(array, rows)[asked] for array in arrays)
    calendar, history = _history(store, region, period.last)
    history, calendar = history[first - stored.first :], cut_calendar(calendar, first, period.last)
    reference, scale, demand, _ = columns.T.astype(np.float64)
    median = quantiles[:, [MEDIAN]]
    instead, ratio = history_instead(calendar, demand, reference + median[:, 0] * scale, history)
    corrected = median[:, 0]
    if (
        trained.reference == "linear"
    ):  # the network's part of it, as the linear forecast takes its share of what it corrects
        corrected = supported(corrected, outcome, scale, calendar)
    with np.errstate(invalid="ignore"):
        centre = np.where(instead, (history - reference) / scale, corrected)[:, None]
    quantiles = centre + (quantiles - median) * ratio[:, None]
    return RawForecast(respondent, hours[asked], calendar.issue, quantiles, outcome, columns, kept, instead)


def in_time(x: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the hours of some rows of x [24, row, …] one after the other, [hour, …]."""
    days = x[:, rows].swapaxes(0, 1)
    return days.reshape(-1, *days.shape[2:])


def _history(store: TokenStore, region: int, last: int) -> tuple[Calendar, NDArray[np.float64]]:
    """Return the calendar of a respondent's hours up to `last`, and the forecast of each from its own history, MWh."""
    first, rows = store.maps[region]
    calendar = calendar_of(store.respondents[region], first, last, publication=store.publication)
    at = [TARGET + COLUMNS.index(name) for name in ("demand", "operator")]
    demand, operator = rows[: last + 1 - first, at].T.astype(np.float64)
    return calendar, own_history(calendar, demand, operator)


def parse_issue(issue: str) -> datetime:
    """Parse an issue time `YYYY-MM-DDTHH`, local time of a respondent; another form is a UsageError."""
    try:
        return datetime.strptime(issue, "%Y-%m-%dT%H")
    except ValueError as error:
        raise UsageError(
            f"--issue {issue} is no issue time: write YYYY-MM-DDTHH, local time of the respondent, or latest or tomorrow"
        ) from error


def hours_of_issue(respondent: str, issue: str) -> Period:
    """Return the hours of the local day after an issue time.

    Args:
        respondent: its code.
        issue: local time `YYYY-MM-DDTHH`.

    Raises:
        UsageError: if it is no time at which forecasts are issued.
    """
    moment = parse_issue(issue)
    if moment.hour != ISSUE_HOUR:
        raise UsageError(
            f"--issue {issue}: forecasts are issued at {ISSUE_HOUR}:00 local; ask for {issue[:11]}{ISSUE_HOUR:02d}"
        )
    day = int(np.datetime64(moment.date(), "D").astype(np.int64)) + 1
    calendar = calendar_of(respondent, (day - 1) * 24, (day + 2) * 24)
    hours = calendar.hours[calendar.day == day]
    return Period(int(hours[0]), int(hours[-1]))
