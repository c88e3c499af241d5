"""Recorded regions of a data folder for the evaluation of control: any respondent and year on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ingest.errors import UsageError
from ingest.loader import available, load_series
from ingest.publication import DEFAULT, Publication
from rl.env.region import Region, region
from worker.control.datasets import HISTORY, standard_offset

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recorded:
    """One region's hours, from the first measured one to the last on disk."""

    region: Region
    issued: Array  # [hour] the operators' day-ahead forecast in reference peaks, NaN where missing
    trained: str  # end (exclusive) of the hours that are fitted on
    test: tuple[str, str]  # first hour of the evaluated year, and the one after its last
    publication: Publication = DEFAULT

    @property
    def first(self) -> str:
        """First hour whose features are measured."""
        return str(self.region.hours[HISTORY])


def years_on_disk(data: Path, name: str) -> tuple[int, ...]:
    """Return the years of a respondent's demand and forecast, ascending."""
    return tuple(sorted(available(data, name).years))


def recorded(data: Path, name: str, year: int, publication: Publication = DEFAULT) -> Recorded:
    """Load a region's demand (recordings have no generation by fuel) and its day-ahead forecast.

    Fits end where the validation year begins, the last but one on disk, or earlier: where `year` begins.

    Raises:
        UsageError: The region or year is not on disk, or there is no earlier year to fit on.
    """
    years, variables = years_on_disk(data, name), available(data, name).variables
    if year not in years or min(year, years[-1] - 1) <= years[0]:
        raise UsageError(
            f"{name}: --year {year} needs that year and an earlier one in {data}, which has {years[0]} to {years[-1]}. "
            "`coordinator start --extract --start … --end …` extracts more"
        )
    trained = f"{min(year, years[-1] - 1)}-01-01T00"
    wanted = ["D", *(["DF"] if "DF" in variables else [])]
    series = load_series(data, [name], wanted, f"{years[0]}-01-01T00", f"{years[-1]}-12-31T23")
    values = np.where(series.mask, series.values, np.nan).astype(float)[int(np.argmax(series.mask[:, 0])) :]
    hours = series.hours[-len(values) :]
    one = region(
        name,
        hours,
        values[:, 0],
        offset=standard_offset(name),
        reference_end=trained,
        lag=publication.actual_hours,
    )
    issued = values[:, 1] / one.peak if len(wanted) > 1 else np.full(len(hours), np.nan)
    return Recorded(one, issued, trained, (f"{year}-01-01T00", f"{year + 1}-01-01T00"), publication)


def training_span(found: Sequence[Recorded]) -> tuple[str, str]:
    """Return the hours that all regions are fitted on: the first one, and the one after the last."""
    return max(one.first for one in found), min(one.trained for one in found)


def forecaster(path: Path, one: Region, column: str = "q0.5") -> Array:
    """Load a quantile of `coordinator forecast --table PATH`, in reference peaks, [hour]; NaN where it is missing."""
    rows = pd.read_parquet(path, columns=["respondent", "hour", column], filters=[("respondent", "==", one.name)])
    values = pd.Series(rows[column].to_numpy(float), rows["hour"]).reindex(one.hours.astype(np.int64)).to_numpy()
    return values / one.peak
