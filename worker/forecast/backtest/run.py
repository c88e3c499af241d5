"""Run a backtest: forecast the walks that are not on disk, join them to one table, and judge it.

Each finished walk is a file `DATA/backtest/<model>/<month>-<key>.parquet`, whose key is the digest of all that it depends on. A backtest
that was interrupted, or that a later month is added to, forecasts only what lacks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Int64s
from ingest.errors import UsageError
from ingest.features import COLUMNS
from ingest.files import atomic_write
from ingest.loader import respondents_on_disk
from ingest.publication import Publication
from worker.forecast.backtest.contender import Contender, Log
from worker.forecast.backtest.linear import LinearContender
from worker.forecast.backtest.network import NetworkContender
from worker.forecast.backtest.rows import to_table, write_rows
from worker.forecast.backtest.schedule import EVERY, Walk, check_months, month_text, walks_of
from worker.forecast.baselines.fit import MIN_TRAINING
from worker.forecast.judge.submission import read_submission
from worker.forecast.judge.verdict import Verdict, judge
from worker.training.tokens import TARGET, Period, TokenStore, open_token_store, with_forecast

FOLDER = "backtest"  # in the data folder


@dataclass(frozen=True)
class Request:
    """What to backtest."""

    data_dir: Path
    first: int  # month, months since 1970-01
    last: int
    respondents: tuple[str, ...]  # none: all on disk that can be forecast
    model: Literal["linear", "network"]
    every: str  # of EVERY
    publication: Publication  # what each forecast knows
    config: Path | None  # of the network's training
    out: Path


@dataclass(frozen=True)
class Result:
    """A finished backtest."""

    rows: int
    walks: tuple[Walk, ...]
    kept: int  # walks that an earlier run had finished
    verdict: Verdict


def backtest(request: Request, log: Log) -> Result:
    """Forecast every walk, write the table, judge it, and keep the verdict for `coordinator report`.

    Raises:
        UsageError: the months are outside the data, or nobody can be forecast there.
    """
    walks = walks_of(request.first, request.last, EVERY[request.every])
    asked = request.respondents or respondents_on_disk(request.data_dir)
    names = with_forecast(request.data_dir, asked, log)
    store = open_token_store(request.data_dir, names, "DF", log, request.publication)
    measured = {name: _measured(store, region) for region, name in enumerate(names)}
    check_months(request.first, request.last, [one for one in measured.values() if one is not None], request.data_dir)
    respondents = _usable(store, walks, log)
    contender = _contender(request, respondents, log)
    kept, table = _walk(request.data_dir / FOLDER / contender.name, contender, walks, log)
    write_rows(table, request.out)
    log(f"{table.num_rows:,} rows in {request.out}; judging them")
    verdict = judge(read_submission(request.out), request.data_dir, None, log, request.publication)
    atomic_write(
        request.data_dir / FOLDER / f"{request.out.stem}.json", json.dumps(verdict.to_json(), allow_nan=False).encode()
    )
    return Result(table.num_rows, tuple(walks), kept, verdict)


def _contender(request: Request, respondents: tuple[str, ...], log: Log) -> Contender:
    every = EVERY[request.every]
    if request.model == "linear":
        return LinearContender(request.data_dir, respondents, every, request.publication, log)
    runs = request.data_dir / FOLDER / "runs"
    return NetworkContender(request.data_dir, respondents, every, request.publication, request.config, runs, log)


def _measured(store: TokenStore, region: int) -> Period | None:
    """Return the first and the last hour with demand and DF; None where there is none."""
    hours = _hours_with_both(store, region, store.period(region))
    return Period(int(hours[0]), int(hours[-1])) if len(hours) else None


def _hours_with_both(store: TokenStore, region: int, period: Period) -> Int64s:
    """Return the hours of a period that have demand and DF, whether or not DF was known in time."""
    first, rows = store.maps[region]
    part = rows[max(period.first - first, 0) : max(period.last + 1 - first, 0)]
    at = [TARGET + COLUMNS.index(name) for name in ("demand", "operator")]
    return max(period.first, first) + np.flatnonzero(np.isfinite(part[:, at]).all(axis=1))


def _usable(store: TokenStore, walks: Sequence[Walk], log: Log) -> tuple[str, ...]:
    """Return the respondents with enough hours before the first walk and some in the walks; the others are left out by name.

    Raises:
        UsageError: nobody is left.
    """
    found = []
    for region, name in enumerate(store.respondents):
        first, last = walks[0].hours(name).first, walks[-1].hours(name).last
        before = len(_hours_with_both(store, region, Period(store.period(region).first, first - 1)))
        if before < MIN_TRAINING:
            log(
                f"{name} is left out: {before:,} hours with demand and DF before {month_text(walks[0].first)}, {MIN_TRAINING:,} are needed"
            )
        elif not len(_hours_with_both(store, region, Period(first, last))):
            log(
                f"{name} is left out: no hour with demand and DF from {month_text(walks[0].first)} to {month_text(walks[-1].last)}"
            )
        else:
            found.append(name)
    if not found:
        raise UsageError(
            f"--from {month_text(walks[0].first)}: nobody has {MIN_TRAINING:,} hours with demand and DF before, and some in the months named; "
            "choose later months, or extract earlier hours"
        )
    return tuple(found)


def _walk(folder: Path, contender: Contender, walks: Sequence[Walk], log: Log) -> tuple[int, pa.Table]:
    """Return how many walks were kept, and the rows of all."""
    paths = [folder / f"{month_text(walk.first)}-{contender.key(walk)}.parquet" for walk in walks]
    missing = [(walk, path) for walk, path in zip(walks, paths, strict=True) if not path.exists()]
    kept = len(walks) - len(missing)
    if kept:
        log(f"{kept} of {len(walks)} walks are on disk")
    folder.mkdir(parents=True, exist_ok=True)
    if missing:
        parts = contender.forecast([walk for walk, _ in missing])
        for (walk, path), rows in zip(missing, parts, strict=True):
            there = [one.where_forecast() for one in rows]
            write_rows(to_table(there), path)
            hours = sum(len(one.hour) for one in there)
            log(f"walk {walks.index(walk) + 1} of {len(walks)}: {walk}, {hours:,} hours of {len(rows)} respondents")
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return kept, table.sort_by([("unique_id", "ascending"), ("ds", "ascending")])
