"""Measured hours, and trained policies, from a data folder. The one module of `rl` that imports `ingest`.

The foreknowledge is the operators' day-ahead forecast as it is, less wind and solar of the days before where a respondent has them.
`coordinator start --rollouts` trains on better forecasts (docs/reference/control.md); this is for experiments with other learners.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from ingest.errors import IngestError, quoted
from ingest.loader import available, load_series
from ingest.zones import zone_of
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import load as load_dataset
from rl.env.forecasts import day_ahead
from rl.env.region import WEEK, Array, Region, region
from rl.errors import DataError
from rl.policy import Mlp
from rl.policy import load as load_policy

RENEWABLE = ("NG.WND", "NG.SUN")
KNOWN = range(48, 216, 24)  # hours back: days whose wind and solar are known when a day is planned


def dataset_from(
    data_dir: Path | str, respondents: Sequence[str], start: str = "", end: str = "", horizon: int = 24
) -> Dataset:
    """Build a dataset of respondents with series on disk.

    The reference peak of each is its highest net load of all whole years that all of them have, so it is the same for any period.

    Args:
        data_dir: Data folder of an extraction.
        respondents: EIA codes.
        start: First hour, `YYYY-MM-DDTHH`; "": a week after the first of these years begins.
        end: The hour after the last; "": the end of the last of these years.
        horizon: Hours of forecast in each observation.

    Raises:
        DataError: no respondent is named, or the folder does not have these hours.
    """
    names = [name.upper() for name in ([respondents] if isinstance(respondents, str) else respondents)]
    if not names:
        raise DataError('respondents: none is named; give a list, e.g. ["ERCO"]')
    try:
        years = set.intersection(*(set(available(data_dir, name).years) for name in names))
        if not years:
            raise DataError(
                f"{data_dir} has no year of {', '.join(names)} together: `coordinator start --extract --respondents "
                f"{','.join(names)} --data {quoted(data_dir)}` makes some"
            )
        first, last = min(years), max(years)
        loaded = [_load(data_dir, name, first, last) for name in names]
    except IngestError as error:
        raise DataError(str(error)) from error
    begin = start or str(np.datetime64(f"{first}-01-01T00", "h") + np.timedelta64(WEEK, "h"))
    forecasts = [day_ahead(one, issued, horizon) for one, issued in loaded]
    return build_dataset([one for one, _ in loaded], forecasts, begin, end or f"{last + 1}-01-01T00")


def measured(data_dir: Path | str, respondent: str) -> tuple[Region, Array]:
    """Return a respondent's hours and its operator's day-ahead forecast of the net load, reference peaks, [hour]; NaN where missing.

    They are those of `dataset_from`, for forecasts of your own: `rl.env.forecasts` and `rl.env.dataset.build_dataset` take them.

    Args:
        data_dir: Data folder of an extraction.
        respondent: EIA code.

    Raises:
        DataError: the folder does not have it.
    """
    name = respondent.upper()
    try:
        years = available(data_dir, name).years
        return _load(data_dir, name, min(years), max(years))
    except IngestError as error:
        raise DataError(str(error)) from error


def trained(data_dir: Path | str, split: str = "test") -> tuple[Mlp, Dataset]:
    """Return the policy that `coordinator start --rollouts` trained in a folder, and the hours of its test year.

    The policy needs the observations of such a dataset: `GridControl(data=dataset)`, `rl.evaluation.score.rollout`.

    Args:
        data_dir: Data folder of the training.
        split: "test", "validate" or "train".

    Raises:
        DataError: no training ended there, or there is no such split.
    """
    folder = Path(data_dir) / "control"
    try:
        tables = json.loads((folder / "tables.json").read_bytes())["tables"]
        policy = load_policy(folder / "policy.npz")
    except (OSError, DataError) as error:
        raise DataError(
            f"{folder} has no trained policy ({error}): run `coordinator start --rollouts --data {quoted(data_dir)}`"
        ) from error
    if split not in tables:
        raise DataError(f"split {split!r}: choose {' or '.join(tables)}")
    return policy, load_dataset(folder, tables[split])


def _load(data_dir: Path | str, name: str, first: int, last: int) -> tuple[Region, Array]:
    variables = available(data_dir, name).variables
    less = [variable for variable in RENEWABLE if variable in variables]
    wanted = ["D", *(["DF"] if "DF" in variables else []), *less]
    series = load_series(data_dir, [name], wanted, f"{first}-01-01T00", f"{last}-12-31T23")
    values = np.where(series.mask, series.values, np.nan).astype(float)
    parts = dict(zip(wanted, values.T, strict=True))
    offset = ZoneInfo(zone_of(name)).utcoffset(datetime(2021, 1, 1))
    assert offset is not None
    one = region(
        name,
        series.hours.astype("datetime64[h]"),
        parts["D"],
        offset=round(offset.total_seconds() / 3600),
        reference_end=f"{last + 1}-01-01T00",
        wind=parts.get("NG.WND"),
        solar=parts.get("NG.SUN"),
    )
    issued = parts.get("DF", np.full(len(values), np.nan))
    renewable = sum((parts[variable] for variable in less), np.zeros(len(values)))
    return one, (issued - _mean_of_days(renewable)) / one.peak


def _mean_of_days(values: Array) -> Array:
    """Return the mean of the same hour over the days `KNOWN` before, [hour]; NaN where none of them was measured."""
    days = np.stack([np.concatenate([np.full(back, np.nan), values[:-back]]) for back in KNOWN])
    known = np.isfinite(days).sum(axis=0)
    return np.divide(np.nansum(days, axis=0), known, out=np.full(len(values), np.nan), where=known > 0)
