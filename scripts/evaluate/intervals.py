"""Measure the intervals' calibration: `python -m scripts.evaluate.intervals --data DATA --run DATA/train [--period 2019] [--left-out CODES] [--write]`.

One trained model, so one median, with its own intervals, with the former correction (one factor from the outcomes of 56 days) and with
the adaptive one that forecasts have. Prints Markdown tables: respondent-months in which the 80% interval covers 75 to 85%, mean monthly
miss, worst fortnight of each respondent, and CRPS over that of the former correction. Respondents that no choice has seen (`--left-out`) have
means of their own. `--write` puts the tables on docs/reference/forecasting.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.calendar import calendar_of
from ingest.settings import parse_codes
from scripts.bench.common import ROOT, markdown_table, parser, rewrite_section
from worker.forecast.model import scores
from worker.forecast.model.conformal import PAIRS
from worker.forecast.model.network import MEDIAN, QUANTILES
from worker.forecast.predict import Forecast, RawForecast, calibrated_forecast, load_model, predict_raw
from worker.training.tokens import Period

DOCS = ROOT / "docs" / "reference" / "forecasting.md"
BEGIN, END = "<!-- intervals: begin (scripts/evaluate/intervals.py) -->", "<!-- intervals: end -->"
PAIR = PAIRS[1]  # of the 80% interval
WINDOW = 56 * 24  # hours that the former correction counts
FEWEST = 7 * 24  # hours with an outcome below which it corrects nothing, and below which a month is left out
WAYS = ("the model's own", "window of 56 days (former)", "adaptive")
WITHIN = (0.75, 0.85)
FORTNIGHT = 14  # days


def windowed(raw: RawForecast) -> NDArray[np.float64]:
    """Return the quantiles [hour, level] of the former correction: one factor an issue time, from the last 56 days."""
    median = raw.quantiles[:, MEDIAN]
    above = raw.outcome >= median
    reach = np.where(above, raw.quantiles[:, PAIR[1]] - median, median - raw.quantiles[:, PAIR[0]])
    ratio = np.abs(raw.outcome - median) / reach
    factor = np.ones(len(median))
    for moment in np.unique(raw.issue):
        end = max(int(moment) + 1 - int(raw.hours[0]), 0)
        past = ratio[max(end - WINDOW, 0) : end]
        past = past[np.isfinite(past)]
        if len(past) >= FEWEST:
            factor[raw.issue == moment] = np.clip(np.quantile(past, 0.8), 0.5, 2.0)
    return median[:, None] + factor[:, None] * (raw.quantiles - median[:, None])


def monthly(forecast: Forecast) -> NDArray[np.float64]:
    """Return the coverage of the 80% interval in each local month, NaN in one of fewer hours than a week, [month of the year]."""
    days = _days(forecast).astype("datetime64[D]")
    month = days.astype("datetime64[M]").astype(int) % 12
    measured = np.isfinite(forecast.demand)
    enough = [(measured & (month == m)).sum() >= FEWEST for m in range(12)]  # a UTC year begins in the last local month
    return np.array([_covers(forecast, PAIR, month == m) if enough[m] else np.nan for m in range(12)])


def worst_fortnight(forecast: Forecast) -> float:
    """Return the lowest share of hours inside the 80% interval over 14 days, as the mean of their daily shares."""
    days = _days(forecast)
    daily = np.array([_covers(forecast, PAIR, days == day) for day in np.unique(days)])
    daily = daily[np.isfinite(daily)]
    return float(np.convolve(daily, np.ones(FORTNIGHT) / FORTNIGHT, "valid").min())


def _days(forecast: Forecast) -> NDArray[np.int64]:
    return calendar_of(forecast.respondent, int(forecast.hours[0]), int(forecast.hours[-1])).day


def _covers(forecast: Forecast, pair: tuple[int, int], where: NDArray[np.bool_] | slice) -> float:
    low, high = pair
    return scores.coverage(forecast.demand[where], forecast.quantiles[where, low], forecast.quantiles[where, high])


def _row(way: str, forecasts: Sequence[Forecast], former: Sequence[Forecast]) -> list[str]:
    months = np.concatenate([monthly(one) for one in forecasts])
    months = months[np.isfinite(months)]
    within = (months >= WITHIN[0]) & (months <= WITHIN[1])
    worst = [worst_fortnight(one) for one in forecasts]
    crps = np.mean(
        [
            scores.crps(one.demand, one.quantiles, QUANTILES) / scores.crps(old.demand, old.quantiles, QUANTILES)
            for one, old in zip(forecasts, former, strict=True)
        ]
    )
    return [
        way,
        f"{within.sum()} of {len(months)} ({within.mean():.0%})",
        f"{np.abs(months - 0.8).mean() * 100:.1f}",
        f"{np.mean(worst):.1%} ({min(worst):.1%})",
        *(f"{np.mean([_covers(one, pair, slice(None)) for one in forecasts]):.1%}" for pair in PAIRS),
        f"{crps:.3f}",
    ]


def report(found: dict[str, list[Forecast]], period: Period, left_out: Sequence[str] = ()) -> str:
    """Return the tables of each way's forecasts.

    Args:
        found: by way, the forecasts of the respondents, in the same order.
        period: hours of all.
        left_out: respondents whose means are not mixed with those of the others.
    """
    former = found[WAYS[1]]
    groups = {"": [one.respondent for one in former if one.respondent not in left_out]}
    groups[", left out"] = [one.respondent for one in former if one.respondent in left_out]
    header = ["intervals", "months within 75 to 85%", "mean monthly miss, points", "worst fortnight, mean (least)"]
    header += ["50% covers", "80% covers", "95% covers", "CRPS over former"]
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    rows = [
        [f"{one.respondent}, {way}", *(f"{share:.0%}" if np.isfinite(share) else "–" for share in monthly(one))]
        for way in WAYS[1:]
        for one in found[way]
    ]
    names = "; left out of every choice: ".join(", ".join(codes) for codes in groups.values() if codes)
    return "\n\n".join(
        [
            f"{names}; hours {period} (UTC); the median is the same in every row.",
            markdown_table(
                header,
                [
                    _row(
                        f"{way}{group}", *([one for one in part if one.respondent in names] for part in (every, former))
                    )
                    for group, names in groups.items()
                    if names
                    for way, every in found.items()
                ],
            ),
            "What the 80% interval covers, month by month:",
            markdown_table(["", *months], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    command_line = parser(__doc__)
    command_line.add_argument("--data", type=Path, required=True)
    command_line.add_argument("--run", type=Path, required=True, help="finished training, or one checkpoint")
    command_line.add_argument("--period", default="2019", help="YYYY[-MM][:YYYY[-MM]]; within one year")
    command_line.add_argument("--left-out", default="", metavar="CODES", help="respondents with means of their own")
    command_line.add_argument("--write", action="store_true", help="also write docs/reference/forecasting.md")
    options = command_line.parse_args(argv)
    period = Period.parse(options.period, "period")
    left_out = parse_codes(options.left_out)
    trained = load_model(options.run)
    store = trained.open_store(options.data)
    found: dict[str, list[Forecast]] = {way: [] for way in WAYS}
    for respondent in trained.respondents:
        print(f"forecasting {respondent}", file=sys.stderr, flush=True)
        raw = predict_raw(trained, store, respondent, period)
        own, former = raw.forecast(period, raw.quantiles), raw.forecast(period, windowed(raw))
        for way, one in zip(WAYS, (own, former, calibrated_forecast(trained, raw, period)), strict=True):
            found[way].append(one)
    text = report(found, period, left_out)
    print(text)
    if options.write:
        rewrite_section(DOCS, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
