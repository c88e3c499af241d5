"""Datasets of a control training, built from the series of the data folder: net load and its forecast.

Net load is demand less wind and solar, where a respondent has them. The forecast starts from the median of the trained forecaster
where there is one (`worker.forecast`, one file per checkpoint), else from the operators' day-ahead forecast. `worker.control.hourly` re-issues it
every hour by what is known of its errors. Wind and solar are forecast by their mean of the same hour over the week that was known a day
before; `rl.env.forecasts.corrected` then corrects the net load by its own latest errors. The same hours always make the same
bytes, named by their SHA-256.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from ingest import manifest
from ingest.columns import open_parquet
from ingest.errors import Cancelled, IngestError, UsageError
from ingest.files import atomic_write
from ingest.loader import available, load_series, respondents_on_disk
from ingest.publication import DAY_BEFORE, DEFAULT, MAX_FORECAST_DAYS, Publication, known_at
from ingest.zones import zone_of
from ringattn.blas import loader as blas
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of, to_bytes
from rl.env.forecasts import DAY, Forecast, blended, corrected, day_ahead
from rl.env.grid import Array, Grid
from rl.env.region import Region, region
from worker.control.hourly import reissued

RENEWABLE = ("NG.WND", "NG.SUN")
SPLITS = ("train", "validate", "test")
GROWTH = 1.05  # of a copy of the training years in the dataset `learn`: the next peak is higher than all before
HISTORY = 168  # hours before the first row, so that features of a week back are measured
KNOWN = range(48, 216, 24)  # hours back: days whose wind and solar are known when tomorrow is planned
MEDIAN = "q0.5"
POLL_S = 0.2  # between checks of `cancelled`
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class DatasetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Datasets to build, of whole years: the last one tests, the one before validates, all earlier ones train.

    Attributes:
        respondents: Respondents; empty for all on disk.
        run: Run folder of a forecaster's training, relative to the data folder or absolute; "" for none.
        checkpoint: SHA-256 of the forecaster's weights.
        horizon: Hours of forecast in each observation.
        publication: When actual values and the operators' forecast are published, as `ingest.publication` reads it; "" for that of the
            forecaster's training, without one the default.
    """

    respondents: tuple[str, ...]
    run: str
    checkpoint: str
    horizon: int
    publication: str = ""


class DatasetResult(msgspec.Struct, frozen=True):
    """Datasets that were built.

    Attributes:
        tables: SHA-256 by split.
        respondents: Respondents, in the order of the datasets' regions.
        peaks: Reference peak of each respondent, in MW.
        renewable: Respondents whose wind and solar were subtracted.
        known: Forecast that the policy sees, in words.
        origins: Of the series: "synthetic", or a server. Every report states them, so that synthetic series never pass for
            measured ones.
    """

    tables: dict[str, str]
    respondents: tuple[str, ...]
    peaks: tuple[float, ...]
    renewable: tuple[str, ...]
    known: str
    origins: tuple[str, ...]


def build_datasets(spec: DatasetSpec, data_dir: Path, cancelled: threading.Event) -> DatasetResult:
    """Build the datasets and write them to `control/` of the data folder.

    Raises:
        UsageError: The series on disk do not cover three whole years in a row.
    """
    names = spec.respondents or respondents_on_disk(data_dir)
    years = sorted(set.intersection(*(set(available(data_dir, name).years) for name in names)))
    if len(years) < len(SPLITS) or years != list(range(years[0], years[-1] + 1)):
        raise UsageError(
            f"control needs {len(SPLITS)} whole years in a row of {', '.join(names)}; there are "
            f"{', '.join(map(str, years)) or 'none'}: `coordinator start --extract --start 2019 --end 2021` makes three"
        )
    publication = _publication(spec, data_dir)
    medians = _forecast_medians(spec, data_dir, cancelled) if spec.run else {}
    starts = [f"{year}-01-01T00" for year in (years[-2], years[-1], years[-1] + 1)]  # of validation, test, and after
    regions, forecasts, renewable = [], [], []
    for name in names:
        one = _load_region(data_dir, name, years, starts[0], publication, medians.get(name))
        regions.append(one.region)
        forecasts.append(ahead_of(one, spec.horizon, starts[0]))
        renewable += [name] if one.renewable is not None else []
    first = str(regions[0].hours[0] + np.timedelta64(HISTORY, "h"))
    tables, grid = {}, Grid()
    for split, start, end in zip(SPLITS, (first, *starts), starts, strict=False):
        tables[split] = store_dataset(data_dir / "control", build_dataset(regions, forecasts, start, end, grid))
    grown = [replace(one, load=one.load * GROWTH) for one in regions]
    more = [forecast * np.float32(GROWTH) for forecast in forecasts]
    learn = build_dataset([*regions, *grown], [*forecasts, *more], first, starts[0], grid)
    tables["learn"] = store_dataset(data_dir / "control", learn)
    known = "the forecaster's median" if spec.run else "the operators' day-ahead forecast (no trained forecaster)"
    known += ", re-issued every hour"
    if publication != DEFAULT:
        known += f"; values known as in `{publication}`"
    peaks = tuple(one.peak for one in regions)
    return DatasetResult(tables, tuple(names), peaks, tuple(renewable), known, manifest.origins_of(data_dir))


def store_dataset(folder: Path, dataset: Dataset) -> str:
    """Write a dataset below a control folder unless it is there; return its sha256."""
    sha256, content = to_bytes(dataset)
    path = path_of(folder, sha256)
    if not path.exists():
        atomic_write(path, content)
    return sha256


@dataclass(frozen=True, eq=False)
class Loaded:
    """A respondent's series; arrays are [hour], MWh, NaN where missing."""

    region: Region
    demand: Array
    issued: Array  # day-ahead forecast of the demand: the forecaster's median, or DF
    renewable: Array | None  # wind and solar, if they are subtracted
    publication: Publication  # of the demand and of `issued`


def _load_region(
    data_dir: Path,
    name: str,
    years: list[int],
    train_end: str,
    publication: Publication,
    median: Mapping[int, float] | None,
) -> Loaded:
    """Load a respondent's series.

    Args:
        data_dir: Data folder.
        name: The respondent.
        years: Whole years, ascending.
        train_end: End of the training hours, which the reference peak is taken from.
        publication: When actual values and the operators' forecast are published.
        median: The forecaster's median by hour number, in MWh; None for the operators' forecast.
    """
    variables = available(data_dir, name).variables
    less = [variable for variable in RENEWABLE if variable in variables]
    wanted = ["D", *(["DF"] if "DF" in variables else []), *less]
    series = load_series(data_dir, [name], wanted, f"{years[0]}-01-01T00", f"{years[-1]}-12-31T23")
    values = np.where(series.mask, series.values, np.nan).astype(float)
    parts = dict(zip(wanted, values.T, strict=True))
    loaded = region(
        name,
        series.hours,
        parts["D"],
        offset=standard_offset(name),
        reference_end=train_end,
        wind=parts.get("NG.WND"),
        solar=parts.get("NG.SUN"),
        lag=publication.actual_hours,
    )
    hours = series.hours.astype("datetime64[h]").astype(np.int64)
    issued = parts.get("DF", np.full(len(hours), np.nan))
    if median is not None:
        issued = np.array([median.get(int(hour), np.nan) for hour in hours])
        publication = replace(DAY_BEFORE, actual_hours=publication.actual_hours)  # our forecaster's own issue time
    renewable = np.sum([parts[variable] for variable in less], axis=0) if less else None
    return Loaded(loaded, parts["D"], issued, renewable, publication)


def ahead_of(one: Loaded, horizon: int, train_end: str) -> Forecast:
    """Forecast a respondent's net load, [hour, horizon, 1] in reference peaks; corrections are fitted before `train_end`.

    Where nothing can be re-issued, as in an authority's first weeks, the day-ahead forecast stands. The blend with the corrected one is for weeks in which
    the hourly regressions fail, as CISO's did in March 2019.
    """
    region, less = one.region, np.zeros(len(one.demand))
    if one.renewable is not None:
        days = np.stack([np.concatenate([np.full(back, np.nan), one.renewable[:-back]]) for back in KNOWN])
        known = np.isfinite(days).sum(axis=0)
        less = np.divide(np.nansum(days, axis=0), known, out=np.full(len(less), np.nan), where=known > 0)
    day_ahead = known_ahead(region, (one.issued - less) / region.peak, horizon, one.publication)
    # Hours after the last one have no load either; `less` of hours ahead is of at least 48 hours before them.
    target = np.minimum(np.arange(len(less))[:, None] + np.arange(horizon), len(less) - 1)
    hourly = reissued(region, one.demand, one.issued, horizon, one.publication)
    hourly = hourly - (less[target, None] / region.peak).astype(np.float32)
    if one.renewable is not None:
        return corrected(region, np.where(np.isfinite(hourly), hourly, day_ahead), train_end)
    return blended(region, hourly, corrected(region, day_ahead, train_end))[0]


def known_ahead(one: Region, issued: Array, horizon: int, publication: Publication = DEFAULT) -> Forecast:
    """Return a day-ahead forecast [hour] of a respondent as it was known hour by hour, [hour, horizon, 1].

    It is published for operating days, which have daylight saving: `ingest.publication`.
    """
    hours = one.hours.astype(np.int64)
    margin = (MAX_FORECAST_DAYS + 2) * DAY
    moments = np.arange(hours[0] - margin, hours[-1] + margin)
    first_known = np.searchsorted(known_at(one.name, moments, publication).forecast, hours)
    return day_ahead(one, issued, horizon, moments[first_known])


def standard_offset(name: str) -> int:
    """Return the hours from UTC to the respondent's standard time."""
    offset = ZoneInfo(zone_of(name)).utcoffset(datetime(2021, 1, 1))
    assert offset is not None
    return round(offset.total_seconds() / 3600)


def _publication(spec: DatasetSpec, data_dir: Path) -> Publication:
    if spec.publication or not spec.run:
        return Publication.parse(spec.publication or str(DEFAULT))
    run = data_dir / spec.run
    checkpoint = run / json.loads((run / "result.json").read_bytes())["checkpoint"]
    return Publication.parse(json.loads((checkpoint / "state.json").read_bytes())["publication"])


def _forecast_medians(spec: DatasetSpec, data_dir: Path, cancelled: threading.Event) -> dict[str, dict[int, float]]:
    """Return the forecaster's median by respondent and hour number, in MWh; computed once per checkpoint."""
    path = data_dir / "control" / f"forecasts-{spec.checkpoint[:16]}.parquet"
    if not path.exists():
        _forecast_table(path, data_dir, data_dir / spec.run, spec.publication, cancelled)
    found: dict[str, dict[int, float]] = {}
    with open_parquet(path) as file:
        columns = file.read(["respondent", "hour", MEDIAN]).to_pydict()
    for name, hour, value in zip(*columns.values(), strict=True):
        if value is not None:
            found.setdefault(name, {})[int(hour)] = float(value)
    return found


def _forecast_table(path: Path, data_dir: Path, run: Path, publication: str, cancelled: threading.Event) -> None:
    """Write a table of forecasts in a separate process, which has the threads of a rank.

    The process writes atomically: that of a worker that was killed may still run and write the same table.

    Raises:
        Cancelled: The lease was cancelled.
        IngestError: The process failed.
    """
    kept = {name: value for name, value in os.environ.items() if name not in THREADS}
    command = [sys.executable, "-m", "worker.forecast", "--data", str(data_dir), "--run", str(run)]
    command += ["--publication", publication] if publication else []
    with subprocess.Popen(
        [*command, "--table", str(path)],
        env={**kept, **blas.thread_settings(kept)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if cancelled.is_set():
                        raise Cancelled("the lease was cancelled") from None
        finally:
            process.kill()
    if process.returncode:
        raise IngestError(f"`{shlex.join(command)}` exited with {process.returncode}: {output.strip()[-1000:]}")
