"""Load daily values: float64 [day, feature] arrays with a validity mask, from the files that `ingest.daily` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.arguments import names_of, period_of
from ingest.array_types import Bools, Floats, Int8s, Int32s
from ingest.catalog import variable_near
from ingest.columns import hour_number, open_parquet
from ingest.daily import path_of, respondents_in
from ingest.errors import UsageError, VerificationError, quoted
from ingest.loader import canonical_variables
from ingest.models import DAY
from ingest.periods import Moment
from ingest.quality import MEASURED, REASONS, UNASKED
from ingest.settings import parse_codes
from ingest.snapshot import DAILY, read_whole
from ingest.zones import midnights, zone_of


@dataclass(frozen=True)
class DailyArrays:
    """Daily values of respondents. A value outside `mask` was not measured, and is NaN."""

    values: Floats  # [day, feature] MWh in the local day
    mask: Bools  # [day, feature]
    reason: Int8s  # [day, feature] index into `ingest.quality.REASONS`
    days: NDArray[np.datetime64]  # [day] datetime64[D], local dates
    names: tuple[str, ...]  # "<respondent>.<variable>", respondents outermost
    zones: tuple[str, ...]  # [feature] IANA zone in which a day begins and ends
    hours: Int8s  # [day, feature] hours of the local day: 23, 24 or 25


@dataclass(frozen=True)
class DailyColumns:
    """The rows of one respondent: variable → days since 1970-01-01, MWh (NaN: none) and reason codes, each [row]."""

    rows: dict[str, tuple[Int32s, Floats, Int8s]]


def load_daily(
    data_dir: Path | str,
    respondents: Sequence[str] | str,
    variables: Sequence[str] | str,
    start: Moment,
    end: Moment,
) -> DailyArrays:
    """Load every local day of a period, of respondents × variables.

    A variable that a respondent has in only some of the years is masked as unasked in the others. All values are of one finished
    run, also while another one updates the folder. A damaged file raises VerificationError.

    Args:
        data_dir: data folder.
        respondents: EIA codes in either case, or one of them.
        variables: as of `ingest.loader.load_series`, or one of them.
        start: first day: `YYYY-MM-DD`, `YYYY-MM`, `YYYY`, a date, datetime, Timestamp or datetime64.
        end: last day, inclusive, in the same forms.

    Returns:
        Arrays [day, feature], MWh in the local day, with a mask.

    Raises:
        UsageError: a respondent or variable has no daily values on disk, or an argument is malformed.
    """
    codes = parse_codes(names_of("respondents", respondents, '"PACW"'))
    wanted = canonical_variables(names_of("variables", variables, '"D"'))
    first, last = (hour_number(bound) // DAY for bound in period_of(start, end))
    if first > last:
        raise UsageError(f"period {start} to {end} ends before it starts: swap the two")
    names = tuple(f"{code}.{variable}" for code in codes for variable in wanted)
    values = np.full((last - first + 1, len(names)), np.nan)
    reason = np.full(values.shape, UNASKED, np.int8)

    def read(series: Path) -> dict[str, DailyColumns]:
        return {code: read_daily(Path(data_dir), series.parent / DAILY, code) for code in codes}

    found = read_whole(Path(data_dir), read)
    for column, (code, variable) in enumerate((code, variable) for code in codes for variable in wanted):
        known = found[code].rows
        if variable not in known:
            raise UsageError(
                f"{code} has no daily {variable}; it has {', '.join(known)}{variable_near([variable], list(known))}"
            )
        days, own, codes_of = known[variable]
        inside = (days >= first) & (days <= last)
        values[days[inside] - first, column] = own[inside]
        reason[days[inside] - first, column] = codes_of[inside]
    zones = tuple(zone_of(code) for code in codes for _ in wanted)
    hours = np.stack([np.diff(midnights(zone, first, last)) for zone in zones], axis=1).astype(np.int8)
    dates = np.arange(first, last + 1).astype("datetime64[D]")
    return DailyArrays(values, np.isin(reason, MEASURED), reason, dates, names, zones, hours)


def read_daily(data_dir: Path, folder: Path, respondent: str) -> DailyColumns:
    """Return the daily values of a respondent.

    Args:
        data_dir: data folder, for messages.
        folder: of daily values.
        respondent: EIA code.

    Raises:
        UsageError: there are none.
        VerificationError: the file can't be read.
    """
    path = path_of(folder, respondent)
    if not path.is_file():
        have = ", ".join(respondents_in(folder)) or "none"
        raise UsageError(
            f"no daily values of {respondent} in {data_dir}: there are {have}; run `coordinator start --extract --data "
            f"{quoted(data_dir)} --respondents {respondent} --routes daily` to make them"
        )
    try:
        with open_parquet(path) as file:
            table = file.read(["day", "variable", "value", "reason"])
    except (OSError, pa.ArrowException) as error:
        raise VerificationError(f"can't read {path}: {error}; run `coordinator verify`") from error
    days = table["day"].cast(pa.int32()).to_numpy()
    value = table["value"].to_numpy()
    variable, reason = (table[name].combine_chunks() for name in ("variable", "reason"))
    lookup = np.array([REASONS.index(name) for name in reason.dictionary.to_pylist()], np.int8)
    code, at = lookup[reason.indices.to_numpy()], variable.indices.to_numpy()
    rows = {}
    for number, name in enumerate(variable.dictionary.to_pylist()):
        own = at == number
        rows[name] = days[own], value[own], code[own]
    return DailyColumns(rows)
