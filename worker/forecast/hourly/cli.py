"""Hourly forecasts on the command line: one issue hour of an authority, or the file of every issue hour that control reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from zoneinfo import ZoneInfo

import numpy as np

from ingest.array_types import Bools
from ingest.calendar import ISSUE_HOUR, ZONES, zone_of
from ingest.columns import hour_text
from ingest.errors import IngestError, UsageError, quoted
from ingest.loader import respondents_on_disk
from ingest.publication import DEFAULT, Publication
from ingest.settings import parse_codes
from worker.forecast.answer import Answer
from worker.forecast.hourly.authority import load_authority
from worker.forecast.hourly.forecasts import HourlyForecasts, hourly_forecasts
from worker.forecast.hourly.inputs import LATE, MAX_HORIZON, AuthorityHours
from worker.forecast.hourly.regression import MIN_DAYS
from worker.forecast.hourly.table import write_hourly
from worker.forecast.model.network import MEDIAN
from worker.forecast.predict import parse_issue
from worker.training.tokens import Period

MODEL = "hourly regressions"
Log = Callable[[str], None]


def is_hourly(options: argparse.Namespace) -> bool:
    """Return whether the hourly regressions answer: for issue hours other than that of the trained model, horizons and paths."""
    named = options.horizon is not None or bool(options.paths)
    return options.hourly is not None or named or not options.issue.endswith(f"T{ISSUE_HOUR:02d}")


def issue_number(respondent: str, issue: str) -> int:
    """Return the number of the hour that ends at an issue time.

    Args:
        respondent: EIA code.
        issue: local time `YYYY-MM-DDTHH`.

    Raises:
        UsageError: it is no time, or one that the clock skips.
    """
    moment = parse_issue(issue)
    zone = ZoneInfo(zone_of(respondent))
    moment_utc = moment.replace(tzinfo=zone).astimezone(UTC)
    if moment_utc.astimezone(zone).hour != moment.hour:
        raise UsageError(f"--issue {issue}: the clock of {zone} skips that hour; name the one before or after it")
    return int(moment_utc.timestamp()) // 3600


def publication_of(options: argparse.Namespace) -> Publication:
    """Return when values are taken to be published."""
    return Publication.parse(options.publication) if options.publication else DEFAULT


def forecast_issue(
    options: argparse.Namespace, respondent: str, origin: str, log: Log, only: Period | None = None
) -> Answer:
    """Forecast the hours after one issue hour.

    Args:
        options: of the command line; its issue is a time.
        respondent: EIA code.
        origin: of the series.
        log: called with messages.
        only: the hours to keep; None: all of the horizon.

    Raises:
        UsageError: the hour is not on disk.
        IngestError: nothing can be said of any hour.
    """
    issue = issue_number(respondent, options.issue)
    publication = publication_of(options)
    hours = load_authority(options.data, respondent, publication)
    horizon = MAX_HORIZON if options.horizon is None else options.horizon
    late = _late(hours, issue)
    if late:
        log(f"the last known demand is {late} h old; the intervals suppose a newer one")
    log(f"forecasting {respondent} with the {MODEL}, fitted to the hours before the month of the issue; {publication}")
    found = hourly_forecasts(hours, Period(issue, issue), horizon=horizon, paths=options.paths, seed=options.seed)
    at = int(issue - hours.calendar.hours[0])
    numbers = hours.calendar.hours[at + 1 : at + 1 + horizon]
    kept = np.full(horizon, True) if only is None else (numbers >= only.first) & (numbers <= only.last)
    ahead = at + 1 + np.flatnonzero(kept)
    published = ahead <= hours.operator_known[at]
    answer = Answer(
        respondent,
        options.issue,
        int(hours.calendar.hours[0] + hours.actual_known[at]),
        MODEL,
        origin,
        str(publication),
        hours.calendar.hours[ahead],
        found.quantiles[0, kept].astype(np.float64),
        np.where(published, hours.operator[ahead], np.nan),
        hours.demand[ahead],
        found.paths[0, kept].astype(np.float64),
        reasons=tuple(_reasons(published, np.isfinite(hours.operator[ahead]), publication)),
    )
    unknown = int((~np.isfinite(answer.quantiles[:, MEDIAN])).sum())
    if not unknown:
        return answer
    cause = (
        f"{unknown} of {len(ahead)} hours after {options.issue} have no forecast: without their DF it takes {MIN_DAYS} days of demand and DF before the "
        f"month of the issue; `coordinator start --extract --data {quoted(options.data)} --respondents {respondent} --start YYYY-MM` fetches earlier ones"
    )
    if unknown == len(ahead):
        raise IngestError(f"{respondent}: {cause}")
    return replace(answer, reasons=(cause, *answer.reasons))


def _reasons(published: Bools, there: Bools, publication: Publication) -> Iterator[str]:
    """Yield a sentence for each reason why hours are forecast without DF; arrays are [hour]."""
    n = len(published)
    if lacking := int((published & ~there).sum()):
        yield f"{lacking} of {n} hours have no DF on disk: they are forecast without it"
    if early := int((~published).sum()):
        yield f"{early} of {n} hours are forecast before their DF is published ({publication}), without it"


def _late(hours: AuthorityHours, issue: int) -> int:
    """Return how many hours before the one that should be known the last measured demand is.

    Raises:
        IngestError: it is too old to forecast from.
    """
    at = int(issue - hours.calendar.hours[0])
    if not 0 <= at < hours.issues:
        return 0  # `hourly_forecasts` names the hours that there are
    last = int(hours.actual_known[at])
    measured = np.flatnonzero(np.isfinite(hours.demand[: last + 1]))
    late = last - int(measured[-1]) if measured.size else last + 1
    if late > LATE:
        raise IngestError(
            f"{hours.respondent} has no demand in the {late} hours before {hour_text(issue)} (UTC): extract them with "
            "`coordinator start --extract --update`, or name an earlier --issue"
        )
    return late


def write_file(options: argparse.Namespace, origin: str, log: Log) -> str:
    """Write the file of every issue hour of a period; return the text for stdout."""
    names = parse_codes(options.region or ()) or respondents_on_disk(options.data)
    names = tuple(name for name in names if name in ZONES or options.region)
    horizon = MAX_HORIZON if options.horizon is None else options.horizon
    publication = publication_of(options)

    def each() -> Iterator[HourlyForecasts]:
        for number, name in enumerate(names, 1):
            log(f"forecasting {name}, {number} of {len(names)}")
            hours = load_authority(options.data, name, publication)
            first = int(hours.calendar.hours[0])
            whole = Period(first, first + hours.issues - 1)
            period = Period.parse(options.period, "period") if options.period else whole
            yield hourly_forecasts(hours, period, horizon=horizon, paths=options.paths, seed=options.seed)

    count = write_hourly(
        each(),
        options.hourly,
        {"model": MODEL, "seed": options.seed, "publication": str(publication), "origin": origin},
    )
    if options.json:
        return json.dumps({"hourly": str(options.hourly), "rows": count, "respondents": list(names)})
    return f"{count:,} rows of {len(names)} respondents in {options.hourly}"
