"""The hours of an authority on disk, with what is published of them at the end of each hour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ingest.array_types import Floats
from ingest.calendar import calendar_of
from ingest.columns import hour_number
from ingest.loader import available, load_series
from ingest.publication import DEFAULT, Publication, known_at
from worker.forecast.hourly.inputs import MARGIN, AuthorityHours


def load_authority(data_dir: Path, respondent: str, publication: Publication = DEFAULT) -> AuthorityHours:
    """Return every hour on disk of an authority; one without DF has none.

    Args:
        data_dir: data folder with its series.
        respondent: EIA code.
        publication: when values are published.

    Raises:
        UsageError: there is no series of it, or its time zone is unknown.
    """
    found = available(data_dir, respondent)
    variables = ["D", *(["DF"] if "DF" in found.variables else [])]
    start, end = f"{found.years[0]}-01-01T00", f"{found.years[-1]}-12-31T23"
    series = load_series(data_dir, [respondent], variables, start, end)
    values = np.where(series.mask, series.values, np.nan).astype(np.float64)
    demand, operator = values[:, 0], values[:, 1] if len(variables) > 1 else np.full(len(values), np.nan)
    return make_authority(respondent, hour_number(start), demand, operator, publication)


def make_authority(
    respondent: str, first: int, demand: Floats, operator: Floats, publication: Publication = DEFAULT
) -> AuthorityHours:
    """Return the hours of an authority from arrays.

    Args:
        respondent: EIA code, which says the time zone.
        first: number of the first hour.
        demand: MWh, NaN where not measured, [hour].
        operator: DF, MWh, NaN where there is none, [hour].
        publication: when values are published.
    """
    calendar = calendar_of(respondent, first, first + len(demand) + MARGIN - 1)
    demand, operator = (np.concatenate([x, np.full(MARGIN, np.nan)]) for x in (demand, operator))
    known = known_at(respondent, calendar.hours, publication)
    return AuthorityHours(respondent, calendar, demand, operator, known.actual - first, known.forecast - first)
