"""Plots and tables of the forecast evaluation, made from its JSON lines; used by `python -m scripts.evaluate.forecast plot | docs`."""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ingest.errors import quoted
from scripts.bench.common import IMAGES, ROOT, drawn, read_lines, rewrite_section
from scripts.bench.common import markdown_table as table
from worker.forecast.baselines.table import NEIGHBOURS

DOCS = ROOT / "docs" / "reference" / "forecasting.md"
BEGIN, END = "<!-- evaluation: begin (scripts/evaluate/forecast.py docs) -->", "<!-- evaluation: end -->"
FIRST, FIRST_END = "<!-- headline: begin (scripts/evaluate/forecast.py docs) -->", "<!-- headline: end -->"
SIGNIFICANT = 0.01  # level of the Diebold-Mariano test that the tables count
Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Return the lines; SystemExit if there are none."""
    lines = read_lines(path)
    if not lines:
        raise SystemExit(
            f"no lines in {path}; run `python -m scripts.evaluate.forecast run --out {quoted(path)}` first"
        )
    return lines


def _main(lines: list[Line], label: str = "main") -> dict[str, dict[str, list[Line]]]:
    """Map contender and respondent to the lines of a comparison."""
    found: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["label"] == label and line["respondent"] != "mean":
            found[line["who"]][line["respondent"]].append(line)
    return found


def _mean(lines: list[Line], key: str) -> float:
    return float(np.mean([line[key] for line in lines]))


def _averaged(lines: list[Line], label: str) -> list[str]:
    """Return the respondents of a comparison's means: all of it where its lines do not name them."""
    named = [line["averaged"] for line in lines if line["label"] == label and "averaged" in line]
    return named[0] if named else list(_main(lines, label)["operators"])


def _spread(lines: list[Line], key: str) -> str:
    values = [line[key] for line in lines]
    text = f"{np.mean(values):+.3f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.3f}"


def _skills(lines: list[Line]) -> str:
    found = _main(lines)
    respondents = list(found["operators"])
    rows = []
    for who, by_respondent in found.items():
        cells = [_spread(by_respondent[name], "skill") for name in respondents]
        mean = np.mean([_mean(by_respondent[name], "skill") for name in _averaged(lines, "main")])
        rows.append([who, *cells, f"{mean:+.3f}"])
    return table(["MAE skill over DF", *respondents, "mean"], rows)


def _rivals(lines: list[Line]) -> list[str]:
    """Return the names that contenders are compared with: the operators, and the best baseline if there are baselines."""
    return sorted({name for line in lines for name in line.get("over", {})}, key=lambda name: name != "operators")


def _tested(lines: list[Line], rival: str) -> str:
    """Return the mean gain over a rival and, of several runs, the greatest p."""
    found = [line["over"][rival] for line in lines if rival in line.get("over", {})]
    if not found:
        return "–"
    return f"{np.mean([one['skill'] for one in found]):+.3f} ({_p(max(one['p'] for one in found))})"


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p {p:.4f}" if p < 0.01 else f"p {p:.2f}"


def _gains(lines: list[Line]) -> str:
    """Return a table a rival: gain of each contender over it by respondent, with the test's p."""
    found = _main(lines)
    respondents = list(found["operators"])
    tables = []
    for rival in _rivals([line for line in lines if line["label"] == "main"]):
        rows = [
            [who, *(_tested(by_respondent[name], rival) for name in respondents)]
            for who, by_respondent in found.items()
            if who != rival
        ]
        tables.append(table([f"against {rival}", *respondents], rows))
    return "\n\n".join(tables)


def _headline(lines: list[Line], label: str = "main") -> str:
    """Return one line a contender: mean skill of validation and test hours, gains and how many respondents gain significantly."""
    found = _main(lines, label)
    means = defaultdict(list)
    for line in lines:
        if line["label"] == label and line["respondent"] == "mean":
            means[line["who"]].append(line)
    rivals = _rivals([line for line in lines if line["label"] == label])
    rows = []
    for who, by_respondent in found.items():
        if who in ("operators", "weekly naive"):
            continue
        averaged = {name: by_respondent[name] for name in _averaged(lines, label)}
        every = [line for own in averaged.values() for line in own]
        row = [who, f"{_mean(every, 'validation_skill'):+.3f}", f"**{_mean(every, 'skill'):+.3f}**"]
        for rival in rivals:
            better = sum(_is_better(own, rival) for own in averaged.values())
            of = f", {better} of {len(averaged)}" if who != rival and means[who] else ""
            row.append(_tested(means[who], rival) + of)
        rows.append(row)
    names = ["DF" if name == "operators" else name for name in rivals]
    return table(["mean skill over DF", "validation", "test", *(f"over {name}" for name in names)], rows)


def _comparisons(lines: list[Line]) -> list[str]:
    """Return the headline of each comparison beside the main one: those whose lines have a baseline and other respondents."""
    parts = []
    for label in dict.fromkeys(
        line["label"] for line in lines if line["who"] == "operators" and line["label"] != "main"
    ):
        names = [f"{name} {_mean(own, 'skill'):+.2f}" for name, own in _main(lines, label).get(NEIGHBOURS, {}).items()]
        parts += [
            f"**{len(names)} {label}** ({NEIGHBOURS}, test hours): " + ", ".join(names) + ".",
            _headline(lines, label),
        ]
    return parts


def _is_better(lines: list[Line], rival: str) -> bool:
    """Return whether every run that was tested gains over the rival at the level of `SIGNIFICANT`."""
    found = [line["over"][rival] for line in lines if rival in line.get("over", {})]
    return bool(found) and all(one["skill"] > 0 and one["p"] < SIGNIFICANT for one in found)


def _details(lines: list[Line]) -> str:
    rows = []
    for who, by_respondent in _main(lines).items():
        for name, found in by_respondent.items():
            cells = [
                f"{_mean(found, 'mae'):,.0f}",
                f"{_mean(found, 'mape'):.2%}",
                f"{_mean(found, 'peak_mape'):.2%}",
                f"{_mean(found, 'mase'):.3f}",
            ]
            if "crps" in found[0]:
                cells += [
                    f"{_mean(found, 'crps'):,.0f}",
                    f"{_mean(found, 'coverage_80'):.1%}",
                    f"{_mean(found, 'coverage_95'):.1%}",
                ]
            else:
                cells += ["–"] * 3
            rows.append([who, name, *cells])
    header = ["", "", "MAE, MWh", "MAPE", "peak-hour MAPE", "MASE", "CRPS, MWh", "80% covers", "95% covers"]
    return table(header, rows)


def _ablation(lines: list[Line], label: str = "context", key: str = "skill") -> dict[int, list[float]]:
    """Map context in hours to the mean over respondents of `key`, one a seed."""
    by_run: dict[tuple[int, int], list[float]] = defaultdict(list)
    for line in lines:
        if line["label"] == label:
            by_run[line["context"], line["seed"]].append(line[key])
    found: dict[int, list[float]] = defaultdict(list)
    for (context, _), values in sorted(by_run.items()):
        found[context].append(float(np.mean(values)))
    return found


def _ablation_table(lines: list[Line]) -> str:
    rows = []
    for label, words in (("context", ""), ("without DF", ", without DF")):
        test, validation = _ablation(lines, label), _ablation(lines, label, "validation_skill")
        for hours, skills in test.items():
            cells = [f"{np.mean(x):+.4f} ({min(x):+.4f} … {max(x):+.4f})" for x in (validation[hours], skills)]
            rows.append([f"{hours:,} h{words}", *cells, str(len(skills))])
    header = ["context", "validation: mean skill (over seeds)", "test: mean skill over DF (over seeds)", "seeds"]
    return table(header, rows)


def _by(lines: list[Line], key: str, names: list[str]) -> str:
    found = _main(lines)["forecaster"]
    rows = [
        [name, *(f"{np.nanmean([line[key][i] for line in found[name]]):+.2f}" for i in range(len(names)))]
        for name in found
    ]
    return table(["", *names], rows)


def docs(options: argparse.Namespace) -> int:
    """Rewrite the generated sections of docs/reference/forecasting.md."""
    lines = read(options.lines)
    seeds = len({line["seed"] for line in lines if line["label"] == "main" and line["who"] == "forecaster"})
    first = next(line for line in lines if line["label"] == "main")
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    respondents = list(_main(lines)["operators"])
    headline = [
        f"{', '.join(respondents)}; test hours {first['period']} (UTC). In brackets: p of a Diebold-Mariano test of the mean difference; "
        f"after it, in how many respondents the difference is positive with p < {SIGNIFICANT}.",
        _headline(lines),
        "![skill by respondent](../images/forecast_skill.png)",
        *_comparisons(lines),
    ]
    rewrite_section(DOCS, FIRST, FIRST_END, "\n\n".join(headline))
    parts = [
        f"Test hours {first['period']} (UTC); the forecaster's figures are means over {seeds} seed(s).",
        _skills(lines),
        "Differences of skill, with the p of the Diebold-Mariano test (of several seeds the greatest):",
        _gains(lines),
        _details(lines),
        "Context, each trained from scratch:",
        _ablation_table(lines),
        "![skill against context](../images/forecast_context.png)",
        "Skill by month:",
        _by(lines, "skill_by_month", months),
        "Skill by local hour:",
        _by(lines, "skill_by_hour", [str(h) for h in range(24)]),
        "![fan charts](../images/forecast_days.png)",
    ]
    rewrite_section(DOCS, BEGIN, END, "\n\n".join(parts))
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw the pictures that docs/reference/forecasting.md shows."""
    lines = read(options.lines)
    found = _main(lines)
    respondents = list(found["operators"])
    contenders = [who for who in found if who not in ("operators", "weekly naive")]
    width = 0.8 / len(contenders)
    with drawn(IMAGES / "forecast_skill.png", size=(9, 4)) as axes:
        for i, who in enumerate(contenders):
            skills = [_mean(found[who][name], "skill") for name in respondents]
            error = [np.std([line["skill"] for line in found[who][name]]) for name in respondents]
            at = np.arange(len(respondents)) + (i - (len(contenders) - 1) / 2) * width
            axes.bar(at, skills, width, yerr=error if max(error) > 0 else None, label=who)
        axes.set_xticks(range(len(respondents)), respondents)
        title = f"Test hours {lines[0]['period']} UTC"
        axes.set(ylabel="MAE skill over the operators' forecast", title=title)
        axes.axhline(0, color="black", linewidth=0.8)

    if hours := list(_ablation(lines)):
        with drawn(IMAGES / "forecast_context.png") as axes:
            for key, colour, name in (("validation_skill", "tab:blue", "validation"), ("skill", "tab:orange", "test")):
                by_hours = _ablation(lines, key=key)
                means = [np.mean(skills) for skills in by_hours.values()]
                axes.plot(hours, means, marker="o", color=colour, label=f"{name}, mean of seeds")
                for h, skills in by_hours.items():
                    axes.plot([h] * len(skills), skills, linestyle="", marker="_", markersize=12, color=colour)
            axes.set_xscale("log")
            axes.set_xticks(hours, [f"{h:,}" for h in hours])
            axes.minorticks_off()
            axes.set(xlabel="context, hours", ylabel="mean skill of the respondents")
            axes.set_title("Skill against context (dashes: seeds)")
    if options.run is not None and options.data is not None:
        _fans(options.data, options.run, lines[0]["period"])
    return 0


def _fans(data_dir: Path, run: Path, period: str) -> None:
    """Draw the day of highest demand of three respondents."""
    from ingest import manifest
    from ingest.columns import hour_number
    from worker.forecast.plot import draw_fan_chart
    from worker.forecast.predict import load_model, predict
    from worker.training.tokens import Period

    trained = load_model(run)
    store = trained.open_store(data_dir)
    start, _, end = period.partition(" to ")
    chosen = []
    for respondent in [name for name in ("ERCO", "MISO", "PACW") if name in trained.respondents]:
        whole = predict(trained, store, respondent, Period(hour_number(start), hour_number(end)))
        peak = int(whole.hours[np.nanargmax(whole.demand)])
        chosen.append(predict(trained, store, respondent, Period(peak - 36, min(peak + 36, hour_number(end)))))
    draw_fan_chart(chosen, IMAGES / "forecast_days.png", ", ".join(manifest.origins_of(data_dir)))
