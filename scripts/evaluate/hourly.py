"""Measure the hourly forecasts of every authority on disk, horizon by horizon, and their intervals and paths.

    python -m scripts.evaluate.hourly run --data DATA --period 2019 --out docs/benchmarks/hourly.jsonl [--respondents CISO,ERCO] [--publication deadline]
    python -m scripts.evaluate.hourly docs

Only the hours ahead in `STEPS` are forecast and make up a path. `run` appends one JSON line a respondent; those that the file has are left out. `docs` puts the tables on docs/reference/forecasting.md. *Corrected* is DF
plus its last known error; errors are compared on the hours whose DF is published at the issue hour. Paths are compared with the same
values in independent order, so with the same marginal distributions; every `EVERY`th issue hour counts.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.catalog import distinct
from ingest.loader import respondents_on_disk
from ingest.publication import DEFAULT, Publication
from ingest.settings import parse_codes
from scripts.bench.common import BENCHMARKS, ROOT, append, markdown_table, parser, read_lines, rewrite_section
from worker.forecast.hourly.authority import load_authority
from worker.forecast.hourly.forecasts import HourlyForecasts, forecasts_at
from worker.forecast.hourly.inputs import AuthorityHours, references, take, targets
from worker.forecast.model import scores
from worker.forecast.model.conformal import PAIRS
from worker.training.tokens import Period

DOCS = ROOT / "docs" / "reference" / "forecasting.md"
BEGIN, END = "<!-- hourly: begin (scripts/evaluate/hourly.py docs) -->", "<!-- hourly: end -->"
FILE = BENCHMARKS / "hourly.jsonl"
PATHS = 20
EVERY = 7  # issue hours; prime to 24, so that each local hour counts
STEPS = np.array([1, 2, 3, 4, 5, 6, 9, 12, 18, 24, 30, 36, 48])  # hours ahead
NEAR = slice(0, 6)
WITHIN = (0.75, 0.85)
FEWEST = 7 * 24  # hours of a month and horizon below which its coverage is left out

Floats = NDArray[np.floating]


def measure(hours: AuthorityHours, found: HourlyForecasts) -> dict[str, Any]:
    """Return the scores of one authority; lists are by horizon."""
    rows = found.issues - hours.calendar.hours[0]
    at = targets(rows, STEPS)
    actual, operator = take(hours.demand, at), references(hours, rows, STEPS, with_operator=True)
    last = np.minimum(hours.actual_known, hours.operator_known)[rows]
    corrected = operator + take(hours.demand - hours.operator, last)[:, None]
    known = hours.actual_known[rows][:, None]
    yesterday = take(hours.demand, at + 24 * -((at - known + 23) // 24))
    both = np.isfinite(actual) & np.isfinite(corrected) & np.isfinite(found.median)
    either = np.isfinite(actual) & np.isfinite(yesterday) & np.isfinite(found.median)
    low, high = PAIRS[1]
    inside = (actual >= found.quantiles[..., low]) & (actual <= found.quantiles[..., high])
    measured = np.isfinite(actual) & np.isfinite(found.median)
    month = hours.calendar.day[rows].astype("datetime64[D]").astype("datetime64[M]").astype(int) % 12
    thinned = actual[::EVERY], found.paths[::EVERY]
    order = np.argsort(np.random.default_rng(0).random(thinned[1].shape), axis=-1)
    apart = np.take_along_axis(thinned[1], order, axis=-1)
    return {
        "hours": both.sum(axis=0).tolist(),
        "mae": _mae(actual - found.median, both),
        "corrected": _mae(actual - corrected, both),
        "operator": _mae(actual - operator, both),
        "mae_all": _mae(actual - found.median, either),
        "yesterday": _mae(actual - yesterday, either),
        "covered": _share(inside, measured),
        "covered_by_month": [_share(inside, measured & (month == m)[:, None], FEWEST) for m in range(12)],
        "energy": [round(scores.energy(thinned[0], x), 3) for x in (found.paths[::EVERY], apart)],
        "variogram": [round(scores.variogram(thinned[0], x), 5) for x in (found.paths[::EVERY], apart)],
    }


def _mae(error: Floats, where: NDArray[np.bool_]) -> list[float | None]:
    count = where.sum(axis=0)
    total = np.where(where, np.abs(error), 0).sum(axis=0)
    return [round(float(t / n), 3) if n else None for t, n in zip(total, count, strict=True)]


def _share(inside: NDArray[np.bool_], where: NDArray[np.bool_], fewest: int = 1) -> list[float | None]:
    count = where.sum(axis=0)
    total = (inside & where).sum(axis=0)
    return [round(float(t / n), 4) if n >= fewest else None for t, n in zip(total, count, strict=True)]


def run(data: Path, names: Sequence[str], period: Period, publication: Publication, out: Path) -> None:
    """Append one line for each respondent that the file lacks."""
    label = {"period": str(period), "publication": str(publication)}
    lines = read_lines(out) if out.exists() else []
    done = {line["respondent"] for line in lines if label.items() <= line.items()}
    for number, name in enumerate(names, 1):
        if name in done:
            continue
        start = time.process_time()
        hours = load_authority(data, name, publication)
        found = forecasts_at(hours, period, STEPS, PATHS, seed=0)
        seconds = round(time.process_time() - start, 1)
        line = append({**label, "respondent": name, **measure(hours, found), "processor_s": seconds}, out)
        near = _ratio(line, "corrected")[NEAR].mean()
        print(
            f"{name}, {number} of {len(names)}: {near:.3f} of corrected DF 1 to 6 h ahead", file=sys.stderr, flush=True
        )


def _ratio(line: dict[str, Any], other: str) -> NDArray[np.float64]:
    """Return our error over another forecast's by horizon; NaN where DF is published for fewer than `FEWEST` hours."""
    if other == "yesterday":
        return np.array(line["mae_all"], float) / np.array(line[other], float)
    found = np.array(line["mae"], float) / np.array(line[other], float)
    return np.where(np.array(line["hours"]) >= FEWEST, found, np.nan)


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return the tables of one period and publication."""
    means = [line for line in lines if line["respondent"] in distinct(line["respondent"] for line in lines)]
    ratios = {
        other: np.array([_ratio(line, other) for line in means]) for other in ("corrected", "operator", "yesterday")
    }
    covered = np.array([line["covered"] for line in means], float)
    months = np.array([line["covered_by_month"] for line in means], float)  # [respondent, month, shown]
    counted = np.isfinite(months)
    within = ((months >= WITHIN[0]) & (months <= WITHIN[1])).sum(axis=(0, 1)) / counted.sum(axis=(0, 1))
    miss = np.nanmean(np.abs(months - 0.8), axis=(0, 1)) * 100
    rows = [
        ["over DF less its last error", *_cells(ratios["corrected"])],
        [
            "… the highest of any",
            *_cells(np.array([[max(x[np.isfinite(x)], default=np.nan) for x in ratios["corrected"].T]])),
        ],
        ["over DF", *_cells(ratios["operator"])],
        ["over yesterday's hour, all hours", *_cells(ratios["yesterday"])],
        ["80% covers", *(f"{x:.1%}" for x in covered.mean(axis=0))],
        ["months within 75 to 85%", *(f"{x:.0%}" for x in within)],
        ["mean monthly miss, points", *(f"{x:.1f}" for x in miss)],
    ]
    near = np.array([_ratio(line, "corrected")[NEAR].mean() for line in means])
    energy = np.array([line["energy"] for line in means])
    variogram = np.array([line["variogram"] for line in means])
    better = [(x[:, 0] < x[:, 1]).sum() for x in (energy, variogram)]
    return "\n\n".join(
        [
            f"Issue hours {lines[0]['period']} (UTC), published as `{lines[0]['publication']}`; means over {len(means)} respondents, without regions that hold another one.",
            f"Mean error 1 to 6 h ahead over that of DF less its last error: **{near.mean():.3f}** (median {np.median(near):.3f}). Paths, over the same quantiles in independent "
            f"order: energy score {np.mean(energy[:, 0] / energy[:, 1]):.3f}, lower in {better[0]} of {len(means)}; variogram score {np.mean(variogram[:, 0] / variogram[:, 1]):.3f}, "
            f"lower in {better[1]}.",
            markdown_table(["hours ahead", *(str(step) for step in STEPS)], rows),
            "Each respondent: error over DF less its last error as mean of 1 to 6 h and as highest from 2 h on, energy and variogram score over those of independent quantiles:",
            markdown_table(
                ["", "1 to 6 h", "highest from 2 h", "energy", "variogram"], [_line(line) for line in lines]
            ),
        ]
    )


def _cells(ratio: Floats) -> list[str]:
    means = [x[np.isfinite(x)].mean() if np.isfinite(x).any() else np.nan for x in ratio.T]
    return [f"{x:.3f}" if np.isfinite(x) else "–" for x in means]


def _line(line: dict[str, Any]) -> list[str]:
    ratio = _ratio(line, "corrected")
    pairs = (line["energy"], line["variogram"])
    return [
        line["respondent"],
        f"{ratio[NEAR].mean():.3f}",
        f"{np.nanmax(ratio[1:]):.3f}",
        *(f"{a / b:.3f}" for a, b in pairs),
    ]


def docs() -> None:
    """Write the tables of every period and publication of the file."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in read_lines(FILE):
        groups.setdefault((line["period"], line["publication"]), []).append(line)
    rewrite_section(DOCS, BEGIN, END, "\n\n".join(report(lines) for lines in groups.values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    command_line = parser(__doc__)
    command_line.add_argument("action", choices=("run", "docs"))
    command_line.add_argument("--data", type=Path, default=Path("data"))
    command_line.add_argument("--period", default="2019", help="issue hours, YYYY[-MM][:YYYY[-MM]]")
    command_line.add_argument("--respondents", default="", help="codes (default: all on disk)")
    command_line.add_argument("--publication", default=str(DEFAULT), help="when values are published")
    command_line.add_argument("--out", type=Path, default=FILE)
    options = command_line.parse_args(argv)
    if options.action == "docs":
        docs()
        return 0
    names = parse_codes(options.respondents) or respondents_on_disk(options.data)
    run(
        options.data, names, Period.parse(options.period, "period"), Publication.parse(options.publication), options.out
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
