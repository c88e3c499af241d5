"""Read the verdicts on backtests, which `coordinator backtest` keeps in the data folder."""

from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.report.collect.training import read_json
from coordinator.report.model import Absent, Against, Backtest, Backtests
from ingest.errors import VerificationError, quoted

INTERVAL = "80%"


def backtests(data_dir: Path) -> Backtests | Absent:
    """Return the backtests in DATA/backtest.

    Raises:
        VerificationError: A verdict can't be read.
    """
    paths = sorted((data_dir / "backtest").glob("*.json"))
    if not paths:
        command = f"coordinator backtest --from YYYY-MM --to YYYY-MM --data {quoted(data_dir)}"
        return Absent("nothing was backtested here", command)
    return Backtests(tuple(_backtest(path) for path in paths))


def _backtest(path: Path) -> Backtest:
    verdict = read_json(path)
    try:
        respondents, mean = verdict["respondents"], verdict["mean"]
        months = mean["parts"]["month"]
        return Backtest(
            model=path.stem,
            first=verdict["period"][0],
            last=verdict["period"][1],
            rivals=tuple(mean["over"]),
            rows={
                name: (
                    {rival: Against(_number(one["skill"]), _p(one["p"])) for rival, one in line["over"].items()},
                    _number(line["mae"]),
                    _covered(line),
                )
                for name, line in respondents.items()
            },
            mean={rival: _counted(one) for rival, one in mean["over"].items()},
            horizons={label: _counted(one) for label, one in mean["parts"]["horizon"].items()},
            months=(
                np.array(list(months), "datetime64[M]").astype(float),
                np.array([_number(one["skill"]) for one in months.values()]),
                np.array([_covered(one) for one in months.values()]),
            ),
            peeks=bool(verdict["peeks"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise VerificationError(f"{path} can't be read: {error!r}") from error


def _number(value: float | None) -> float:
    return nan if value is None else float(value)


def _covered(line: Mapping[str, Any]) -> float:
    return _number(line.get("coverage", {}).get(INTERVAL))


def _counted(one: Mapping[str, Any]) -> Against:
    return Against(_number(one["skill"]), f"{one['better']} of {one['of']}")


def _p(value: float | None) -> str:
    return "" if value is None else "p < 0.0001" if value < 1e-4 else f"p {value:.2g}"
