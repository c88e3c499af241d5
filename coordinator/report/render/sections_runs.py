"""Prepare the sections on training, forecasts, backtests and control: charts and rows of tables for the templates."""

from collections.abc import Mapping, Sequence
from itertools import compress
from math import isfinite, nan
from typing import Any

import numpy as np

from coordinator.report.model import Against, Backtest, Backtests, Control, Day, Floats, Forecasts, Training, Week
from coordinator.report.render.charts import Axis, Band, Figure, Line, Part, number, plot, stacks
from ingest.catalog import distinct
from rl.evaluation.score import gaps

GW = 1e-3  # of MW
FAR_BELOW = -1.0  # PoP
POLICIES = {
    "hour rule": "best rule by hour",
    "mpc": "MPC on the same forecast",
    "clone": "clone of the optimum",
    "policy": "policy",
    "mpc perfect": "MPC with perfect foresight",
}
PoPs = Mapping[str, Mapping[str, float | None]]  # region → policy → share of the perfect-foresight saving


def _status(found: Training | Control) -> str:
    status = "Finished and verified" if found.verified else "Finished"
    if not found.result:
        status = "Not finished: run the command again to resume"
    if not found.skipped:
        return status
    return f"{status}; {found.skipped} unreadable line{'s' * (found.skipped != 1)} of metrics.jsonl left out"


def training(found: Training) -> dict[str, Any]:
    """Return what the template shows of a training: charts of loss, validation skill and coverage by step."""
    step = Axis("step", least=1)
    names = [name for name in found.skill if name != "mean"]
    styles = [f"{1 + i % 5}{' dash' if i >= 5 else ''}" for i in range(len(names))]
    lines = [Line(name, *found.skill[name], style, dots=True) for name, style in zip(names, styles, strict=True)]
    lines.append(Line("mean", *found.skill["mean"], dots=True))
    loss = plot("Training loss by step", step, Axis("pinball loss, scales"), [Line("loss", *found.loss)])
    caption = "Loss of each step's batch over seven quantile levels, in units of each respondent's scale."
    figures = [Figure("Loss", loss, caption)]
    if len(found.skill["mean"][0]):
        skill = plot("Validation skill by step", step, Axis("MAE skill", zero=True), lines)
        caption = "Moving average of the weights, on the validation year."
        figures.append(Figure("Validation skill", skill, caption, [line.key for line in lines]))
    if len(found.coverage80[0]):
        share = Line("80 % interval", *found.coverage80, dots=True)
        title = "Share of hours inside the 80 % interval"
        interval = plot(title, step, Axis("share of hours"), [share], marks=[("target", 0.8)])
        figures.append(Figure("Interval", interval, "Validation hours inside the 80 % interval, before calibration."))
    return {"figures": figures, "status": _status(found), "best": found.result.get("validation_skill")}


def forecasts(found: Forecasts) -> dict[str, Any]:
    """Return fan charts of chosen days against the operators' forecast and demand, and rows of errors."""
    errors = [
        [name, number(round(ours)), number(round(theirs)), f"{1 - ours / theirs:+.3f}", f"{found.inside80[name]:.1%}"]
        for name, (ours, theirs) in found.mae.items()
    ]
    return {"figures": [_fan(day) for day in found.days], "errors": errors}


def _fan(day: Day) -> Figure:
    q = {name: values * GW for name, values in day.quantiles.items()}
    bands = [
        Band("95 % interval", day.hour, q["q0.025"], q["q0.975"], "0 faint"),
        Band("80 % interval", day.hour, q["q0.1"], q["q0.9"]),
    ]
    lines = [
        Line("median", day.hour, q["q0.5"]),
        Line("operators' forecast", day.hour, day.operator * GW, "1 dash"),
        Line("demand", day.hour, day.demand * GW, "6"),
    ]
    name = f"{day.respondent}, {day.date}: {day.reason}"
    x = Axis("hour of the local day", every=1)
    chart = plot(f"Forecast of demand of {name}", x, Axis("GWh in the hour"), lines, bands)
    ours, theirs = (
        number(round(float(np.abs(values - day.demand).mean()))) for values in (day.quantiles["q0.5"], day.operator)
    )
    return Figure(name, chart, f"Mean absolute error {ours} MWh, the operators' {theirs} MWh.")


def backtests(found: Backtests) -> dict[str, Any]:
    """Return of each backtest a table of skills and, where it has several months, charts of skill and coverage by month."""
    return {"parts": [_backtest(one) for one in found.found]}


def _backtest(found: Backtest) -> dict[str, Any]:
    header = ["respondent", *(f"over {rival}" for rival in found.rivals), "MAE, MWh", "80 % interval covers"]
    ahead = ", ".join(f"{label} {_against(one)}" for label, one in found.horizons.items())
    return {
        "title": f"{found.model}, {found.first} to {found.last} (UTC)",
        "peeks": found.peeks,
        "ahead": ahead if len(found.horizons) > 1 else "",
        "header": header,
        "rows": _backtest_rows(found),
        "figures": _backtest_figures(found),
    }


def _backtest_rows(found: Backtest) -> list[list[str]]:
    """Return a row of the mean and one per respondent: skill over each rival, MAE, coverage."""
    rows = [
        [name, *(_against(over.get(rival)) for rival in found.rivals), number(round(mae, 1)), _share(covered)]
        for name, (over, mae, covered) in found.rows.items()
    ]
    return [["mean", *(_against(found.mean[rival]) for rival in found.rivals), "–", "–"], *rows]


def _against(one: Against | None) -> str:
    if one is None or not isfinite(one.skill):
        return "–"
    return f"{one.skill:+.3f}" + (f" ({one.note})" if one.note else "")


def _share(value: float) -> str:
    return f"{value:.1%}" if isfinite(value) else "–"


def _backtest_figures(found: Backtest) -> list[Figure]:
    months, skill, covered = found.months
    if len(months) < 2:
        return []
    axis = Axis(f"months from {np.datetime64(int(months[0]), 'M')} on", least=1)
    x = months - months[0] + 1
    line = Line("skill", x, skill, dots=True)
    ours = plot(f"Skill of {found.model} by month", axis, Axis("MAE skill", zero=True), [line])
    figures = [Figure("Skill over the operators by month", ours, "Mean over respondents; local months.")]
    if np.isfinite(covered).any():
        line = Line("80 % interval", x, covered, dots=True)
        title = f"Share of hours inside the 80 % interval of {found.model} by month"
        chart = plot(title, axis, Axis("share of hours"), [line], marks=[("target", 0.8)])
        caption = "Mean over respondents of the share of hours inside the 80 % interval."
        figures.append(Figure("Interval by month", chart, caption))
    return figures


def control(found: Control) -> dict[str, Any]:
    """Return PoP by region with its gaps, learning curves, and a week of dispatch per region."""
    figures = [_pop_bars(found.pops)] if found.pops else []
    if len(found.history[0]):
        figures.append(_learning(*found.history))
    name, x, y = found.curve
    if len(x):
        chart = plot(f"{name} by version", Axis("version", least=1), Axis(name), [Line(name, x, y)])
        figures.append(Figure("Learning, training years", chart, f"The learner's metric {name}."))
    return {
        "figures": figures,
        "status": _status(found),
        "pops": _pop_rows(found.pops),
        "weeks": [_week(week) for week in found.weeks],
    }


def _learning(version: Floats, pop: Floats) -> Figure:
    """Return validation PoP; values far below 0 are listed instead of drawn, so that the others can be distinguished."""
    drawn = (pop >= FAR_BELOW) | (pop.max() < FAR_BELOW)
    line = Line("policy", version[drawn], pop[drawn], dots=True)
    best = [("best", float(pop.max()))]
    title = "PoP on the validation year by version"
    chart = plot(title, Axis("version", least=1), Axis("PoP"), [line], marks=best)
    below = ", ".join(f"version {number(v)} at {p:.2f}" for v, p in zip(version[~drawn], pop[~drawn], strict=True))
    listed = f" Below the chart: {below}." if below else ""
    return Figure("Learning, validation year", chart, f"Every evaluated version; the best is kept.{listed}")


def _pop_rows(pops: PoPs) -> list[list[str]]:
    """Return a row per policy and per gap: a value per region, then the mean of those that do not hold one another."""
    counted = [name in distinct(pops) for name in pops]
    values = {
        label: [_value(row.get(name)) for row in pops.values()]
        for name, label in POLICIES.items()
        if any(name in row for row in pops.values())
    }
    members = [[_value(value) for name, value in row.items() if name.startswith("member")] for row in pops.values()]
    if members and all(members):
        values[f"its {len(members[0])} members, individually"] = [_mean(each) for each in members]
    gap_rows = {
        f"gap: {part}": [_gap(row, part) for row in pops.values()] for part in ("horizon", "forecast", "policy")
    }
    values |= {name: row for name, row in gap_rows.items() if any(map(isfinite, row))}
    return [
        [name, *(f"{v:.3f}" if isfinite(v) else "–" for v in (*row, _mean(list(compress(row, counted)))))]
        for name, row in values.items()
    ]


def _value(value: float | None) -> float:
    return nan if value is None else float(value)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if isfinite(value)]
    return sum(known) / len(known) if known else nan


def _gap(row: Mapping[str, float | None], part: str) -> float:
    """Return a part of 1 - PoP, NaN if the plans that define it were not evaluated."""
    planned = [_value(row.get(name)) for name in ("mpc perfect", "mpc", "policy")]
    return float(getattr(gaps(*planned), part))


def _pop_bars(pops: PoPs) -> Figure:
    rows = pops.values()
    parts = [Part("policy", np.array([_value(row.get("policy")) for row in rows]))]
    # A policy better than planning on its forecast closes that much of the forecast's gap.
    closed = np.array([min(0.0, _gap(row, "policy")) for row in rows])
    for style, part in enumerate(("policy", "forecast", "horizon"), 1):
        gap = np.array([_gap(row, part) for row in rows])
        height = np.fmax(gap + closed if part == "forecast" else gap, 0.0)
        if np.isfinite(height).any() and height.any():
            parts.append(Part(f"gap: {part}", height, f"{style} faint"))
    marks = [
        Part(POLICIES[name], np.array([_value(row.get(name)) for row in rows]), style)
        for name, style in (("hour rule", "4"), ("mpc", "6"))
        if any(name in row for row in rows)
    ]
    title = "PoP by region with its gaps to the optimum"
    chart = stacks(title, list(pops), Axis("PoP", zero=True), parts, marks, top=1.0)
    caption = (
        "Columns: the policy, then the loss due to the policy, the forecast and the horizon, up to the optimum at 1. "
        "Lines: baselines."
    )
    key = [(f"f{part.style}", part.name) for part in parts] + [(f"l{mark.style}", mark.name) for mark in marks]
    return Figure("PoP by region", chart, caption, key)


def _week(week: Week) -> Figure:
    """Return the net load, and below it the power of the stores over the same hours."""
    hour = np.arange(len(week.load), dtype=float)
    axis = Axis("hour of the week, from local midnight", every=24)
    lines = [
        Line("without control", hour, week.load * GW, "6"),
        Line("with the policy", hour, week.policy * GW),
        Line("optimum", hour, week.optimum * GW, "1 dash"),
    ]
    stores = [
        Line(name, hour, power * GW, str(2 + i), step=True) for i, (name, power) in enumerate(week.stores.items())
    ]
    name = f"{week.region}, {week.start}"
    above = plot(f"Net load of {name}", axis, Axis("net load, GW"), lines)
    below = plot(f"Power of the stores of {name}", axis, Axis("stores into the grid, GW"), stores)
    caption = "The week with the highest load. Net load without control, and minus the output of the stores. Below 0 a store charges."
    return Figure(name, above + below, caption, [line.key for line in lines + stores])
