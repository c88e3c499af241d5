"""Read a training from its run folder, and forecasts from the Parquet table of `coordinator forecast --table`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from coordinator.report.model import Absent, Day, Floats, Forecasts, Training
from ingest.calendar import calendar_of
from ingest.columns import as_numpy, open_parquet
from ingest.errors import VerificationError, quoted
from ingest.metrics import number_of, read_metrics

QUANTILES = ("q0.025", "q0.1", "q0.25", "q0.5", "q0.75", "q0.9", "q0.975")
MEDIAN, LOW80, HIGH80 = "q0.5", "q0.1", "q0.9"


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file does not exist.

    Raises:
        VerificationError: The file can't be read.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise VerificationError(f"{path} can't be read: {error}") from error


def metric_lines(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of metrics that have a number under `key`, and how many were skipped. See `ingest.metrics`.

    Raises:
        VerificationError: The file can't be read.
    """
    try:
        return read_metrics(path, key)
    except OSError as error:
        raise VerificationError(f"{path} can't be read: {error}") from error


def curve(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[Floats, Floats]:
    """Return two values of the JSON lines that have both as numbers."""
    pairs = [
        (a, b) for line in lines if (a := number_of(line, x)) is not None and (b := number_of(line, y)) is not None
    ]
    return np.array([a for a, _ in pairs], float), np.array([b for _, b in pairs], float)


def training(data_dir: Path) -> Training | Absent:
    """Return the training in DATA/train.

    Raises:
        VerificationError: A file is damaged, such that nothing of it can be read.
    """
    run = data_dir / "train"
    lines, skipped = metric_lines(run / "metrics.jsonl", "step")
    if not lines and skipped:
        raise VerificationError(f"{run / 'metrics.jsonl'} can't be read: none of its {skipped} lines has a step")
    if not lines:
        return Absent("the forecaster was not trained here", f"coordinator start --train --data {quoted(data_dir)}")
    validated = [line for line in lines if "skill" in line]
    skills = [{**own, "step": line["step"]} for line in validated if isinstance(own := line.get("skills"), dict)]
    names = sorted({name for line in skills for name in line} - {"step"})
    skill = {name: curve(skills, "step", name) for name in names}
    speeds = curve(lines, "step", "tokens_per_s")[1]
    return Training(
        loss=curve(lines, "step", "loss"),
        skill=skill | {"mean": curve(validated, "step", "skill")},
        coverage80=curve(validated, "step", "coverage_80"),
        ranks=tuple(sorted({int(size) for line in lines if (size := number_of(line, "ranks")) is not None})),
        tokens_per_s=float(np.median(speeds)) if len(speeds) else float("nan"),
        result=read_json(run / "result.json"),
        config=read_json(run / "config.json"),
        verified=(run / "proved.json").exists(),
        skipped=skipped,
    )


def forecasts(data_dir: Path) -> Forecasts | Absent:
    """Return chosen days and errors from the table of forecasts.

    Raises:
        VerificationError: The table can't be read.
    """
    result = read_json(data_dir / "train" / "result.json")
    path = _table(data_dir, str(result.get("sha256", "")))
    command = f"coordinator forecast --data {quoted(data_dir)} --table {quoted(data_dir / 'forecasts.parquet')}"
    if path is None:
        if not result:
            return Absent("no forecaster was trained here", f"coordinator start --train --data {quoted(data_dir)}")
        return Absent("forecasts of the trained forecaster were not written to a table", command)
    try:
        with open_parquet(path) as file:
            table = file.read(["respondent", "hour", "demand", "operator", *QUANTILES])
    except (OSError, pa.ArrowException) as error:
        raise VerificationError(f"{path} can't be read: {error}; remove it, then `{command}`") from error
    names = table["respondent"].combine_chunks()
    codes, coded = names.dictionary.to_pylist(), as_numpy(names.indices)
    columns = {
        name: as_numpy(table[name].combine_chunks()).astype(float) for name in ("demand", "operator", *QUANTILES)
    }
    hour = as_numpy(table["hour"].combine_chunks())
    year = int(hour.max().astype("datetime64[h]").astype("datetime64[Y]").astype(int)) + 1970
    days: list[Day] = []
    mae: dict[str, tuple[float, float]] = {}
    inside: dict[str, float] = {}
    for code, respondent in sorted(enumerate(codes), key=lambda one: one[1]):
        own = np.flatnonzero(coded == code)
        local = calendar_of(respondent, int(hour[own[0]]), int(hour[own[-1]]))
        keep = local.year == year
        mine = {name: values[own][keep] for name, values in columns.items()}
        both = np.isfinite(mine["demand"] + mine["operator"] + mine[MEDIAN])
        if not both.any():
            continue
        truth = mine["demand"][both]
        errors = [float(np.abs(mine[name][both] - truth).mean()) for name in (MEDIAN, "operator")]
        mae[respondent] = errors[0], errors[1]
        inside[respondent] = float(((truth >= mine[LOW80][both]) & (truth <= mine[HIGH80][both])).mean())
        days += chosen_days(respondent, local.day[keep], mine)
    if not days:
        return Absent(f"{path} has no hour with forecast, operators' forecast and demand in {year}", command)
    config = read_json(data_dir / "train" / "config.json")
    trained = str(config.get("train", "")), str(config.get("validate", ""))
    return Forecasts(str(path.relative_to(data_dir)), year, tuple(days), mae, inside, trained)


def _table(data_dir: Path, weights: str) -> Path | None:
    """Return the table of these weights, else the one that the user wrote, else None."""
    own = data_dir / "control" / f"forecasts-{weights[:16]}.parquet"
    return next((path for path in (own, data_dir / "forecasts.parquet") if path.exists()), None)


def chosen_days(respondent: str, day: Floats, columns: Mapping[str, Floats]) -> list[Day]:
    """Choose three complete local days of a respondent: highest demand, median error and largest error of the forecaster.

    Args:
        respondent: Its code.
        day: Days since 1970-01-01, local, `[hour]`.
        columns: Forecasts, demand and the operators' forecast, MWh, `[hour]`.

    Returns:
        The days, each with the reason for its choice; none without a complete day.
    """
    error = np.abs(columns[MEDIAN] - columns["demand"])
    known = np.isfinite(error + columns["operator"])
    whole = [int(one) for one in np.unique(day) if known[day == one].all() and (day == one).sum() >= 23]
    if not whole:
        return []
    means = {one: float(error[day == one].mean()) for one in whole}
    by_error = sorted(whole, key=lambda one: (means[one], one))
    peak = max(whole, key=lambda one: (float(columns["demand"][day == one].max()), -one))
    picked = {"highest demand": peak, "median error": by_error[len(by_error) // 2], "largest error": by_error[-1]}
    found = []
    for reason, one in picked.items():
        own = day == one
        found.append(
            Day(
                respondent,
                str(np.datetime64(one, "D")),
                reason,
                np.arange(1, own.sum() + 1, dtype=float),
                {name: columns[name][own] for name in QUANTILES},
                columns["operator"][own],
                columns["demand"][own],
            )
        )
    return found
