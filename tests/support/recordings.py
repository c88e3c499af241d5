"""Real series of ../shared/data as arrays. Where the folder is absent, tests that need it are skipped with the reason."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RESPONDENTS = ("PACW", "ERCO", "CAL", "TEX", "MISO", "CISO")
needs_recordings = pytest.mark.skipif(not (DATA / "eia-demand").is_dir(), reason=f"no recordings: {DATA} is absent")


@cache
def demand(respondent: str, vintage: str = "2020_Oct") -> tuple[tuple[str, ...], dict[str, NDArray[np.float64]]]:
    """Return hours (`YYYY-MM-DDTHH`) and {"D", "DF"}: NaN for EMPTY, inf for MISSING."""
    with (DATA / "eia-demand" / vintage / f"{respondent}.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    words = {"EMPTY": np.nan, "MISSING": np.inf}
    columns = {
        code: np.array([words[row[i]] if row[i] in words else float(row[i]) for row in rows])
        for i, code in ((1, "D"), (2, "DF"))
    }
    return tuple(f"{row[0][:10]}T{row[0][11:13]}" for row in rows), columns


def year_of(respondent: str, year: int, vintage: str = "2020_Oct") -> tuple[str, str, dict[str, NDArray[np.float64]]]:
    """Return first hour, last hour and columns of one year of `demand`."""
    hours, columns = demand(respondent, vintage)
    own = [i for i, hour in enumerate(hours) if hour.startswith(str(year))]
    part = slice(own[0], own[-1] + 1)
    return hours[own[0]], hours[own[-1]], {code: column[part] for code, column in columns.items()}
