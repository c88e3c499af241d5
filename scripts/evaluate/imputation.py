"""Judge the imputation of demand on hours that are hidden as hours really go missing.

    uv run python -m scripts.evaluate.imputation score --year 2019
    uv run python -m scripts.evaluate.imputation docs    # rewrite the tables of docs/reference/imputation.md

Reads ../shared/data: labelled demand, and recorded forecasts until 2019. The hours that each authority's demand and forecast lack (in runs of up to a
week) are moved by a fixed number of weeks, the same for all, so that lengths, coincidences, time of day and day of the week stay; what they hide is
estimated from the rest. Each line of docs/benchmarks/imputation.jsonl is one series.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ingest.array_types import Bools, Floats
from ingest.build_series import year_hours
from ingest.impute import LONGEST, Load, departures, impute, neighbours_of
from ingest.quality import OUTLIER
from scripts.bench.common import BENCHMARKS, ROOT, append, markdown_table, parser, read_lines, rewrite_section
from scripts.evaluate.outliers import LABELS, judge_years, labelled, recorded

OUT, DOCS = BENCHMARKS / "imputation.jsonl", ROOT / "docs" / "reference" / "imputation.md"
SHIFTS = (168 * 6, 168 * 24, 168 * 42)  # hours: whole weeks, since most gaps are a local day
LARGE = 1000.0  # MWh: median demand of an authority over 1 GW
LENGTHS = (6, 24, 72, LONGEST)  # hours: classes of the table
CHOSEN = (2018, 2021)


def year_loads(year: int) -> tuple[dict[str, Load], dict[str, Bools], dict[str, Bools]]:
    """Return the loads of a year by name, with `OKAY` hours alone, and where demand and forecast are missing."""
    first, hours = year_hours(year)
    loads: dict[str, Load] = {}
    absent: dict[str, Bools] = {}
    absent_forecast: dict[str, Bools] = {}
    for name, at, demand, category in labelled(range(year, year + 1)):
        whole = np.full(hours, np.nan)
        okay = category == "OKAY"
        whole[at[okay] - first] = demand[okay]
        absent[name] = np.zeros(hours, np.bool_)
        absent[name][at[category == "MISSING"] - first] = True
        own, columns = recorded(name)
        forecast: Floats | None = None
        within = (own >= first) & (own < first + hours)
        if within.any():
            columns = {code: values[within] for code, values in columns.items()}
            masked = judge_years(own[within], columns)["DF"] == OUTLIER
            forecast = np.full(hours, np.nan)
            forecast[own[within] - first] = np.where(masked, np.nan, columns["DF"])
        absent_forecast[name] = np.isnan(forecast) if forecast is not None else np.zeros(hours, np.bool_)
        loads[name] = Load(whole, forecast)
    return loads, absent, absent_forecast


def real_gaps(absent: Bools) -> Bools:
    """Return the missing hours in runs of at most `LONGEST` that neither begin nor end the year."""
    gaps = absent.copy()
    for start, stop in _runs(absent):
        if stop - start > LONGEST or start == 0 or stop == absent.size:
            gaps[start:stop] = False
    return gaps


def _runs(hours: Bools) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hours.view(np.int8), [0]]))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def score(year: int) -> list[dict[str, Any]]:
    """Return a line for each series of a year: hidden hours, error, share inside the interval, by length of the gap."""
    loads, absent, absent_forecast = year_loads(year)
    full = {name: load for name, load in loads.items() if np.isfinite(load.demand).mean() > 0.5}
    found: dict[str, list[tuple[int, float, bool]]] = {name: [] for name in full}
    unmet = dict.fromkeys(full, 0)
    gaps = {name: real_gaps(absent[name]) for name in full}
    for shift in SHIFTS:
        hidden = {name: np.roll(gaps[name], shift) for name in full}
        seen = {}
        for name, load in full.items():
            forecast = load.forecast
            if forecast is not None:
                forecast = np.where(np.roll(gaps[name] & absent_forecast[name], shift), np.nan, forecast)
            seen[name] = Load(np.where(hidden[name], np.nan, load.demand), forecast)
        all_departures = {name: departures(load) for name, load in seen.items()}
        for name, load in full.items():
            wanted = hidden[name] & np.isfinite(load.demand)
            if not wanted.any():
                continue
            others = {other: seen[other].demand for other in neighbours_of(name, all_departures)}
            estimate = impute(seen[name], others, wanted)
            for start, stop in _runs(np.isnan(seen[name].demand)):
                for hour in range(start, stop):
                    if not wanted[hour]:
                        continue
                    if np.isnan(estimate.value[hour]):
                        unmet[name] += 1
                        continue
                    truth = load.demand[hour]
                    inside = bool(estimate.low[hour] <= truth <= estimate.high[hour])
                    found[name].append((stop - start, abs(estimate.value[hour] / truth - 1), inside))
    lines = []
    for name, cells in found.items():
        line: dict[str, Any] = {
            "event": "series",
            "year": year,
            "series": name,
            "area": "-" in name,
            "median_mwh": round(float(np.nanmedian(full[name].demand)), 1),
            "forecast": full[name].forecast is not None,
            "hours": len(cells),
            "without": unmet[name],
        }
        if cells:
            lengths, errors, held = (np.array(column) for column in zip(*cells, strict=True))
            line |= {"mape": round(float(errors.mean()), 6), "median_ape": round(float(np.median(errors)), 6)}
            line |= {"covered": round(float(held.mean()), 4), "by_length": _by_length(lengths, errors)}
        lines.append(line)
    return lines


def _by_length(lengths: Floats, errors: Floats) -> dict[str, list[float]]:
    """Return hours and error by class of gap length."""
    where = np.searchsorted(LENGTHS, lengths)
    return {
        str(size): [int((where == i).sum()), round(float(errors[where == i].mean()), 6)]
        for i, size in enumerate(LENGTHS)
        if (where == i).any()
    }


def table(lines: list[dict[str, Any]], years: tuple[int, ...]) -> str:
    """Return a row for each year and kind of series."""
    rows = []
    for year in years:
        for label, area in (("authorities over 1 GW", False), ("sub-areas", True)):
            own = [
                line
                for line in lines
                if line["year"] == year
                and line["area"] == area
                and line["hours"]
                and (area or line["median_mwh"] > LARGE)
            ]
            if not own:
                continue
            hours = sum(line["hours"] for line in own)
            by_length = []
            for size in map(str, LENGTHS):
                errors = [line["by_length"][size][1] for line in own if size in line["by_length"]]
                by_length.append(f"{np.median(errors):.2%}" if errors else "–")
            covered = sum(line["covered"] * line["hours"] for line in own) / hours
            rows.append(
                [
                    str(year),
                    label,
                    str(len(own)),
                    f"{hours:,}",
                    f"{np.median([line['mape'] for line in own]):.2%}",
                    f"{np.median([line['median_ape'] for line in own]):.2%}",
                    *by_length,
                    f"{covered:.1%}",
                    str(sum(line["without"] for line in own)),
                ]
            )
    header = ["year", "series", "number", "hidden hours", "MAPE, median series", "median error"]
    header += [f"gaps to {size} h" for size in LENGTHS] + ["inside the interval", "without estimate"]
    return markdown_table(header, rows)


def main() -> int:
    """Return the exit code: 1 without recordings."""
    command = parser(__doc__)
    command.add_argument("what", choices=("score", "docs"))
    command.add_argument("--year", type=int, default=CHOSEN[0])
    command.add_argument("--out", type=Path, default=OUT, help="file of JSON lines")
    arguments = command.parse_args()
    if arguments.what == "docs":
        lines = read_lines(arguments.out)
        judged = tuple(sorted({line["year"] for line in lines} - set(CHOSEN)))
        for name, years in (("judged", judged), ("chosen", CHOSEN)):
            begin = f"<!-- {name}: begin (scripts/evaluate/imputation.py docs) -->"
            rewrite_section(DOCS, begin, f"<!-- {name}: end -->", table(lines, years))
        return 0
    if not LABELS.exists():
        print(f"no recordings: {LABELS} is absent", file=sys.stderr)
        return 1
    for line in score(arguments.year):
        append(line, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
