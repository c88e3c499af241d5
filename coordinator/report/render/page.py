"""The page: sections under one heading, with a style sheet and nothing else. No script, nothing from a network."""

from __future__ import annotations

from html import escape

from coordinator.report.model import Absent, Facts, Provenance
from coordinator.report.render import sections_data, sections_runs
from coordinator.report.render.html import TITLES

LIGHT = {
    "ground": "#ffffff", "raised": "#f5f6f8", "ink": "#1b1f24", "soft": "#57606a", "rule": "#d5d9de",
    "c0": "#1f5fbf", "c1": "#c2500a", "c2": "#1a7f52", "c3": "#7a3fb0", "c4": "#b02a5b", "c5": "#7c8591",
    "h0": "#a5182b", "h1": "#e0765a", "h2": "#f5cdb4", "h3": "#cfe2ef", "h4": "#6aa8cf", "h5": "#2065ab", "hn": "#e4e6e9",
}  # fmt: skip
DARK = {
    "ground": "#14171a", "raised": "#1d2125", "ink": "#e8eaed", "soft": "#a3abb5", "rule": "#3a4149",
    "c0": "#6ca6f5", "c1": "#f09a5b", "c2": "#5cc596", "c3": "#bd92ea", "c4": "#ee7ba3", "c5": "#929ba7",
    "h0": "#e0475a", "h1": "#c96a4d", "h2": "#9c7a66", "h3": "#4a6274", "h4": "#3f7fae", "h5": "#5aa2e6", "hn": "#2a2f34",
}  # fmt: skip

RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,nav{max-width:1180px;margin:0 auto;padding:0 16px}
h1{font-size:1.7rem;margin:24px 0 4px}h2{font-size:1.35rem;margin:40px 0 8px;border-bottom:1px solid var(--rule)}
h3{font-size:1.05rem;margin:24px 0 6px}h4{font-size:.95rem;margin:0 0 4px}p{max-width:78ch;margin:8px 0}
a{color:var(--c0)}nav{padding:8px 16px}nav a{margin-right:14px;display:inline-block}
.origin{display:inline-block;border:1px solid var(--rule);border-radius:4px;padding:1px 8px;font-weight:600}
.synthetic{background:var(--c1);color:var(--ground);border-color:var(--c1)}
.absent{border-left:4px solid var(--c1);background:var(--raised);padding:10px 14px;overflow-wrap:anywhere}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:16px;margin:14px 0}
figure{margin:0;background:var(--raised);border-radius:6px;padding:10px 12px;min-width:0}
figcaption{color:var(--soft);font-size:.85rem;margin-top:4px}
svg{display:block;width:100%;height:auto}
svg text{font-size:12px;fill:var(--soft)}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:6px 0;padding:0;font-size:.85rem}
.key i{display:inline-block;width:18px;height:10px;margin-right:5px;vertical-align:middle}
.numbers{display:flex;flex-wrap:wrap;gap:8px 28px;margin:12px 0}.numbers div{min-width:0}
.numbers dd{margin:0;font-size:1.35rem;font-weight:600}.numbers dt{color:var(--soft);font-size:.85rem}
.table{overflow-x:auto;margin:10px 0;background:linear-gradient(90deg,var(--ground) 40%,transparent) 0/48px 100% local,
linear-gradient(270deg,var(--ground) 40%,transparent) 100%/48px 100% local,linear-gradient(90deg,var(--rule),transparent) 0/16px 100%,
linear-gradient(270deg,var(--rule),transparent) 100%/16px 100%;background-repeat:no-repeat}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
td:first-child{min-width:8em}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
details{margin:10px 0}summary{cursor:pointer;color:var(--c0)}
footer{color:var(--soft);font-size:.85rem;margin:40px 0 24px}
svg .grid{stroke:var(--rule);stroke-width:.6}svg .zero{stroke:var(--soft);stroke-width:1}
svg .axis{stroke:var(--soft);stroke-width:.8}svg .mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3}
svg path,svg .thick{fill:none;stroke-width:1.8;stroke-linejoin:round}svg .thick{stroke-width:2.6}
svg .dash{stroke-dasharray:6 3}.key .dash{border-top-style:dashed!important}
.faint{opacity:.45}polygon.faint{opacity:.5}
"""


def style() -> str:
    """The style sheet: colours as variables of both schemes, then the rules."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in each.items()) for each in (LIGHT, DARK))
    colours = [f"svg .s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i});background:var(--c{i})}}" for i in range(6)]
    colours += [f".key .l{i}{{height:0;border-top:3px solid var(--c{i})}}" for i in range(6)]
    colours += [".key .lk{height:0;border-top:3px solid var(--ink)}svg .s6{stroke:var(--ink)}.f6{fill:var(--ink)}"]
    colours += [
        f"polygon.b{i}{{fill:var(--c{i});opacity:.35}}polygon.b{i}.faint{{opacity:.17}}"
        f".key .b{i}{{background:var(--c{i});opacity:.45}}.key .b{i}.faint{{opacity:.2}}"
        for i in range(2)
    ]
    shades = [*(f"h{i}" for i in range(6)), "hn"]
    colours += [f".{name}{{fill:var(--{name});background:var(--{name})}}" for name in shades]
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{RULES}{''.join(colours)}"


def page(facts: Facts) -> str:
    """The whole page; every section is there whatever has run."""
    sections = [
        sections_data.coverage(facts.hours),
        sections_data.extraction(facts.extraction),
        sections_runs.training(facts.training),
        sections_runs.forecasts(facts.forecasts),
        sections_runs.control(facts.control),
        sections_data.ring(facts.ring),
        sections_data.provenance(facts.provenance),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in TITLES.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Report of {escape(facts.data)}</title><style>{style()}</style></head><body>"
        f"<header><h1>Report of {escape(facts.data)}</h1>{_origin(facts.provenance)}</header><nav>{links}</nav>"
        f"<main>{''.join(sections)}<footer>Made by <code>coordinator report</code> from what lies on disk; the same folder "
        "gives the same page.</footer></main></body></html>\n"
    )


def _origin(provenance: Provenance | Absent) -> str:
    """Synthetic hours say so before anything else."""
    if isinstance(provenance, Absent):
        return ""
    kind = "synthetic" if "synthetic" in provenance.origins else "measured"
    said = {
        "synthetic": "SYNTHETIC: a made-up grid, no measured hour",
        "measured": f"measured hours, from {', '.join(provenance.origins)}",
    }
    return f'<p><span class="origin {kind}">{escape(said[kind])}</span></p>'
