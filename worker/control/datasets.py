"""The tables of a control training, from the series of the data folder: net load, and what is known ahead.

Net load is demand less wind and solar where a respondent has them. What is known ahead is the forecaster's median where a training has
ended (`worker.forecast`, one file a checkpoint), else the operators' day-ahead forecast, less the wind and solar of the hour in
the mean of a week that was known then; then corrected by its own last errors (`rl.env.forecasts.corrected`). The same hours always make the same bytes, named by their sha256.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest import manifest
from ingest.calendar import zone_of
from ingest.errors import Cancelled, IngestError, UsageError
from ingest.files import atomic_write
from ingest.loader import available, load_series, respondents_on_disk
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of, to_bytes
from rl.env.forecasts import corrected, day_ahead
from rl.env.grid import Grid
from rl.env.region import Region, region
from worker.process import blas_env

Array = NDArray[np.float64]

RENEWABLE = ("NG.WND", "NG.SUN")
SPLITS = ("train", "validate", "test")
GROWTH = 1.05  # of a copy of the years that train, in the table `learn`: the next peak is higher than all before
HISTORY = 168  # hours before the first row, so that a week back is real
KNOWN = range(48, 216, 24)  # hours before: days whose wind and solar are known when tomorrow is planned
MEDIAN = "q0.5"
LOOK_S = 0.2
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class DatasetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Years are whole; the last one tests, the one before validates, all before train."""

    respondents: tuple[str, ...]  # none: all on disk
    run: str  # run folder of a forecaster's training, relative to the data folder or absolute; "": none
    checkpoint: str  # sha256 of its weights
    horizon: int  # hours


class DatasetResult(msgspec.Struct, frozen=True):
    """What was made."""

    tables: dict[str, str]  # split → sha256
    respondents: tuple[str, ...]
    peaks: tuple[float, ...]  # MW: what one reference peak is
    renewable: tuple[str, ...]  # respondents whose wind and solar were taken off
    known: str  # what the policy knows ahead
    origins: tuple[str, ...]  # of the series: "synthetic", a server


def build_datasets(job: DatasetSpec, data_dir: Path, cancelled: threading.Event) -> DatasetResult:
    """Build and write the tables. UsageError where the series on disk do not reach."""
    names = job.respondents or respondents_on_disk(data_dir)
    years = sorted(set.intersection(*(set(available(data_dir, name).years) for name in names)))
    if len(years) < len(SPLITS) or years != list(range(years[0], years[-1] + 1)):
        raise UsageError(
            f"control needs {len(SPLITS)} whole years in a row of {', '.join(names)}; there are "
            f"{', '.join(map(str, years)) or 'none'}: `coordinator start --extract --start 2019 --end 2021` makes three"
        )
    medians = _forecast_medians(job, data_dir, cancelled) if job.run else {}
    turns = [f"{year}-01-01T00" for year in (years[-2], years[-1], years[-1] + 1)]
    regions, forecasts, renewable = [], [], []
    for name in names:
        one, issued, less = _load_region(data_dir, name, years, turns[0], medians.get(name))
        regions.append(one)
        forecasts.append(corrected(one, day_ahead(one, issued, job.horizon), turns[0]))
        renewable += [name] if less else []
    first = str(regions[0].hours[0] + np.timedelta64(HISTORY, "h"))
    proofs, grid = {}, Grid()
    for split, start, end in zip(SPLITS, (first, *turns), turns, strict=False):
        proofs[split] = _store_dataset(data_dir, build_dataset(regions, forecasts, start, end, grid))
    grown = [replace(one, load=one.load * GROWTH) for one in regions]
    more = [forecast * np.float32(GROWTH) for forecast in forecasts]
    proofs["learn"] = _store_dataset(
        data_dir, build_dataset([*regions, *grown], [*forecasts, *more], first, turns[0], grid)
    )
    known = "the forecaster's median" if job.run else "the operators' day-ahead forecast (no trained forecaster)"
    origins = manifest.summarise(manifest.shard_results(data_dir), manifest.build_results(data_dir)).origins
    peaks = tuple(one.peak for one in regions)
    return DatasetResult(proofs, tuple(names), peaks, tuple(renewable), known, tuple(origins))


def _store_dataset(data_dir: Path, made: Dataset) -> str:
    """Its sha256."""
    sha256, content = to_bytes(made)
    path = path_of(data_dir / "control", sha256)
    if not path.exists():
        atomic_write(path, content)
    return sha256


def _load_region(
    data_dir: Path, name: str, years: list[int], train_end: str, median: Mapping[int, float] | None
) -> tuple[Region, Array, bool]:
    """A region; the demand forecast that control knows, net, in reference peaks [hour]; whether wind and solar were taken off."""
    there = available(data_dir, name).variables
    less = [variable for variable in RENEWABLE if variable in there]
    wanted = ["D", *(["DF"] if "DF" in there else []), *less]
    series = load_series(data_dir, [name], wanted, f"{years[0]}-01-01T00", f"{years[-1]}-12-31T23")
    values = np.where(series.mask, series.values, np.nan).astype(float)
    parts = dict(zip(wanted, values.T, strict=True))
    one = region(
        name,
        series.hours,
        parts["D"],
        offset=_standard_offset(name),
        reference_end=train_end,
        wind=parts.get("NG.WND"),
        solar=parts.get("NG.SUN"),
    )
    hours = series.hours.astype("datetime64[h]").astype(np.int64)
    issued = parts.get("DF", np.full(len(hours), np.nan))
    if median is not None:
        issued = np.array([median.get(int(hour), np.nan) for hour in hours])
    off = np.sum([parts[variable] for variable in less], axis=0) if less else np.zeros(len(hours))
    days = np.stack([np.concatenate([np.full(back, np.nan), off[:-back]]) for back in KNOWN])
    seen = np.isfinite(days).sum(axis=0)
    expected = np.divide(np.nansum(days, axis=0), seen, out=np.full(len(hours), np.nan), where=seen > 0)
    return one, (issued - (expected if less else 0)) / one.peak, bool(less)


def _standard_offset(name: str) -> int:
    """Hours from UTC to the respondent's standard time."""
    offset = ZoneInfo(zone_of(name)).utcoffset(datetime(2021, 1, 1))
    assert offset is not None
    return round(offset.total_seconds() / 3600)


def _forecast_medians(job: DatasetSpec, data_dir: Path, cancelled: threading.Event) -> dict[str, dict[int, float]]:
    """The forecaster's median of every hour, respondent → hour number → MWh. A process of its own makes it, once a checkpoint."""
    path = data_dir / "control" / f"forecasts-{job.checkpoint[:16]}.parquet"
    if not path.exists():
        part = path.with_name(
            f"{path.stem}.{os.getpid()}.parquet"
        )  # a worker that was killed may leave its process behind
        kept = {name: value for name, value in os.environ.items() if name not in THREADS}
        command = [sys.executable, "-m", "worker.forecast", "--data", str(data_dir), "--run", str(data_dir / job.run)]
        with subprocess.Popen(
            [*command, "--table", str(part)],
            env={**kept, **blas_env.blas_environment(kept)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                while True:
                    try:
                        said, _ = process.communicate(timeout=LOOK_S)
                        break
                    except subprocess.TimeoutExpired:
                        if cancelled.is_set():
                            raise Cancelled("the lease was taken back") from None
            finally:
                process.kill()
        if process.returncode:
            raise IngestError(
                f"`{' '.join(command)}` ended with exit code {process.returncode}: {said.strip()[-1000:]}"
            )
        part.replace(path)
    found: dict[str, dict[int, float]] = {}
    with pq.ParquetFile(path) as file:
        columns = file.read(["respondent", "hour", MEDIAN]).to_pydict()
    for name, hour, value in zip(*columns.values(), strict=True):
        if value is not None:
            found.setdefault(name, {})[int(hour)] = float(value)
    return found
