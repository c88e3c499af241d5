"""Prepare the sections on the hours themselves: demand, load duration, generation mix, forecast error, interchange."""

import math
from collections.abc import Callable, Sequence
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from coordinator.report.model import Floats, OperatorError, Region, Regions
from coordinator.report.render.charts import Axis, Band, Figure, Line, Part, areas, number, plot
from ingest.catalog import RESPONDENTS

GW = 1e-3  # of MWh in the hour
DAYS_A_YEAR = 365.2425
LONG, SHORT = 550, 62  # days: a longer period has years on its axis, a shorter one has days, those between have months
MOST = 7  # ticks of dates on an axis
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
FUELS = ("nuclear", "coal", "gas", "hydro", "wind", "solar", "storage and other")  # from the base load up
SHADES = 4  # of a flow in the matrix, by its share of the largest


def _axis(days: Floats) -> tuple[Axis, Callable[[Floats], Floats]]:
    """Return an axis of time for days since 1970-01-01, and the function that places days on it."""
    first, last = (float(days[0]), float(days[-1])) if len(days) else (0.0, 0.0)
    if last - first > LONG:
        return Axis("year", every=1, plain=True), lambda values: 1970 + values / DAYS_A_YEAR
    marked = _dates(first, last)
    years = dict.fromkeys(str(np.datetime64(int(day), "D"))[:4] for day, _ in (marked[:1] + marked[-1:]))
    return Axis(" to ".join(years), marked=marked), lambda values: values


def _dates(first: float, last: float) -> tuple[tuple[float, str], ...]:
    """Return at most `MOST` ticks between two days since 1970-01-01: first days of months, or days where the period is short."""
    days = np.arange(math.ceil(first), math.floor(last) + 1)
    shown = [(float(day), _date(int(day))) for day in days]
    if last - first > SHORT:
        shown = [(day, name.split()[0]) for day, name in shown if name.split()[1] == "1"]
    return tuple(shown[:: max(1, math.ceil(len(shown) / MOST))])


def _date(day: int) -> str:
    """Return a day since 1970-01-01 as text, e.g. "Aug 9"."""
    _, month, of = str(np.datetime64(day, "D")).split("-")
    return f"{MONTHS[int(month) - 1]} {int(of)}"


def _day_of(months: Floats) -> Floats:
    """Return the first day, since 1970-01-01, of months since then; of half a month the middle."""
    whole = np.floor(months).astype(int)
    start, end = (part.astype("datetime64[M]").astype("datetime64[D]").astype(float) for part in (whole, whole + 1))
    return start + (months - whole) * (end - start)


def _unit(largest: float) -> tuple[float, str]:
    """Return the factor and name of the unit in which a respondent's power is drawn."""
    return (GW, "GW") if largest >= 1000 else (1.0, "MW")


def power(value: float) -> str:
    """Return mean power of an hour as text, in GW from 1,000 MW."""
    scale, unit = _unit(value)
    return f"{value * scale:,.1f} GW" if unit == "GW" else f"{value:,.0f} MW"


def _drawn(found: Regions, draw: Callable[[Region], Sequence[Figure]]) -> dict[str, Any]:
    """Return the charts of the respondents that are drawn, and how many are not."""
    shown = found.regions[: found.drawn]
    figures = [figure for region in shown for figure in draw(region)]
    return {"figures": figures, "hidden": len(found.regions) - len(shown), "shown": len(shown)}


def demand(found: Regions) -> dict[str, Any]:
    """Return daily demand and the week of the highest hour of each respondent, and rows of peaks."""
    rows, yearly = [], []
    for one in found.regions:
        top = max(one.peaks, key=lambda peak: peak.value)
        factor = f"{one.mean / top.value:.1%}" if top.value > 0 else "–"
        name = RESPONDENTS[one.code].name if one.code in RESPONDENTS else ""
        rows.append(
            [
                one.code,
                name,
                number(round(one.mean)),
                number(round(top.value)),
                top.hour,
                top.local,
                factor,
                one.first,
                one.last,
            ]
        )
        yearly += [
            [
                one.code,
                peak.year,
                number(round(peak.value)),
                peak.hour,
                peak.local,
                number(round(peak.mean)),
                number(peak.hours),
            ]
            for peak in one.peaks
        ]
    largest = found.regions[0]
    return {
        **_drawn(found, _demand),
        "rows": rows,
        "yearly": yearly,
        "largest": (largest.code, power(largest.week.peak)),
        "respondents": len(found.regions),
    }


def _demand(one: Region) -> Sequence[Figure]:
    week = one.week
    scale, unit = _unit(week.peak)
    axis, place = _axis(one.days)
    step = 7 if axis.plain else 1  # a line of seven years of days would be a blot
    shown = _by(step, one)
    what = "week" if step == 7 else "day"
    x, mean = place(shown[0]), Line(f"mean of the {what}", place(shown[0]), shown[1] * scale)
    band = Band(f"lowest to highest hour of the {what}", x, shown[2] * scale, shown[3] * scale)
    daily = plot(f"Daily demand of {one.code}", axis, Axis(f"demand, {unit}"), [mean], [band])
    hourly = [
        Line("demand", week.hour / 24, week.demand * scale, "6"),
        Line("day-ahead forecast", week.hour / 24, week.forecast * scale, "1 dash"),
    ]
    hourly = hourly if np.isfinite(week.forecast).any() else hourly[:1]
    name, start = f"highest hour, {power(week.peak)}", int(np.datetime64(week.start, "D").astype(int))
    chart = plot(
        f"Hourly demand of {one.code} in the week of its highest hour",
        Axis(f"local days of {week.start[:4]}", marked=tuple((float(i), _date(start + i)) for i in range(7))),
        Axis(f"demand, {unit}"),
        hourly,
        marks=[(name, week.peak * scale)],
    )
    return (
        Figure(f"{one.code}, daily", daily, f"Local days ({one.zone}).", [mean.key, ("b0", band.name)]),
        Figure(f"{one.code}, hourly", chart, "The week of the highest hour on disk.", [line.key for line in hourly]),
    )


def _by(step: int, one: Region) -> tuple[Floats, Floats, Floats, Floats]:
    """Return days, mean, lowest and highest hour of runs of `step` days; a last run that is not whole is left out, unless alone."""
    if len(one.days) < step:
        step = 1
    runs = [
        column[: len(column) // step * step].reshape(-1, step)
        for column in (one.days, one.daily, one.lowest, one.highest)
    ]
    with catch_warnings():
        simplefilter("ignore", RuntimeWarning)  # a run without any valid day is NaN
        days, mean = (np.nanmean(column, axis=1) for column in runs[:2])
        return days, mean, np.nanmin(runs[2], axis=1), np.nanmax(runs[3], axis=1)


def duration(found: Regions) -> dict[str, Any]:
    """Return load duration curves of the newest years."""

    def draw(one: Region) -> Sequence[Figure]:
        scale, unit = _unit(one.week.peak)
        lines = [
            Line(str(year), np.linspace(0, 100, len(values)), values * scale, style)
            for style, (year, values) in zip(("0", "1 dash", "5"), one.duration.items(), strict=False)
        ]
        title = f"Load duration of {one.code}"
        chart = plot(title, Axis("share of the year's hours, %"), Axis(f"demand, {unit}", zero=True), lines)
        ends = next(iter(one.duration.values())) * scale
        high, middle, low = (f"{ends[i]:,.{1 if unit == 'GW' else 0}f}" for i in (0, len(ends) // 2, -1))
        caption = f"{next(iter(one.duration))}: highest {high}, median {middle}, lowest {low} {unit}."
        return [Figure(one.code, chart, caption, [line.key for line in lines])]

    return _drawn(found, draw)


def mix(found: Regions) -> dict[str, Any]:
    """Return stacked generation by group of fuels and month."""

    def draw(one: Region) -> Sequence[Figure]:
        assert one.mix is not None
        months, groups = one.mix
        scale, unit = _unit(one.week.peak)
        days = _day_of(np.append(months, months[-1] + 1))
        axis, place = _axis(days)
        parts = [Part(name, groups[name] * scale, name.split()[0]) for name in FUELS if name in groups]
        chart = areas(
            f"Generation mix of {one.code} by month", axis, Axis(f"generation, {unit}", zero=True), place(days), parts
        )
        total = sum(float(values.sum()) for values in groups.values()) or 1.0
        shares = ", ".join(
            f"{name} {100 * float(groups[name].sum()) / total:.0f} %" for name in FUELS if name in groups
        )
        return [Figure(one.code, chart, f"Mean of each month. All months: {shares}.")]

    return {**_drawn(found, draw), "key": [(f"f{name.split()[0]}", name) for name in FUELS]}


def operators(found: Regions) -> dict[str, Any]:
    """Return the error of the operators' forecasts by hour of day and by month, and rows of totals."""
    rows = []
    for one in found.regions:
        if (error := one.error) is not None:
            size = (f"{100 * error.share:.2f} %", number(round(error.mae)), f"{round(error.bias) + 0:+,}")
            worst = int(np.nanargmax(error.by_hour))
            rows.append([one.code, *size, f"{worst:02d}:00 to {worst + 1:02d}:00", number(error.hours)])
    return {**_drawn(found, lambda one: _error(one, one.error) if one.error else ()), "rows": rows}


def _error(one: Region, error: OperatorError) -> Sequence[Figure]:
    hour = np.arange(24, dtype=np.float64) + 0.5
    lines = [
        Line("mean absolute error", hour, error.by_hour, dots=True),
        Line("mean error", hour, error.bias_by_hour, "1 dash"),
    ]
    axis, unit = Axis("local hour of the day", every=3), Axis("% of demand", zero=True)
    by_hour = plot(f"Forecast error of {one.code} by hour of the day", axis, unit, lines)
    caption = "Day-ahead forecast (DF) less demand (D). Above 0 the forecast is too high."
    first = Figure(f"{one.code}, by hour", by_hour, caption, [line.key for line in lines])
    if len(error.months) < 2:
        return (first,)
    days = _day_of(error.months + 0.5)
    along, place = _axis(days)
    monthly = [Line("mean absolute error", place(days), error.by_month, dots=len(days) < 25)]
    by_month = plot(f"Forecast error of {one.code} by month", along, unit, monthly)
    return first, Figure(f"{one.code}, by month", by_month, "Mean absolute error of each month.")


def interchange(found: Regions) -> dict[str, Any]:
    """Return net exports by month, and the matrix of mean flows between neighbours where they are on disk."""

    def draw(one: Region) -> Sequence[Figure]:
        assert one.exports is not None
        months, means = one.exports
        if len(months) < 2:
            return []
        scale, unit = _unit(float(np.nanmax(np.abs(means))))
        days = _day_of(months + 0.5)
        axis, place = _axis(days)
        line = Line("net exports", place(days), means * scale, dots=len(days) < 25)
        chart = plot(f"Net exports of {one.code} by month", axis, Axis(f"net exports, {unit}", zero=True), [line])
        return [
            Figure(one.code, chart, f"Mean of each month; all months: {number(round(float(np.nanmean(means))))} MW.")
        ]

    having = [one for one in found.regions if one.flows]
    neighbours = sorted({name for one in having for name in one.flows})
    most = max((abs(value) for one in having for value in one.flows.values()), default=1.0) or 1.0
    flows = [
        (
            one.code,
            {name: _cell(value, most) for name, value in sorted(one.flows.items(), key=lambda item: -abs(item[1]))},
        )
        for one in having
    ]
    rows = [[one.code, number(round(float(np.nanmean(one.exports[1]))))] for one in found.regions if one.exports]
    return {**_drawn(found, draw), "neighbours": neighbours, "flows": flows, "rows": rows}


def _cell(value: float, most: float) -> tuple[str, str]:
    """Return the text and the CSS class of a mean flow: out (exports) or in, and its shade."""
    shade = min(int(SHADES * abs(value) / most), SHADES - 1)
    return number(round(value)), f"{'out' if value > 0 else 'in'}{shade}"
