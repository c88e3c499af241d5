"""The generated tables of docs/reference/control.md, from the lines of control_baselines.py and control_ablation.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl.evaluation.kpis import LABELS
from rl.evaluation.score import gaps
from scripts.bench.common import markdown_table

YESTERDAY, PERFECT, LEARNT = "mpc yesterday", "mpc perfect", "policy"
POLICIES = {
    "hour rule": "the best rule by month and hour",
    "peak shaving": "marks of the last day",
    YESTERDAY: "yesterday's hours",
    "mpc DF": "the operators' day-ahead forecast",
    "mpc DF corrected": "DF, corrected by its last errors",
    "mpc forecaster": "our forecaster's median, corrected by its last errors",
    "mpc forecaster quantiles": "the same, with quantiles of its errors",
    "mpc hourly": "our forecast re-issued every hour",
    "mpc paths": "the same, as coherent paths",
    PERFECT: "the truth",
    LEARNT: "the learnt policy",
}
BEST = ("mpc paths", LEARNT)  # whose quarters and parts are shown
COMPARED = ("nothing", "hour rule", "mpc DF", "mpc forecaster quantiles", *BEST)  # by the indicators
KPIS_OF = "ERCO"  # the region whose indicators are shown
WORTHLESS = 0.5  # PoP below which a quarter is named

Lines = Mapping[tuple[str, str, str], dict]  # by region, title and policy


def docs(lines: list[dict]) -> str:
    """Return the generated tables."""
    latest = {(line["region"], title(line), line["policy"]): line for line in lines if "policy" in line}
    parts = []
    for year in (years := sorted({key[1] for key in latest})):
        regions = [name for name, of, policy in latest if (of, policy) == (year, "nothing")]
        rows = {
            policy: [latest[r, year, policy]["pop"] if (r, year, policy) in latest else None for r in regions]
            for policy in POLICIES
        }
        text = [f"| {year} | " + " | ".join(regions) + " | mean |", "|---" * (len(regions) + 2) + "|"]
        text += [pop_row(policy, pops) for policy, pops in rows.items() if set(pops) != {None}]
        for label, key in (("saving of the optimum, % of cost", "saving_optimum"), ("weeks", "weeks")):
            values = [latest[r, year, "nothing"][key] for r in regions]
            cells = [f"{100 * v:.2f}" if key == "saving_optimum" else str(v) for v in values]
            text.append(f"| *{label}* | " + " | ".join(cells) + " | |")
        parts.append("\n".join(text))
        parts += year_tables(latest, year, regions)
    order = dict.fromkeys(line["region"] for line in lines)
    found = {line["region"]: line["whole_year"] for line in lines if "whole_year" in line}
    whole = {name: found[name] for name in order if name in found}
    if whole:
        parts.append(whole_table(whole))
    ablation = [line for line in lines if "known" in line]
    if ablation:
        parts.append(ablation_table(ablation))
    shown = {year: sum((KPIS_OF, year, policy) in latest for policy in COMPARED) for year in years}
    if shown and max(shown.values()):
        parts.append(kpi_table(latest, KPIS_OF, max(years, key=lambda year: shown[year])))
    return "\n\n".join(parts)


def title(line: Mapping[str, Any]) -> str:
    """Return the hours that a line is of, in words, and what was known: older lines name no `every` and are of one week in four."""
    every, publication = line.get("every", 4), line.get("publication")
    weeks = "every week" if every == 1 else f"one week in {every}"
    return f"{line['year']}, {weeks}" + (f", known as in `{publication}`" if publication else "")


def year_tables(latest: Lines, year: str, regions: Sequence[str]) -> list[str]:
    """Return the tables of a year whose lines have quarters and parts: the other scale, the gap, quarters, parts."""
    if not all("quarters" in latest[r, year, "nothing"] for r in regions):
        return []
    shown = [policy for policy in BEST if all((r, year, policy) in latest for r in regions)]
    tables = [above_persistence(latest, year, regions)]
    if len(shown) == len(BEST):
        tables.append(gap_table(latest, year, regions))
    if shown:
        tables += [quarter_table(latest, year, regions, shown), *worthless(latest, year, regions, shown)]
        tables.append(parts_table(latest, year, regions, shown))
    return tables


def above_persistence(latest: Lines, year: str, regions: Sequence[str]) -> str:
    """Return the table of PoP on the scale on which planning on yesterday's hours is 0."""
    header = [f"{year}, yesterday's hours = 0", *regions, "mean"]
    rows = []
    for policy in POLICIES:
        if policy != YESTERDAY and all((r, year, policy) in latest for r in regions):
            pops = []
            for r in regions:
                zero, own = latest[r, year, YESTERDAY]["pop"], latest[r, year, policy]["pop"]
                pops.append((own - zero) / (1 - zero))
            rows.append([policy, *(f"{pop:.3f}" for pop in (*pops, float(np.mean(pops))))])
    return markdown_table(header, rows)


def gap_table(latest: Lines, year: str, regions: Sequence[str]) -> str:
    """Return the table of 1 - PoP of the policy in its three parts."""
    found = [gaps(*(latest[r, year, policy]["pop"] for policy in (PERFECT, *BEST))) for r in regions]
    rows = []
    for name, label in (
        ("horizon", "horizon: 36 hours of the truth"),
        ("forecast", "forecast: paths for the truth"),
        ("policy", "policy: network for MPC"),
    ):
        parts = [getattr(one, name) for one in found]
        rows.append([label, *(f"{part:.3f}" for part in (*parts, float(np.mean(parts))))])
    return markdown_table([f"{year}: lost by", *regions, "mean"], rows)


def quarter_pops(line: Mapping[str, list[dict]]) -> list[float]:
    """Return PoP of each quarter."""
    return [(q["idle"] - q["cost"]) / (q["idle"] - q["optimum"]) for q in line["quarters"]]


def quarter_table(latest: Lines, year: str, regions: Sequence[str], shown: Sequence[str]) -> str:
    """Return the table of PoP by quarter."""
    rows = []
    for policy in shown:
        columns = [quarter_pops(latest[r, year, policy]) for r in regions]
        for number, quarter in enumerate(latest[regions[0], year, policy]["quarters"]):
            pops = [column[number] for column in columns]
            rows.append([f"{policy}, Q{quarter['quarter']}", *(f"{p:.3f}" for p in (*pops, float(np.mean(pops))))])
    return markdown_table([f"{year}, by quarter", *regions, "mean"], rows)


def worthless(latest: Lines, year: str, regions: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Return the list of quarters below `WORTHLESS`, with what the optimum saves there; nothing where there is none."""
    found = []
    for r in regions:
        for policy in shown:
            line = latest[r, year, policy]
            for quarter, pop in zip(line["quarters"], quarter_pops(line), strict=True):
                if pop < WORTHLESS:
                    saved, whole = quarter["idle"] - quarter["optimum"], quarter["idle"]
                    share = saved / sum(q["idle"] - q["optimum"] for q in line["quarters"])
                    found.append(
                        f"- {r}, quarter {quarter['quarter']}, {policy}: PoP {pop:.3f}. The optimum saves "
                        f"${saved / 1e6:.3f} M there, {100 * saved / whole:.3f} % of cost and {100 * share:.1f} % of its saving of the year."
                    )
    return ["\n".join([f"Quarters of {year} below {WORTHLESS:.1f}:", "", *found])] if found else []


def parts_table(latest: Lines, year: str, regions: Sequence[str], shown: Sequence[str]) -> str:
    """Return the table of costs by part less those of doing nothing."""
    names = list(latest[regions[0], year, "nothing"]["parts"])
    rows = []
    for r in regions:
        idle = latest[r, year, "nothing"]["parts"]
        for policy in ("optimum", *shown):
            less = [latest[r, year, policy]["parts"][name] - idle[name] for name in names]
            rows.append([f"{r}, {policy}", *(f"{part / 1e6:,.3f}" for part in (*less, sum(less)))])
    return markdown_table([f"{year}: cost less that of doing nothing, M$", *names, "sum"], rows)


def pop_row(label: str, pops: Sequence[float | None]) -> str:
    """Return a row of a table of PoPs, with their mean if none is missing."""
    cells = [f"{pop:.3f}" if pop is not None else "not run" for pop in pops]
    found = [pop for pop in pops if pop is not None]
    mean = f"{float(np.mean(found)):.3f}" if len(found) == len(pops) else "of all only"
    return f"| {label} | " + " | ".join([*cells, mean]) + " |"


def whole_table(whole: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table of the policy and its members in all weeks of the test year."""
    regions = list(whole)
    text = ["| every week | " + " | ".join(regions) + " | mean |", "|---" * (len(regions) + 2) + "|"]
    named = [name for name in next(iter(whole.values())) if not name.startswith("member")]
    text += [pop_row(name, [whole[r].get(name) for r in regions]) for name in named]
    members = np.array([[pop for name, pop in whole[r].items() if name.startswith("member")] for r in regions])
    if members.size:
        cells = [f"{each.mean():.3f} ± {each.std():.3f}" for each in (*members, members.mean(axis=0))]
        text.append(f"| its {members.shape[1]} members (seeds), each alone | " + " | ".join(cells) + " |")
    return "\n".join(text)


def ablation_table(lines: list[dict]) -> str:
    """Return the table of one member a kind of foreknowledge; means over seeds."""
    kinds = list(dict.fromkeys(line["known"] for line in lines))
    seeds = len({line["seed"] for line in lines})
    regions = list(dict.fromkeys(line["region"] for line in lines))
    steps = lines[-1]["steps"]
    text = [f"| known ahead ({steps} steps, {seeds} seed{'s'[: seeds > 1]}) | " + " | ".join(regions) + " | mean |"]
    text.append("|---" * (len(regions) + 2) + "|")
    for kind in kinds:
        own = [[line["pop"] for line in lines if (line["known"], line["region"]) == (kind, r)] for r in regions]
        text.append(pop_row(kind, [float(np.mean(pops)) if pops else None for pops in own]))
    return "\n".join(text)


def kpi_table(latest: Lines, name: str, year: str) -> str:
    """Return the table of some of a region's indicators, one column a policy."""
    shown = [policy for policy in COMPARED if (name, year, policy) in latest]
    numbers = {policy: latest[name, year, policy]["kpis"] for policy in shown}
    rows = [f"| {name} {year} | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for key, (label, unit) in LABELS.items():
        rows.append(f"| {label} | " + " | ".join(f"{numbers[p][key] * unit:,.4g}" for p in shown) + " |")
    rows += [
        f"| cycles of {store} | " + " | ".join(f"{numbers[p]['cycles'][store]:,.4g}" for p in shown) + " |"
        for store in numbers["nothing"]["cycles"]
    ]
    return "\n".join(rows)
