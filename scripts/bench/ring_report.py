"""Plots and tables of the ring benchmark, made from its JSON lines; used by `python -m scripts.bench.ring plot | docs`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench.common import IMAGES, ROOT, drawn, read_lines, rewrite_section
from scripts.bench.common import markdown_table as table

DOCS = ROOT / "docs" / "reference" / "ring_attention.md"
BEGIN, END = "<!-- benchmark: begin (scripts/bench/ring.py docs) -->", "<!-- benchmark: end -->"
HEADLINE = ((8192, True), (16384, True), (8192, False))
"""(length, causal) of forward + backward"""
CASE = ("what", "length", "causal", "backward", "ranks", "layout", "dtype", "kernel", "weights", "slow", "link_share")


def flops(line: dict) -> float:
    """Return the useful floating-point operations of a case."""
    work = (14 if line["backward"] else 4) * line["length"] ** 2 * line["dim"] * line["heads"]
    return work * (0.5 if line["causal"] else 1.0)


def named(line: dict) -> str:
    """Return a contender's name in tables and legends."""
    if line["what"] != "ring":
        return " ".join([line["what"], *(f"{k} {v}" for k, v in (line.get("setting") or {}).items())])
    parts = [f"ring of {line['ranks']}" if line["ranks"] > 1 else "one process"]
    parts += [line[k] for k in ("layout", "kernel") if line.get(k)]
    parts += ["one rank slowed"] if line.get("slow") else []
    parts += ["weighted shares"] if line.get("weights") else []
    parts += [f"link at {line['link_share']:.0%} of the computation"] if line.get("link_share") else []
    parts += [line["dtype"]] if line["dtype"] != "float32" else []
    return ", ".join(parts)


CALM = 0.75  # of the best FMA peak


def read(path: Path) -> list[dict]:
    """Return one line a case: the repeats of all its rounds, the largest memory, the reason if it was always skipped.

    Rounds in which the FMA peak was below `CALM` of the best were disturbed by other work: they count only if a case has
    no other round, and then only for memory.
    """
    cases: dict[str, dict] = {}
    lines = read_lines(path)
    calm = CALM * max((line["fma_peak"] for line in lines if "fma_peak" in line), default=0.0)
    for line in lines:
        key = json.dumps([line.get(k) for k in (*CASE, "tuning", "setting")])
        before = cases.get(key, {})
        line["disturbed"] = line.get("fma_peak", calm) < calm
        if line["disturbed"] and "seconds" in before:
            continue
        if before.get("disturbed"):
            before = {}
        if "seconds" in line and "seconds" in before:
            for name in ("compute", "wait"):
                if name in line:
                    line[name] = [a + b for a, b in zip(before[name], line[name], strict=True)]
            line["seconds"] = before["seconds"] + line["seconds"]
            line["peak"] = [max(pair) for pair in zip(before["peak"], line["peak"], strict=True)]
            line["fma_peak"] = max(before["fma_peak"], line["fma_peak"])
        if "seconds" in line or "seconds" not in before:
            cases[key] = line
    for line in cases.values():
        if "seconds" in line:
            line |= {"best": min(line["seconds"]), "median": median(line["seconds"])}
    return list(cases.values())


class Lines:
    """The lines, with the queries of the tables."""

    def __init__(self, lines: list[dict]) -> None:
        self.all = lines
        self.done = [line for line in lines if "best" in line]
        if not self.done:
            raise SystemExit("no measurement in the file; run `python -m scripts.bench.ring run --out FILE` first")
        # Other work on the machine can only lower a measured peak.
        self.peak = max(line["fma_peak"] for line in self.done)

    def find(
        self, what: str, length: int, *, causal: bool = True, backward: bool = True, **more: object
    ) -> dict | None:
        """Return a case's line, a peer's with its fastest setting; keys not named must be unset."""
        wanted = {"what": what, "length": length, "causal": causal, "backward": backward, "dtype": "float32", **more}
        plain = ("layout", "kernel", "weights", "slow", "link_share", "tuning")
        found = [
            line
            for line in self.done
            if all(line.get(k) == v for k, v in wanted.items()) and not any(line.get(k) for k in plain if k not in more)
        ]
        return min(found, key=lambda line: line["median"], default=None)

    def lengths(self) -> list[int]:
        """Return all lengths that were measured."""
        return sorted({line["length"] for line in self.done if not line.get("tuning")})

    def share(self, line: dict) -> float:
        """Return the share of the best FMA peak in the file."""
        return flops(line) / line["median"] / self.peak


CONTENDERS: tuple[tuple[str, dict], ...] = (
    ("one process", {"what": "ring", "ranks": 1}),
    ("ring of 2", {"what": "ring", "ranks": 2}),
    ("ring of 4", {"what": "ring", "ranks": 4}),
    ("torch SDPA", {"what": "torch"}),
    ("ring-attention-pytorch", {"what": "ring-attention-pytorch"}),
    ("JAX ringattention", {"what": "jax-ringattention"}),
    ("mx.fast", {"what": "mx.fast"}),
)


def _cells(lines: Lines, show: Callable[[dict], str], **case: bool) -> str:
    lengths = lines.lengths()
    rows = []
    for name, asked in CONTENDERS:
        found = [lines.find(length=length, **{**asked, **case}) for length in lengths]
        if any(found):
            rows.append([name, *(show(line) if line else "–" for line in found)])
    return table(["", *(f"{length:,}" for length in lengths)], rows)


def _ratios(lines: Lines) -> str:
    rows = []
    for length, causal in HEADLINE:
        ours = lines.find("ring", length, causal=causal, ranks=2)
        alone = lines.find("ring", length, causal=causal, ranks=1)
        if ours is None:
            continue
        at_peak = flops(ours) / lines.peak
        row = [f"{length:,} {'causal' if causal else 'full'}", f"{at_peak:.3f} s"]
        row.append(f"{ours['median']:.3f} s ({ours['best']:.3f})")
        peers = ("torch", "jax-ringattention", "ring-attention-pytorch")
        row += [_times(lines.find(peer, length, causal=causal), ours) for peer in peers]
        row.append(f"{alone['median'] / ours['median']:.0%} ({alone['best'] / ours['best']:.0%})" if alone else "–")
        best = flops(alone) / alone["best"] / lines.peak if alone else 0.0
        row.append(f"{lines.share(alone):.0%} ({best:.0%})" if alone else "–")
        rows.append(row)
    header = [
        "forward + backward",
        "at the FMA peak",
        "ring of 2",
        "torch SDPA takes",
        "JAX ringattention",
        "ring-attention-pytorch",
    ]
    return table([*header, "of one process's speed", "one process, of FMA peak"], rows)


def _times(line: dict | None, ours: dict) -> str:
    return f"{line['median'] / ours['median']:.2f}× ({line['best'] / ours['best']:.2f}×)" if line else "–"


def _rest(lines: Lines) -> str:
    unusual = ("layout", "kernel", "slow", "link_share")
    special = [
        line
        for line in lines.done
        if line["what"] == "ring"
        and (
            any(line.get(k) for k in unusual)
            or line["dtype"] != "float32"
            or (line["ranks"] == 2 and line["backward"] and (line["length"], line["causal"]) in HEADLINE)
        )
    ]
    rows = []
    for line in special:
        case = {name: line[name] for name in ("causal", "backward", "ranks")}
        plain = lines.find("ring", line["length"], **case, **({"slow": line["slow"]} if line.get("weights") else {}))
        busy = [median(rank) for rank in line["compute"]]
        against = (
            "–"
            if plain is None
            else f"{line['median'] / plain['median']:.2f}× {'equal shares' if line.get('weights') else 'plain'}"
        )
        if line.get("predicted"):
            against = f"predicted {line['predicted']:.3f} s"
        what = named(line) + ("" if line["causal"] else ", full")
        rows.append(
            [f"{line['length']:,}", what, f"{line['median']:.3f} s", against, f"{max(busy) / min(busy) - 1:.1%}"]
        )
    return table(["tokens", "causal unless said", "time", "against", "busy times differ by"], rows)


def _tuning(lines: Lines) -> str:
    tried = [line for line in lines.done if line.get("tuning")]
    tried.sort(key=lambda line: (line["what"], line["length"], line["causal"], line["median"]))
    rows = [
        [
            line["what"],
            f"{line['length']:,} {'causal' if line['causal'] else 'full'}",
            json.dumps(line["setting"]),
            f"{line['median']:.3f} s",
        ]
        for line in tried
    ]
    return table(["peer", "forward + backward", "setting", "time"], rows)


def section(lines: Lines) -> str:
    """Return the generated part of docs/reference/ring_attention.md."""
    first = lines.done[0]
    versions = sorted({f"{line['what']} {line['version']}" for line in lines.done if line["what"] != "ring"})
    skipped = [f"- {line['length']:,} {named(line)}: {line['skipped']}" for line in lines.all if "skipped" in line]

    def time_of(line: dict) -> str:
        return "–" if line["disturbed"] else f"{line['median']:.3f}"

    parts = [
        f"Machine: {first['machine']}. One run, both cores for each contender, medians (and minima) of up to "
        f"{max(len(x['seconds']) for x in lines.done)} repeats in which the contenders took turns (steps over 3 s are not "
        f"warmed up: for these the minimum is the fairer figure); B1 H{first['heads']} D{first['dim']} fp32 unless said. "
        f"FMA peak {lines.peak / 1e9:.0f} GFLOP/s; where other work left less than {CALM:.0%} of it, no time is given. "
        f"Peers: {', '.join(versions)}, each at its best setting below.",
        _ratios(lines),
        "Seconds, causal, forward + backward:",
        _cells(lines, time_of, causal=True, backward=True),
        "Seconds, full, forward + backward:",
        _cells(lines, time_of, causal=False, backward=True),
        *(
            part
            for causal in (True, False)
            if any(line["causal"] == causal and not line["backward"] for line in lines.done)
            for part in (
                f"Seconds, {'causal' if causal else 'full'}, forward alone:",
                _cells(lines, time_of, causal=causal, backward=False),
            )
        ),
        "Peak memory a process in MB, causal, forward + backward:",
        _cells(lines, lambda x: f"{max(x['peak']) / 1e6:,.0f}", causal=True, backward=True),
        "Layouts, unequal hosts, kernels, slow links:",
        _rest(lines),
        "Settings tried for the peers:",
        _tuning(lines),
        *(["Not measured:", "\n".join(skipped)] if skipped else []),
        "![time](../images/ring_time.png) ![memory](../images/ring_memory.png)",
        "![share of peak](../images/ring_peak.png) ![efficiency](../images/ring_efficiency.png)",
    ]
    return "\n\n".join(parts)


def docs(options: argparse.Namespace) -> int:
    """Rewrite the generated section of docs/reference/ring_attention.md."""
    rewrite_section(DOCS, BEGIN, END, section(Lines(read(options.lines))))
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw docs/images/ring_*.png."""
    lines = Lines(read(options.lines))
    machine = lines.done[0]["machine"]
    legend_on_right: dict[str, Any] = {"fontsize": 8, "loc": "center left", "bbox_to_anchor": (1, 0.5)}

    def draw(name: str, title: str, unit: str, value: Callable[[dict], float], *, log: bool) -> None:
        with drawn(IMAGES / f"ring_{name}.png", size=(7, 4.5), **legend_on_right) as axes:
            for label, asked in CONTENDERS:
                found = [line for n in lines.lengths() if (line := lines.find(length=n, **asked))]
                found = [line for line in found if name == "memory" or not line["disturbed"]]
                if found:
                    axes.plot([line["length"] for line in found], [value(x) for x in found], marker="o", label=label)
            axes.set(xscale="log", yscale="log" if log else "linear", xlabel="tokens", ylabel=unit)
            axes.set_xticks(lines.lengths(), [f"{n // 1024}k" for n in lines.lengths()])
            axes.minorticks_off()
            if not log:
                axes.set_ylim(0, 1)
            axes.set_title(f"{title}\ncausal, forward + backward; {machine}", fontsize=9)

    draw("time", "Time of attention", "seconds", lambda x: x["median"], log=True)
    draw("memory", "Peak memory of a process", "MB", lambda x: max(x["peak"]) / 1e6, log=True)
    draw("peak", "Share of the measured FMA peak", "share", lines.share, log=False)

    with drawn(IMAGES / "ring_efficiency.png", size=(7, 4.5), **legend_on_right) as axes:
        for length in lines.lengths():
            rings = [line for n in (1, 2, 4) if (line := lines.find("ring", length, ranks=n))]
            if rings and rings[0]["ranks"] == 1:
                speeds = [rings[0]["median"] / line["median"] for line in rings]
                axes.plot([line["ranks"] for line in rings], speeds, marker="o", label=f"{length:,} tokens")
        axes.set(xlabel="ranks on this machine (all cores in each case)", ylabel="speed against one process")
        axes.set_title(f"Cost of the ring itself\ncausal, forward + backward; {machine}", fontsize=9)
        axes.set(xticks=(1, 2, 4), ylim=(0, None))
    return 0
