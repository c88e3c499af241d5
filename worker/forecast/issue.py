"""Issue times by name: `latest` and `tomorrow`, from the demand on disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from ingest.calendar import ISSUE_HOUR
from ingest.columns import hour_number
from ingest.errors import UsageError, quoted
from ingest.loader import available, load_series
from ingest.publication import MAX_ACTUAL_HOURS, Publication, known_at
from ingest.zones import zone_of

LATEST, TOMORROW = "latest", "tomorrow"
NAMED = (LATEST, TOMORROW)


def resolve_issue(data_dir: Path, respondent: str, issue: str, publication: Publication) -> str:
    """Return the local issue time, `YYYY-MM-DDTHH`, that a name means; another text as it is.

    `latest` is the first time at which the newest demand on disk is published. `tomorrow` is 10:00 on the local day of `latest`.

    Args:
        data_dir: data folder.
        respondent: EIA code.
        issue: the name, or a time.
        publication: when values are published.

    Raises:
        UsageError: there is no demand on disk, or it does not reach 10:00 of its last day.
    """
    if issue not in NAMED:
        return issue
    last = _last_demand(data_dir, respondent)
    moments = np.arange(last, last + MAX_ACTUAL_HOURS + 1)
    moment = moments[known_at(respondent, moments, publication).actual >= last][0]
    latest = datetime.fromtimestamp(int(moment) * 3600, UTC).astimezone(ZoneInfo(zone_of(respondent)))
    if issue == LATEST:
        return latest.strftime("%Y-%m-%dT%H")
    if latest.hour < ISSUE_HOUR:
        raise UsageError(
            f"--issue {TOMORROW}: forecasts of {(latest + timedelta(days=1)).date()} are issued at {ISSUE_HOUR}:00 local, and the demand of {respondent} on "
            f"disk ends at {latest:%Y-%m-%dT%H}; `--issue {LATEST}` forecasts the next 48 hours, `coordinator start --update --data {quoted(data_dir)}` "
            "fetches newer ones"
        )
    return f"{latest.date()}T{ISSUE_HOUR:02d}"


def _last_demand(data_dir: Path, respondent: str) -> int:
    """Return the number of the last hour with measured demand.

    Raises:
        UsageError: there is none.
    """
    for year in reversed(available(data_dir, respondent).years):
        start = f"{year}-01-01T00"
        found = np.flatnonzero(load_series(data_dir, [respondent], ["D"], start, f"{year}-12-31T23").mask[:, 0])
        if found.size:
            return hour_number(start) + int(found[-1])
    raise UsageError(
        f"{respondent} has no measured demand in {data_dir}: `coordinator start --extract --data {quoted(data_dir)} --respondents {respondent}` fetches it"
    )
