"""Training, forecasts and control as HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from coordinator.report.model import Absent, Control, Day, Floats, Forecasts, Training, Week
from coordinator.report.render.charts import Axis, Band, Line, Part, number, plot, stacks
from coordinator.report.render.html import absent, figure, figures, folded, numbers, say, section, table
from rl.evaluation.score import gaps

GW = 1e-3  # of MW
FAR_BELOW = -1.0  # PoP
POLICIES = {
    "hour rule": "best rule by hour",
    "mpc": "MPC on the same forecast",
    "clone": "clone of the optimum",
    "policy": "policy",
    "mpc perfect": "MPC, all known",
}


def training(found: Training | Absent) -> str:
    """Loss and validation skill against steps."""
    if isinstance(found, Absent):
        return section("training", absent(found))
    result = found.result
    best = result.get("validation_skill")
    state = "finished and proved" if found.proved else "finished" if result else "not finished: start it again to go on"
    content = [
        numbers(
            ("steps", number(float(found.loss[0].max(initial=0)))),
            ("best mean validation skill", "–" if best is None else f"{best:+.3f}"),
            ("ranks of the ring", ", ".join(map(str, found.ranks)) or "–"),
            ("tokens a second, median", number(round(found.tokens_per_s))),
        ),
        say(
            f"{state[0].upper()}{state[1:]}. Skill is 1 - MAE / MAE of {result.get('reference', 'the reference')} in the "
            "validation year, which is not the test year: 0 is as good, below 0 is worse."
        ),
    ]
    names = [name for name in found.skill if name != "mean"]
    lines = [Line(name, *found.skill[name], 1 + i % 5, dash=i >= 5, dots=True) for i, name in enumerate(names)]
    lines.append(Line("mean", *found.skill["mean"], 0, dots=True))
    pictures = [
        figure(
            "Loss",
            plot(
                "Training loss by step",
                Axis("step", least=1),
                Axis("pinball loss, scales"),
                [Line("loss", *found.loss)],
            ),
            "Loss of each step's pieces over seven quantile levels, in units of each respondent's scale.",
        )
    ]
    if len(found.skill["mean"][0]):
        pictures.append(
            figure(
                "Validation skill",
                plot("Validation skill by step", Axis("step", least=1), Axis("MAE skill", zero=True), lines),
                "Moving average of the weights, on the validation year.",
                [_key(line) for line in lines],
            )
        )
    if len(found.coverage80[0]):
        line = Line("80 % interval", *found.coverage80, dots=True)
        picture = plot(
            "Share of hours inside the 80 % interval",
            Axis("step", least=1),
            Axis("share of hours"),
            [line],
            marks=[("aim", 0.8)],
        )
        pictures.append(figure("Interval", picture, "Validation hours inside the 80 % interval, before calibration."))
    return section("training", "".join([*content, figures(*pictures)]))


def _key(line: Line) -> tuple[str, str]:
    return f"l{line.style}" + (" dash" if line.dash else ""), line.name


def forecasts(found: Forecasts | Absent) -> str:
    """Fan charts of chosen days against the operators' forecast and what happened."""
    if isinstance(found, Absent):
        return section("forecasts", absent(found))
    rows = [
        [name, number(round(ours)), number(round(theirs)), f"{1 - ours / theirs:+.3f}", f"{found.inside80[name]:.1%}"]
        for name, (ours, theirs) in found.mae.items()
    ]
    key = [
        ("b0", "80 % interval"),
        ("b0 faint", "95 % interval"),
        ("l0", "median"),
        ("l1 dash", "operators' forecast"),
        ("lk", "what happened"),
    ]
    swatches = "".join(f'<li><i class="{kind}"></i>{name}</li>' for kind, name in key)
    content = [
        say(
            f"Issued at 10:00 local time on the day before, from {found.file}. The year {found.year} (local), on hours that have "
            f"demand and both forecasts. {_kept(found.trained)}"
        ),
        table(
            ["respondent", "MAE, MWh", "operators' MAE, MWh", "skill", "hours in the 80 % interval"],
            rows,
        ),
        "<h3>Three days a respondent</h3>",
        say("Not the best three: the day of the highest demand, the day of the middle error, the day of the largest."),
        f'<ul class="key">{swatches}</ul>',
        figures(*(_fan(day) for day in found.days)),
    ]
    return section("forecasts", "".join(content))


def _kept(trained: tuple[str, str]) -> str:
    if trained == ("", ""):
        return "The training kept the last year on disk for tests and validated on the one before."
    return f"The training read {trained[0] or 'all before'} and validated on {trained[1] or 'the default year'}."


def _fan(day: Day) -> str:
    q = {name: values * GW for name, values in day.quantiles.items()}
    bands = [
        Band("95 % interval", day.hour, q["q0.025"], q["q0.975"], faint=True),
        Band("80 % interval", day.hour, q["q0.1"], q["q0.9"]),
    ]
    lines = [
        Line("median", day.hour, q["q0.5"]),
        Line("operators' forecast", day.hour, day.operator * GW, 1, dash=True),
        Line("what happened", day.hour, day.demand * GW, 6),
    ]
    name = f"{day.respondent}, {day.date}: {day.why}"
    picture = plot(
        f"Forecast of demand of {name}", Axis("hour of the local day", every=1), Axis("GWh in the hour"), lines, bands
    )
    off = [float(np.abs(values - day.demand).mean()) for values in (day.quantiles["q0.5"], day.operator)]
    return figure(name, picture, f"Mean error {number(round(off[0]))} MWh, the operators' {number(round(off[1]))} MWh.")


def control(found: Control | Absent) -> str:
    """PoP by region with its gaps, learning curves, a week a region."""
    if isinstance(found, Absent):
        return section("control", absent(found))
    result = found.result
    state = "finished and proved" if found.proved else "finished" if result else "not finished: start it again to go on"
    known = f"Known ahead: {found.known or 'not recorded'}."
    content = [say(f"{state[0].upper()}{state[1:]}. {found.intro or known}")]
    if found.pops:
        content += [
            say(
                "PoP is the share of the perfect-foresight optimum's saving that a way of deciding earns: 1 is the optimum, 0 is "
                "doing nothing, below 0 is worse than nothing."
            ),
            _pop_table(found.pops),
        ]
    pictures = [_pop_bars(found.pops)] if found.pops else []
    if len(found.history[0]):
        pictures.append(_learning(*found.history))
    name, x, y = found.curve
    if len(x):
        picture = plot(f"{name} by version", Axis("version", least=1), Axis(name), [Line(name, x, y)])
        pictures.append(figure("Learning, training years", picture, f"The learner's own figure, {name}."))
    content.append(figures(*pictures))
    if found.weeks:
        content.append("<h3>A week of dispatch</h3>")
        content.append(
            say(
                "Of each region's test year, the whole week with the highest load, played again with the policy on disk."
            )
        )
        content.append(figures(*map(_week, found.weeks)))
    if found.tables:
        numbers_of = [f"<h4>{name}</h4>{table(rows[0], rows[1:])}" for name, rows in found.tables.items()]
        content.append(folded("Numbers for users of a grid, by region", "".join(numbers_of)))
    return section("control", "".join(content))


def _learning(version: Floats, pop: Floats) -> str:
    """Validation PoP; what is far below doing nothing is named instead of drawn, so that the rest can be told apart."""
    drawn = (pop >= FAR_BELOW) | (pop.max() < FAR_BELOW)
    line = Line("policy", version[drawn], pop[drawn], dots=True)
    best = [("best", float(pop.max()))]
    picture = plot("PoP on the validation year by version", Axis("version", least=1), Axis("PoP"), [line], marks=best)
    below = ", ".join(f"version {number(v)} at {p:.2f}" for v, p in zip(version[~drawn], pop[~drawn], strict=True))
    said = f" Below the picture: {below}." if below else ""
    return figure("Learning, validation year", picture, f"Every version that was looked at; the best is kept.{said}")


def _pop_table(pops: Mapping[str, Mapping[str, float | None]]) -> str:
    names = [name for name in POLICIES if any(name in row for row in pops.values())]
    rows = []
    for name in names:
        values = [_value(row.get(name)) for row in pops.values()]
        rows.append([POLICIES[name], *(_pop(value) for value in values), _pop(_mean(values))])
    members = [[_value(value) for name, value in row.items() if name.startswith("member")] for row in pops.values()]
    if all(members):
        alone = [_mean(each) for each in members]
        rows.append([f"its {len(members[0])} members, each alone", *map(_pop, alone), _pop(_mean(alone))])
    for part in ("horizon", "forecast", "policy"):
        values = [_gap(row, part) for row in pops.values()]
        if any(isfinite(value) for value in values):
            rows.append([f"gap: {part}", *(_pop(value) for value in values), _pop(_mean(values))])
    return table(["PoP, test year", *pops, "mean"], rows)


def _value(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _pop(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "–"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if isfinite(value)]
    return sum(known) / len(known) if known else float("nan")


def _gap(row: Mapping[str, float | None], part: str) -> float:
    """A part of 1 - PoP; NaN where the plans that it is measured by were not asked for."""
    planned = [_value(row.get(name)) for name in ("mpc perfect", "mpc", "policy")]
    return float(getattr(gaps(*planned), part))


def _pop_bars(pops: Mapping[str, Mapping[str, float | None]]) -> str:
    parts = [Part("policy", np.array([_value(row.get("policy")) for row in pops.values()]), 0)]
    for style, part in enumerate(("policy", "forecast", "horizon"), 1):
        # Where the policy does better than planning on its forecast, so much of the forecast's gap is closed.
        closed = [min(0.0, _gap(row, "policy")) if part == "forecast" else 0.0 for row in pops.values()]
        height = np.array([max(0.0, _gap(row, part) + less) for row, less in zip(pops.values(), closed, strict=True)])
        if np.isfinite(height).any() and height.any():
            parts.append(Part(f"gap: {part}", height, style, faint=True))
    marks = [
        Part(POLICIES[name], np.array([_value(row.get(name)) for row in pops.values()]), style)
        for name, style in (("hour rule", 4), ("mpc", 6))
        if any(name in row for row in pops.values())
    ]
    picture = stacks(
        "PoP by region with its gaps to the optimum", list(pops), Axis("PoP", zero=True), parts, marks, top=1.0
    )
    key = [(f"f{part.style}" + (" faint" if part.faint else ""), part.name) for part in parts]
    key += [("lk" if mark.style == 6 else f"l{mark.style}", mark.name) for mark in marks]
    return figure(
        "PoP by region",
        picture,
        "Columns: the policy, then what is lost by it, by the forecast and by the horizon, up to the optimum at 1. "
        "Lines: baselines.",
        key,
    )


def _week(week: Week) -> str:
    """Net load above, the stores' power below, over the same hours."""
    hour = np.arange(len(week.load), dtype=float)
    axis = Axis("hour of the week, from local midnight", every=24)
    lines = [
        Line("without control", hour, week.load * GW, 6),
        Line("with the policy", hour, week.policy * GW),
        Line("optimum", hour, week.optimum * GW, 1, dash=True),
    ]
    stores = [Line(name, hour, power * GW, 2 + i, step=True) for i, (name, power) in enumerate(week.stores.items())]
    name = f"{week.region}, {week.start}"
    above = plot(f"Net load of {name}", axis, Axis("net load, GW"), lines)
    below = plot(f"Power of the stores of {name}", axis, Axis("stores into the grid, GW"), stores)
    key = [("lk" if line.style == 6 else _key(line)[0], line.name) for line in lines] + [_key(line) for line in stores]
    return figure(
        name, above + below, "Net load, and net load less what the stores give. Below 0 a store charges.", key
    )
