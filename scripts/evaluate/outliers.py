"""Judge the outlier rule on hours with a published judgement, and list what it changes on recorded series.

    uv run python -m scripts.evaluate.outliers chosen    # 2015–2021: the years on which thresholds are chosen
    uv run python -m scripts.evaluate.outliers judged    # 2022 and 2023 together, never used for a choice
    uv run python -m scripts.evaluate.outliers changes --earlier FILE  # FILE: an earlier ingest/quality.py
    uv run python -m scripts.evaluate.outliers docs      # rewrite the tables of docs/reference/outliers.md

Reads ../shared/data: the labels of Ruggles et al. (2020) for demand, and recorded forecasts, which end in 2019. Each line of
docs/benchmarks/outliers.jsonl is one class of hours, or one recorded series that changes.
"""

import argparse
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

from ingest.array_types import Array, Bools, Floats
from ingest.build_series import year_hours
from ingest.columns import hour_text
from ingest.quality import OUTLIER, SUSPECT, judge
from scripts.bench.common import BENCHMARKS, ROOT, append, markdown_table, parser, read_lines, rewrite_section

DATA = ROOT.parent / "shared" / "data" / "eia-demand"
LABELS = DATA / "labels" / "2015_2023.parquet"
OUT, DOCS = BENCHMARKS / "outliers.jsonl", ROOT / "docs" / "reference" / "outliers.md"
CHOSEN, WITH_FORECAST, JUDGED = range(2015, 2022), range(2015, 2020), range(2022, 2024)
LONG_RUN, SHORT_RUN = "IDENTICAL_RUN, 12 hours and more", "IDENTICAL_RUN, under 12 hours"
LONG = 12  # labelled hours
TARGETS = {LONG_RUN: 0.95, "ANOMALOUS_REGION": 0.8, "GLOBAL_DEM": 0.9, "NEG_OR_ZERO": 0.9}
TARGETS |= dict.fromkeys(("DELTA", "LOCAL_DEM_UP", "LOCAL_DEM_DOWN"), 0.6)
MIN_HOURS = 30  # classes with fewer are listed, not scored
OKAY_MASKED = 1 / 20_000


def labelled(years: range) -> Iterator[tuple[str, Array, Floats, Array]]:
    """Return respondent, hour numbers, demand and category of each labelled series, in the order of time."""
    first, stop = year_hours(years[0])[0], sum(year_hours(years[-1]))
    within = [("hour", ">=", pd.Timestamp(first, unit="h")), ("hour", "<", pd.Timestamp(stop, unit="h"))]
    table = pd.read_parquet(LABELS, columns=["respondent", "hour", "demand", "category"], filters=within)
    table = table.assign(hour=table["hour"].to_numpy("datetime64[h]").astype(np.int64))
    for respondent, own in table.groupby("respondent", observed=True):
        ordered = own.sort_values("hour")
        category = ordered["category"].astype(object).to_numpy()
        yield str(respondent), ordered["hour"].to_numpy(), ordered["demand"].to_numpy(float), category


def recorded(respondent: str) -> tuple[Array, dict[str, Floats]]:
    """Return hour numbers, and demand and forecast of a recorded series; no hour where there is no recording."""
    paths = [path for folder in ("2020_Oct", "2020_Oct_more") if (path := DATA / folder / f"{respondent}.csv").exists()]
    if not paths:
        return np.zeros(0, np.int64), {}
    table = pd.read_csv(paths[0], dtype=str)
    hours = table["date_time"].str[:13].to_numpy(str).astype("datetime64[h]").astype(np.int64)
    names = (("D", "demand (MW)"), ("DF", "forecast demand (MW)"))
    return hours, {code: pd.to_numeric(table[name], errors="coerce").to_numpy(float) for code, name in names}


def judge_years(hours: Array, columns: dict[str, Floats]) -> dict[str, Array]:
    """Return the codes of a series of several years, judged year by year as a build does."""
    codes = {name: np.zeros(hours.size, np.int8) for name in columns}
    years = hours.astype("datetime64[h]").astype("datetime64[Y]").astype(int) + 1970
    for year in np.unique(years):
        first, count = year_hours(int(year))
        at = np.flatnonzero(years == year)
        whole: dict[str, Floats] = {name: np.full(count, np.nan) for name in columns}
        for name, values in columns.items():
            whole[name][hours[at] - first] = values[at]
        for name, found in judge(whole).items():
            codes[name][at] = found[hours[at] - first]
    return codes


def classes(hours: Array, category: Array) -> Array:
    """Return the categories, with runs of equal values split by their length."""
    named = category.copy()
    equal = category == "IDENTICAL_RUN"
    named[equal] = SHORT_RUN
    edges = np.flatnonzero(np.diff(np.concatenate([[0], equal.astype(np.int8), [0]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        for part in np.split(np.arange(start, stop), np.flatnonzero(np.diff(hours[start:stop]) != 1) + 1):
            if part.size >= LONG:
                named[part] = LONG_RUN
    return named


def score(period: str, years: range, *, forecast: bool) -> list[dict[str, Any]]:
    """Return the counts by class: labelled hours, masked, suspect."""
    total: dict[str, list[int]] = {}
    for respondent, hours, demand, category in labelled(years):
        columns: dict[str, Floats] = {"D": demand}
        if forecast:
            own, known = recorded(respondent)
            if own.size:
                columns["DF"] = np.asarray(pd.Series(known["DF"], own).reindex(hours), np.float64)
        codes = judge_years(hours, columns)["D"]
        named = classes(hours, category)
        for name in np.unique(named[category != "MISSING"].astype(str)):
            within = named == name
            counts = total.setdefault(str(name), [0, 0, 0])
            for i, found in enumerate((within, within & (codes == OUTLIER), within & (codes == SUSPECT))):
                counts[i] += int(np.count_nonzero(found))
    return [
        {"event": "class", "period": period, "class": name, "hours": n, "masked": masked, "suspect": suspect}
        for name, (n, masked, suspect) in sorted(total.items())
    ]


def changes(earlier: Path) -> Iterator[dict[str, Any]]:
    """Return a line for each recorded series on which an earlier rule masks other hours, or the present one flags some."""
    before = runpy.run_path(str(earlier))["outliers"]
    for path in sorted(
        [*(DATA / "2020_Oct").glob("*.csv"), *(DATA / "2020_Oct_more").glob("*.csv")], key=lambda one: one.stem
    ):
        hours, columns = recorded(path.stem)
        codes = judge_years(hours, columns)
        years = hours.astype("datetime64[h]").astype("datetime64[Y]").astype(int)
        for name in columns:
            old = np.concatenate(
                [
                    before({code: values[years == year] for code, values in columns.items()})[name]
                    for year in np.unique(years)
                ]
            )
            new = codes[name] == OUTLIER
            line = {
                "event": "change",
                "respondent": path.stem,
                "variable": name,
                "values": int(np.count_nonzero(~np.isnan(columns[name]))),
                "before": int(old.sum()),
                "masked": int(new.sum()),
                "no_longer": spans(hours, old & ~new),
                "newly": spans(hours, new & ~old),
                "suspect": int(np.count_nonzero(codes[name] == SUSPECT)),
            }
            if line["no_longer"] or line["newly"] or line["suspect"]:
                yield line


def spans(hours: Array, found: Bools) -> list[list[Any]]:
    """Return runs of hours as [first hour, number of hours]."""
    at = hours[found]
    starts = np.flatnonzero(np.diff(at, prepend=-2) != 1)
    return [[hour_text(int(part[0])), int(part.size)] for part in np.split(at, starts)[1:]]


def bounds(count: int, hours: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Clopper and Pearson."""
    low = float(beta.ppf(0.025, count, hours - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, hours - count)) if count < hours else 1.0


def table(lines: Sequence[dict[str, Any]], period: str) -> str:
    """Return the table of one period."""
    rows = []
    for line in (line for line in lines if line["event"] == "class" and line["period"] == period):
        name, hours, masked, suspect = line["class"], line["hours"], line["masked"], line["suspect"]
        if name == "OKAY":
            share, target = masked / hours, f"at most {OKAY_MASKED:.3%} masked"
            low, high = bounds(masked, hours)
            verdict = "held" if share <= OKAY_MASKED else "missed"
            text = f"masked {share:.4%} ({low:.4%} … {high:.4%})"
        else:
            share = (masked + suspect) / hours
            low, high = bounds(masked + suspect, hours)
            text = f"{share:.1%} ({low:.1%} … {high:.1%})"
            target = f"{TARGETS[name]:.0%}" if name in TARGETS else ""
            verdict = ("held" if share >= TARGETS[name] else "missed") if target else ""
            if hours < MIN_HOURS:
                text, verdict = "under 30 hours", ""
        rows.append([name, f"{hours:,}", f"{masked:,}", f"{suspect:,}", text, target, verdict])
    return markdown_table(["class", "hours", "masked", "suspect", "marked (95 % bounds)", "target", ""], rows)


def change_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a row for each changed recorded series."""
    rows = [
        [
            line["respondent"],
            line["variable"],
            *(f"{line[key]:,}" for key in ("values", "before", "masked")),
            _listed(line["no_longer"]),
            _listed(line["newly"]),
            f"{line['suspect']:,}",
        ]
        for line in lines
        if line["event"] == "change"
    ]
    header = [
        "respondent",
        "variable",
        "values",
        "masked before",
        "masked",
        "no longer masked",
        "newly masked",
        "suspect",
    ]
    return markdown_table(header, rows)


def _listed(found: list[list[Any]]) -> str:
    """Return the number of hours, and the first hour of the longest run."""
    if not found:
        return "0"
    longest = max(found, key=lambda one: one[1])
    return f"{sum(count for _, count in found):,} (longest: {longest[1]} from {longest[0]})"


def main() -> int:
    """Return the exit code: 1 without recordings."""
    command = parser(__doc__)
    command.add_argument("what", choices=("chosen", "judged", "changes", "docs"))
    command.add_argument("--earlier", type=Path, help="an earlier ingest/quality.py")
    command.add_argument("--out", type=Path, default=OUT, help="file of JSON lines")
    arguments: argparse.Namespace = command.parse_args()
    if arguments.what == "docs":
        lines = read_lines(arguments.out)
        for name, text in (
            ("judged", table(lines, "2022-2023")),
            ("chosen", table(lines, "2015-2021")),
            ("without", table(lines, "2015-2019 without DF")),
            ("with", table(lines, "2015-2019 with DF")),
            ("changes", change_table(lines)),
        ):
            rewrite_section(
                DOCS, f"<!-- {name}: begin (scripts/evaluate/outliers.py docs) -->", f"<!-- {name}: end -->", text
            )
        return 0
    if not LABELS.exists():
        print(f"no recordings: {LABELS} is absent", file=sys.stderr)
        return 1
    if arguments.what == "chosen":
        found = score("2015-2021", CHOSEN, forecast=True)
        found += score("2015-2019 with DF", WITH_FORECAST, forecast=True)
        found += score("2015-2019 without DF", WITH_FORECAST, forecast=False)
    elif arguments.what == "judged":
        found = score("2022-2023", JUDGED, forecast=False)
    else:
        found = list(changes(arguments.earlier))
    for line in found:
        append(line, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
