"""Print a Markdown table of the values that the outlier rule masks and flags on the recorded series.

    uv run python -m scripts.evaluate.outlier_table [--write]

Reads ../shared/data (EIA-930 demand and forecasts of 2015–2019, demand and generation of 2019). `--write` puts the tables
between the markers in docs/reference/data.md.
"""

import sys
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ingest.array_types import Floats
from ingest.build_series import year_hours
from ingest.quality import OUTLIER, SUSPECT, judge
from scripts.bench.common import ROOT, parser

DATA = ROOT.parent / "shared" / "data"
DOCUMENT = ROOT / "docs" / "reference" / "data.md"
BEGIN, END = "<!-- outlier_table: begin -->", "<!-- outlier_table: end -->"

Columns = Mapping[str, Floats]


def demand_rows() -> list[tuple[str, str, Columns]]:
    """Return (respondent, year, D and DF) of the recorded demand, vintage of October 2020."""
    rows: list[tuple[str, str, Columns]] = []
    for path in sorted((DATA / "eia-demand" / "2020_Oct").glob("*.csv")):
        table = pd.read_csv(path, dtype=str)
        for year, own in table.groupby(table["date_time"].str[:4]):
            values = {
                code: pd.to_numeric(own[name], errors="coerce").to_numpy(float)
                for code, name in (("D", "demand (MW)"), ("DF", "forecast demand (MW)"))
            }
            rows.append((path.stem, str(year), values))
    return rows


def generation_rows() -> list[tuple[str, str, Columns]]:
    """Return (respondent, "2019", demand and fuels) of the recorded generation."""
    table = pd.read_parquet(DATA / "eia-2019" / "eia_2019_60d.parquet")
    start, hours = year_hours(2019)
    table["hour"] = (table["timestamp"] - pd.Timestamp(0)) // pd.Timedelta(hours=1) - start
    table["variable"] = np.where(table["data_type"] == "demand", "D", "NG." + table["fuel_type"].astype(object))
    rows: list[tuple[str, str, Columns]] = []
    for respondent, own in table.groupby("region"):
        wide = own.pivot_table(index="hour", columns="variable", values="value", aggfunc="first").reindex(range(hours))
        rows.append((str(respondent), "2019", {str(name): wide[name].to_numpy(float) for name in wide}))
    return rows


def table_of(rows: list[tuple[str, str, Columns]]) -> list[str]:
    """Return one line per respondent and variable: values, masked, suspect, share masked, and the ranges kept and masked."""
    kept: dict[tuple[str, str], list[Floats]] = {}
    masked: dict[tuple[str, str], list[Floats]] = {}
    suspect: Counter[tuple[str, str]] = Counter()
    for respondent, _, columns in rows:
        for variable, codes in judge(columns).items():
            values, key = columns[variable], (respondent, variable)
            kept.setdefault(key, []).append(values[(codes != OUTLIER) & ~np.isnan(values)])
            masked.setdefault(key, []).append(values[codes == OUTLIER])
            suspect[key] += int(np.count_nonzero(codes == SUSPECT))
    lines = [
        "| respondent | variable | values | masked | share | suspect | kept, MWh | masked, MWh |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for key, parts in kept.items():
        stay, leave = np.concatenate(parts), np.concatenate(masked[key])
        count = stay.size + leave.size
        lines.append(
            f"| {key[0]} | {key[1]} | {count:,} | {leave.size:,} | {leave.size / count:.4%} | {suspect[key]:,} | {_range(stay)} | "
            f"{_range(leave)} |"
        )
    return lines


def _range(values: Floats) -> str:
    return f"{values.min():,.0f} … {values.max():,.0f}" if values.size else "–"


def text() -> str:
    """Return both tables."""
    generation = table_of(generation_rows())
    touched = [line for line in generation[2:] if "| 0 | 0.0000% | 0 |" not in line]
    return "\n".join(
        [
            "Demand and day-ahead forecast, 2015-07 to 2019-12:",
            "",
            *table_of(demand_rows()),
            "",
            f"Demand and generation by fuel, 2019: {len(generation) - 2} series, of which the rule touches {len(touched)}:",
            "",
            *generation[:2],
            *touched,
        ]
    )


def main() -> int:
    """Return the exit code after printing or writing the tables: 1 without recordings."""
    command = parser(__doc__)
    command.add_argument("--write", action="store_true", help="put the tables into docs/reference/data.md")
    arguments = command.parse_args()
    if not DATA.is_dir():
        print(f"no recordings: {DATA} is absent", file=sys.stderr)
        return 1
    tables = text()
    if not arguments.write:
        print(tables)
        return 0
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
