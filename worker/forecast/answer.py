"""One issued forecast as people and programs read it: lines of text, a JSON document, or a file in the judge's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from ingest.array_types import Floats, Int64s
from ingest.columns import hour_text
from ingest.zones import zone_of
from worker.forecast.backtest.rows import WalkRows, to_table, write_rows
from worker.forecast.model.network import MEDIAN, QUANTILES
from worker.forecast.table import OWN_HISTORY, cell, format_table, number


@dataclass(frozen=True)
class Answer:
    """The forecast of one respondent and issue time; arrays are [hour], MWh unless stated."""

    respondent: str
    issue: str  # local time, YYYY-MM-DDTHH
    cutoff: int  # hour number: the last hour whose demand it may use
    model: str  # what made it
    origin: str  # of the series: "synthetic", "recordings" or a server's name
    publication: str
    hours: Int64s  # hour numbers, UTC, hour-ending
    quantiles: Floats  # [hour, level] of QUANTILES; NaN where nothing can be said
    operator: Floats  # DF; NaN where it is not there, or not published at the issue time
    demand: Floats  # NaN where not measured (yet)
    paths: Floats  # [hour, path]
    basis: Sequence[str | None] = ()  # what each hour starts from; of the trained model
    reasons: Sequence[str] = ()  # notes: why hours do not start from DF, and what a reader must know besides
    more: dict[str, Any] = field(default_factory=dict)  # further members of the JSON document

    @property
    def known(self) -> bool:
        """Whether anything is said of any hour."""
        return bool(np.isfinite(self.quantiles[:, MEDIAN]).any())

    def midnight(self, day: date) -> int:
        """Return the number of the hour that ends as a local day begins."""
        begins = datetime.combine(day, datetime.min.time(), ZoneInfo(zone_of(self.respondent)))
        return int(begins.timestamp()) // 3600

    def local(self, hour: int) -> datetime:
        """Return the end of an hour in the respondent's time."""
        return datetime.fromtimestamp(int(hour) * 3600, UTC).astimezone(ZoneInfo(zone_of(self.respondent)))


def to_rows(answer: Answer) -> list[dict[str, Any]]:
    """Return one plain map an hour: MWh, None where there is no value; `local` is the end of the hour with its offset from UTC."""
    difference = answer.quantiles[:, MEDIAN] - answer.operator
    rows = []
    for i, hour in enumerate(answer.hours):
        row: dict[str, Any] = {"period": hour_text(int(hour)), "local": answer.local(hour).isoformat()}
        row |= {f"q{level:g}": number(x) for level, x in zip(QUANTILES, answer.quantiles[i], strict=True)}
        row |= {"operator": number(answer.operator[i]), "difference": number(difference[i])}
        row |= {"demand": number(answer.demand[i])}
        row |= {"reference": answer.basis[i]} if answer.basis else {}
        rows.append(row | ({"paths": [number(x) for x in answer.paths[i]]} if answer.paths.size else {}))
    return rows


def peaks(answer: Answer) -> list[dict[str, Any]]:
    """Return the peak hour of the median and of DF on each local day; MWh, and the rows' times of that hour.

    A day of which an hour is not in the answer, or has no value, has no peak: the hour that lacks may be the highest.
    """
    days = [(answer.local(hour) - timedelta(seconds=1)).date() for hour in answer.hours]
    found = []
    for day in dict.fromkeys(days):
        at = np.array([one == day for one in days])
        midnight, next_one = (answer.midnight(one) for one in (day, day + timedelta(days=1)))
        one: dict[str, Any] = {"day": day.isoformat()}
        for name, values in (("median", answer.quantiles[:, MEDIAN]), ("operator", answer.operator)):
            there = np.flatnonzero(at & np.isfinite(values))
            if len(there) == next_one - midnight:
                top = int(there[np.argmax(values[there])])
                hour = answer.hours[top]
                one[name] = {"value": number(values[top]), "period": hour_text(int(hour))}
                one[name] |= {"local": answer.local(hour).isoformat()}
        found += [one] if "median" in one else []
    return found


def to_document(answer: Answer) -> dict[str, Any]:
    """Return the forecast as a JSON document."""
    head = {"respondent": answer.respondent, "issue": answer.issue, "cutoff": hour_text(answer.cutoff)}
    head |= {"model": answer.model, "origin": answer.origin, "publication": answer.publication}
    more = {"time_zone": zone_of(answer.respondent), **answer.more, "reasons": list(answer.reasons)}
    return {**head, **more, "peaks": peaks(answer), "hours": to_rows(answer)}


def to_text(answer: Answer, columns: int | None) -> str:
    """Return the forecast as lines.

    Args:
        answer: the forecast.
        columns: width of the terminal; None: no limit.
    """
    rows = to_rows(answer)
    lines = [
        f"{answer.respondent}, issued {answer.issue} local by the {answer.model}, MWh; data: {answer.origin}",
        f"hours end at the time given, in UTC and in local time ({zone_of(answer.respondent)})",
        *format_table(rows, columns),
    ]
    if "own history" in answer.basis:
        lines.append(f"{OWN_HISTORY} starts from the authority's own history, not from DF")
    lines += [_peak_line(one) for one in peaks(answer)]
    lines += [f"note: {reason}" for reason in answer.reasons]
    if answer.paths.size:
        lines += ["", f"{'period':<13}" + "".join(f"{f'path {k + 1}':>9}" for k in range(answer.paths.shape[1]))]
        lines += [f"{row['period']:<13}" + "".join(map(cell, row["paths"])) for row in rows]
    return "\n".join(lines)


def _peak_line(one: dict[str, Any]) -> str:
    parts = [
        f"{name} {one[key]['value']:,.0f} MWh in the hour to {one[key]['local'][11:16]} local"
        for key, name in (("median", "median"), ("operator", "DF"))
        if key in one
    ]
    return f"peak of {one['day']}: {'; '.join(parts)}"


def write_answer(answer: Answer, path: Path) -> None:
    """Write the hours that have a forecast as `unique_id`, `ds`, `cutoff`, `y` and quantiles; Parquet also has the origin in its metadata."""
    cutoffs = np.full(len(answer.hours), answer.cutoff)
    rows = WalkRows(answer.respondent, answer.hours, cutoffs, answer.demand.astype(np.float64), answer.quantiles)
    table = to_table([rows.where_forecast()])
    about = {"origin": answer.origin, "model": answer.model, "issue": f"{answer.issue} local"}
    write_rows(table.replace_schema_metadata({**about, "publication": answer.publication}), path)
