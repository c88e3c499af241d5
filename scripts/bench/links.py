"""Benchmark of links: a ring of two hosts over links of four speeds, compared with the planner's prediction; 4, 16, 64 Apple hosts predicted.

    python -m scripts.bench.links run --out docs/benchmarks/links.jsonl     # needs root and Linux: see scripts/testbed/bed.py
    python -m scripts.bench.links docs                                      # writes docs/internals/scaling.md from these lines and load_balance's

Each rank has a core, a network namespace and one thread. The kernel's speed and the link are measured just before the step, under the same
setting, through the ring's transport; the prediction is `ringattn.planner.step_seconds` of these, or of the link's nominal figures.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ringattn.planner import LINKS, Link, Shape, Speed, efficiency, smallest_block, step_seconds
from scripts.bench.common import ROOT, drawn, emit, markdown_table, parser, read_lines
from scripts.testbed.bed import Bed

LINES, SHARES, DOCS, IMAGE = (
    ROOT / "docs" / name
    for name in ("benchmarks/links.jsonl", "benchmarks/shares.jsonl", "internals/scaling.md", "images/scaling.png")
)
LENGTHS = (4096, 8192)
REPEATS = 5
# Mbit/s that the queues let through, and the planner's nominal link.
SETTINGS = (
    (20_000.0, LINKS[0]),
    (10_000.0, LINKS[1]),
    (1_000.0, LINKS[2]),
    (400.0, Link("Wi-Fi", 0.045e9, 3e-3)),
)
# On paper. M2: half of the 3.6 TFLOP/s (fp32) that its GPU of ten cores is said to reach. No Apple host was measured.
APPLE = Speed(1.8e12, 1.8e12)
PAPER = Shape(131_072, itemsize=2)
PAPER_HOSTS = (4, 16, 64)
SPEED = "import json,sys;from ringattn.planner import Shape,measure_speed as m;s=m(Shape(**json.loads(sys.argv[1])),block=int(sys.argv[2]),repeats=5);print(json.dumps([s.forward,s.backward]))"


def ranks(bed: Bed, *command: str, ring: bool = True) -> list[Any]:
    """Run `command` on both hosts at once, a core each, and return the last line of each as JSON."""
    hosts = bed.folder / "ring.json"
    hosts.write_text(json.dumps([[f"{host.address}:32323"] for host in bed.hosts]))
    running = []
    for rank, host in enumerate(bed.hosts):
        env = {"RINGATTN_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if ring else {}
        pinned = ["taskset", "-c", str(rank % (os.cpu_count() or 1)), sys.executable, *command]
        running.append(host.popen(*pinned, env=env, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=170)[0] for process in running]
    return [json.loads(text.strip().splitlines()[-1]) for text in printed[: 1 if ring else None]]


def measure(bed: Bed, mbit: float, nominal: Link, length: int) -> dict:
    """Return one line: seconds of forward and backward over this link, and the planner's prediction."""
    for host in bed.hosts:
        host.repair_link()
        host.shape(mbit)
    shape = Shape(length)
    speeds = ranks(bed, "-c", SPEED, json.dumps(asdict(shape)), str(length // 2), ring=False)
    speed = Speed(*(min(values) for values in zip(*speeds, strict=True)))
    link = Link(nominal.name, **ranks(bed, str(ROOT / "ringattn" / "planner.py"), "--measure-link")[0])
    nominal = replace(nominal, kernel_share=link.kernel_share)  # a property of the host
    spec = {"what": "ring", "length": length, "heads": shape.heads, "dim": shape.dim, "dtype": "float32"}
    spec |= {"causal": True, "backward": True, "layout": "zigzag", "warm": True, "repeats": REPEATS, "limit": 60}
    found = ranks(bed, str(ROOT / "scripts" / "bench" / "ring_rank.py"), json.dumps(spec))[0]
    return {
        "link": nominal.name,
        "mbit": mbit,
        "length": length,
        "seconds": found["seconds"],
        "wait": found["wait"],
        "speed": asdict(speed),
        "measured_link": link.to_json(),
        "nominal_link": nominal.to_json(),
        "predicted": step_seconds(shape, speed, link, 2),
        "predicted_nominal": step_seconds(shape, speed, nominal, 2),
        "alone": step_seconds(shape, speed, link, 1),
        "machine": f"{platform.platform(terse=True)}, {os.cpu_count()} cores",
    }


def run(out: Path) -> None:
    """Measure every link and length, and append the lines."""
    with Bed(2) as bed:
        for mbit, nominal in SETTINGS:
            for length in LENGTHS:
                emit(measure(bed, mbit, nominal, length), out)


def table(header: str, rows: list[list[str]]) -> list[str]:
    """Return a Markdown table and an empty line; the header's cells are separated by " | "."""
    return [markdown_table(header.split(" | "), rows), ""]


def measured(lines: list[dict]) -> list[list[str]]:
    """Return the rows of measured links."""
    rows = []
    for line in lines:
        seconds, link = statistics.median(line["seconds"]), line["measured_link"]
        rows.append(
            [
                line["link"],
                f"{line['length']:,}",
                f"{link['bandwidth'] / 1e9:.3f} GB/s, {link['latency'] * 1e3:.2f} ms, {link['beside']:.0%}",
                f"{seconds:.3f} s",
                f"{line['predicted']:.3f} s ({seconds / line['predicted'] - 1:+.0%})",
                f"{line['predicted_nominal']:.3f} s ({seconds / line['predicted_nominal'] - 1:+.0%})",
                f"{statistics.median(line['wait']) / seconds:.0%}",
                f"{line['alone'] / (2 * seconds):.0%}",
            ]
        )
    return rows


def on_paper() -> list[list[str]]:
    """Return the rows of predicted Apple hosts."""
    rows = []
    for _, link in SETTINGS:
        cells = [
            f"{step_seconds(PAPER, APPLE, link, hosts):.2f} s, {efficiency(PAPER, APPLE, link, hosts):.0%}"
            for hosts in PAPER_HOSTS
        ]
        rows.append([link.name, f"{smallest_block(PAPER, APPLE, link):,}", *cells])
    return rows


def draw(path: Path) -> None:
    """Draw the predicted efficiency against the number of hosts."""
    counts = [1, 2, 4, 8, 16, 32, 64]
    with drawn(path) as axes:
        for _, link in SETTINGS:
            axes.plot(counts, [efficiency(PAPER, APPLE, link, n) for n in counts], marker=".", label=link.name)
        axes.set(xscale="log", xlabel="hosts", ylabel="efficiency", ylim=(0, 1.05), xticks=counts, xticklabels=counts)
        axes.set_title(f"On paper: {PAPER.length:,} tokens, bf16, causal, {APPLE.forward / 1e12:g} TFLOP/s a host")


def measured_part() -> list[str]:
    """Return the text on measured links."""
    if not LINES.exists():
        return [
            "Not measured: no run has had a core for each rank yet. `python -m scripts.bench.links run` writes the lines."
        ]
    lines = read_lines(LINES)
    off = [abs(statistics.median(line["seconds"]) / line["predicted"] - 1) for line in lines]
    beyond = [f"{line['link']} at {line['length']:,}" for line, by in zip(lines, off, strict=True) if by > 0.15]
    head = "link | tokens | measured link: GB/s, delay, share of kernel speed left | step | predicted from the measured link | predicted from the nominal link | waiting | efficiency"
    return [
        f"Ring attention, forward and backward, causal, 8 heads of 64, fp32, {REPEATS} repeats, medians, on two network namespaces of one",
        f"machine ({lines[0]['machine']}), one core and one thread each. The link's rate is set in both directions by tc's token bucket,",
        "without a delay: for Wi-Fi only the rate is set. Efficiency: one host's time divided by twice the ring's.",
        "",
        *table(head, measured(lines)),
        f"Target: within 15% of the prediction. Outside it: {', '.join(beyond) or 'none'}.",
    ]


def unequal_part() -> list[str]:
    """Return the text on trainings with one slow rank."""
    rows = []
    for line in read_lines(SHARES):
        plain, equal, followed = (statistics.median(line[how]["seconds"]) for how in ("plain", "equal", "followed"))
        rows.append(
            [
                f"{line['hours']:,}",
                f"{line['factor']:g}×",
                f"{plain:.2f} s",
                f"{equal:.2f} s",
                f"{followed:.2f} s ({', '.join(f'{share:g}' for share in line['followed']['shares'])})",
                f"{equal / followed:.2f}×",
                ", ".join(f"{seconds:.2f} s" for seconds in line["followed"]["busy"]),
                f"{line['loss_differs_by']:.0e}",
            ]
        )
    head = "hours | rank 1 slowed | no rank slowed | equal shares | load balancing (shares) | speed-up | busy by rank | loss differs by"
    return [
        "`worker/train.py` on two ranks of one machine, one core each, one piece of the given hours. The attention kernel of rank 1 is slowed on",
        "purpose (`python -m scripts.bench.load_balance`); the ring starts with equal shares, measures, and rebalances itself. Medians of steps;",
        "the last column is the largest difference of a step's loss from that of the ring in which no rank is slow.",
        "",
        *table(head, rows),
    ]


def docs() -> None:
    """Write the page and its plot."""
    paper = f"link | hidden from, tokens a host | {' | '.join(f'{n} hosts' for n in PAPER_HOSTS)}"
    text = [
        "# Scaling over links",
        "",
        "Written by `python -m scripts.bench.links docs` from `docs/benchmarks/links.jsonl`, `shares.jsonl` and the planner.",
        "",
        "## Measured: two hosts",
        "",
        *measured_part(),
        "",
        "## Hosts of unequal speed",
        "",
        *unequal_part(),
        "## On paper: Apple hosts",
        "",
        "Not measured: no Apple host was available. The planner's simulation, for hosts of",
        f"{APPLE.forward / 1e12:g} TFLOP/s (half of the stated speed of an M2's GPU), {PAPER.length:,} tokens, 8 heads of 64, causal, bf16 blocks,",
        "fp32 gradients, nominal links. Each cell: seconds a step, efficiency.",
        "",
        *table(paper, on_paper()),
        "![efficiency on paper](../images/scaling.png)",
        "",
        "With n hosts a block has 1/n of the tokens: computation a hop decreases with n², the bytes sent decrease with n, so above some number of",
        "hosts the link is the limit. A context k times as long raises that number k times.",
        "",
    ]
    DOCS.write_text("\n".join(text))
    draw(IMAGE)


def main() -> None:
    """Run a command of the command line."""
    command = parser(__doc__)
    what = command.add_subparsers(dest="what", required=True)
    what.add_parser("run").add_argument("--out", type=Path, required=True)
    what.add_parser("docs")
    options = command.parse_args()
    if options.what == "run":
        run(options.out)
    else:
        docs()


if __name__ == "__main__":
    main()
