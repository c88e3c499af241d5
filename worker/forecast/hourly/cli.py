"""Hourly forecasts on the command line: one issue hour of an authority, or the file of every issue hour that control reads."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from ingest.calendar import ISSUE_HOUR, ZONES, zone_of
from ingest.columns import hour_text
from ingest.errors import IngestError, UsageError
from ingest.loader import respondents_on_disk
from ingest.publication import DEFAULT, Publication
from ingest.settings import parse_codes
from worker.forecast.hourly.authority import load_authority
from worker.forecast.hourly.forecasts import HourlyForecasts, hourly_forecasts
from worker.forecast.hourly.inputs import LATE, MAX_HORIZON, AuthorityHours
from worker.forecast.hourly.table import write_hourly
from worker.forecast.model.network import QUANTILES
from worker.forecast.predict import parse_issue
from worker.forecast.table import format_table
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


def forecast_issue(options: argparse.Namespace, respondent: str, log: Log) -> str:
    """Forecast the hours after one issue hour; return the text for stdout.

    Raises:
        UsageError: the hour is not on disk.
        IngestError: nothing can be said, or of no hour.
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
    rows = _rows(hours, found)
    if not np.isfinite(found.median).any():
        raise IngestError(f"{respondent}: too few hours before {options.issue} to forecast from; extract earlier ones")
    if options.json:
        document = {"respondent": respondent, "issue": options.issue, "model": MODEL, "publication": str(publication)}
        return json.dumps(document | {"hours": rows})
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    title = f"{respondent}, issued {options.issue} local by the {MODEL}, MWh; hours end at the time given (UTC)"
    return "\n".join([title, *format_table(rows, width), *_path_lines(rows)])


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


def _rows(hours: AuthorityHours, found: HourlyForecasts) -> list[dict[str, Any]]:
    """Return one plain map an hour of a single issue, MWh."""
    first = int(found.issues[0] - hours.calendar.hours[0]) + 1
    rows = []
    for step, (quantiles, paths) in enumerate(zip(found.quantiles[0], found.paths[0], strict=True)):
        row: dict[str, Any] = {"period": hour_text(int(found.issues[0]) + step + 1)}
        row |= {f"q{level:g}": _number(x) for level, x in zip(QUANTILES, quantiles, strict=True)}
        known = first + step <= hours.operator_known[first - 1]
        row |= {"operator": _number(hours.operator[first + step]) if known else None}
        row |= {"demand": _number(hours.demand[first + step])}
        rows.append(row | ({"paths": [_number(x) for x in paths]} if paths.size else {}))
    return rows


def _path_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    if "paths" not in rows[0]:
        return []
    lines = ["", f"{'period':<13}" + "".join(f"{f'path {k + 1}':>9}" for k in range(len(rows[0]["paths"])))]
    return lines + [
        f"{row['period']:<13}" + "".join("        –" if x is None else f"{x:9,.0f}" for x in row["paths"])
        for row in rows
    ]


def _number(x: float) -> float | None:
    return round(float(x), 1) if np.isfinite(x) else None


def write_file(options: argparse.Namespace, log: Log) -> str:
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
        each(), options.hourly, {"model": MODEL, "seed": options.seed, "publication": str(publication)}
    )
    if options.json:
        return json.dumps({"hourly": str(options.hourly), "rows": count, "respondents": list(names)})
    return f"{count:,} rows of {len(names)} respondents in {options.hourly}"
