"""Benchmark of links: a ring of two hosts over links of four speeds, compared with the planner's prediction; 4, 16, 64 Apple hosts predicted.

    python -m scripts.bench.links run --out docs/benchmarks/links.jsonl     # needs root and Linux: see scripts/testbed/bed.py
    python -m scripts.bench.links docs                                      # writes docs/internals/scaling.md from these lines, load_balance's and train's

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

from ringattn.hosts import CHIPS, GIGABIT, LINKS, TEN_GIGABIT, THUNDERBOLT_4, WIFI, Chip, Link, Speed
from ringattn.planner import Shape, efficiency, smallest_block, step_seconds
from scripts.bench.common import ROOT, drawn, emit, markdown_table, parser, read_lines
from scripts.testbed.bed import Bed

LINES, SHARES, TRAIN, DOCS, IMAGE = (
    ROOT / "docs" / name
    for name in (
        "benchmarks/links.jsonl",
        "benchmarks/shares.jsonl",
        "benchmarks/train.jsonl",
        "internals/scaling.md",
        "images/scaling.png",
    )
)
LENGTHS = (4096, 8192)
REPEATS = 5
# Mbit/s that the queues let through, and the planner's nominal link.
SETTINGS = (
    (20_000.0, THUNDERBOLT_4),
    (10_000.0, TEN_GIGABIT),
    (1_000.0, GIGABIT),
    (400.0, WIFI),
)
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


def on_paper(chip: Chip) -> list[list[str]]:
    """Return the rows of predicted hosts of an Apple chip."""
    speed = chip.metal_speed(PAPER.dim, PAPER.itemsize)
    return [
        [
            chip.name,
            link.name,
            f"{smallest_block(PAPER, speed, link):,}",
            *(
                f"{step_seconds(PAPER, speed, link, hosts):.2f} s, {efficiency(PAPER, speed, link, hosts):.0%}"
                for hosts in PAPER_HOSTS
            ),
        ]
        for link in chip.links
    ]


def draw(path: Path) -> None:
    """Draw the predicted efficiency of the first chip's hosts against their number."""
    counts = [1, 2, 4, 8, 16, 32, 64]
    chip = CHIPS[0]
    speed = chip.metal_speed(PAPER.dim, PAPER.itemsize)
    with drawn(path) as axes:
        for link in chip.links:
            axes.plot(counts, [efficiency(PAPER, speed, link, n) for n in counts], marker=".", label=link.name)
        axes.set(xscale="log", xlabel="hosts", ylabel="efficiency", ylim=(0, 1.05), xticks=counts, xticklabels=counts)
        axes.set_title(f"On paper: {chip.name}; {PAPER.length:,} tokens, bf16, causal")


def both(speed: Speed) -> str:
    """Return a kernel's speed forward and backward."""
    return f"{speed.forward / 1e12:.2f} / {speed.backward / 1e12:.2f}"


def paper_part() -> list[str]:
    """Return the text on Apple hosts."""
    chips = [
        [
            chip.name,
            f"{chip.peak / 1e12:g}",
            f"{chip.memory / 1e9:g}",
            both(chip.metal_speed(64, 4)),
            both(chip.metal_speed(64, 2)),
            both(chip.mlx_speed(64)),
            chip.source,
        ]
        for chip in CHIPS
    ]
    links = [[link.name, f"{link.bandwidth / 1e9:g}", f"{link.latency * 1e3:g} ms", link.source] for link in LINKS]
    kernels = "metal, fp32 | metal, 16 bits | mlx, fp32"
    hosts = " | ".join(f"{n} hosts" for n in PAPER_HOSTS)
    return [
        "**Nothing in this section was measured**: no Apple host was available. Figures of chips and links were read at the sources named, kernels' speeds",
        "are what their counts allow at most ([Metal](metal_kernel.md#by-count), [mlx](mlx_integration.md#kernels)), in TFLOP/s forward / backward at a head",
        "dimension of 64: for Metal the share of the peak by instructions, for mlx passes over memory, with products at 80% of the peak. Waiting, occupancy and",
        "heat are not in them.",
        "",
        *table(f"chip | peak, fp32 TFLOP/s | memory, GB/s | {kernels} | sources", chips),
        *table("link | GB/s each way | an exchange costs at least | source", links),
        f"The planner's simulation: the Metal kernel on each chip, {PAPER.length:,} tokens, 8 heads of 64, causal, bf16 blocks, fp32 gradients. Each cell: seconds",
        "a step, efficiency. The ring runs over TCP; RDMA shows what a transport over it could bring.",
        "",
        *table(
            f"chip | link | hidden from, tokens a host | {hosts}", [row for chip in CHIPS for row in on_paper(chip)]
        ),
        "![efficiency on paper](../images/scaling.png)",
        "",
        "With n hosts a block has 1/n of the tokens: computation a hop decreases with n², the bytes sent decrease with n, so above some number of",
        "hosts the link is the limit. A context k times as long raises that number k times.",
        "",
    ]


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


def authorities_part() -> list[str]:
    """Return the text on trainings with one context of all authorities."""
    lines = sorted((line for line in read_lines(TRAIN) if "authorities" in line), key=lambda line: line["ranks"])
    alone = lines[0]
    rows = [
        [
            str(line["ranks"]),
            f"{max(line['peak_mb']):,.0f} MB",
            f"{statistics.median(line['seconds']):.0f} s",
            f"{line['forecast_seconds']:.0f} s",
            f"{max(abs(a / b - 1) for a, b in zip(line['loss'], alone['loss'], strict=True)):.0e}",
            f"{max(abs(line['skills'][name] - skill) for name, skill in alone['skills'].items()):.0e}",
            line.get("shared", "nothing else to do"),
        ]
        for line in lines
    ]
    return [
        f"`worker/train.py --scope all` ([the model](../reference/forecasting.md#the-model)): a step on {alone['hours']:,} hours of {alone['authorities']} authorities and regions in one context,",
        f"and a forecast (the validation) of which the context has {alone['forecast_tokens']:,}. Recorded hours; ranks of one machine of {alone['cores']} cores, started by `ringattn.launch`; medians of steps.",
        "`python -m scripts.bench.train authorities` measures it. The machine was not free meanwhile, as the last column says, so times are not to be compared with each other; with the ranks on",
        "two cores they could not decrease anyway. What decreases is the memory of a rank; pages of the mapped token files, which the ranks share, are counted in each.",
        "",
        *table(
            "ranks | peak memory of a rank | step | forecast | loss differs from one rank's by | skill of a respondent by at most | the machine had",
            rows,
        ),
        "![time a step and memory a rank](../images/train_scaling.png)",
        "",
    ]


def docs() -> None:
    """Write the page and its plot."""
    text = [
        "# Scaling over links",
        "",
        "Written by `python -m scripts.bench.links docs` from `docs/benchmarks/links.jsonl`, `shares.jsonl`, `train.jsonl` and the planner.",
        "",
        "## Measured: two hosts",
        "",
        *measured_part(),
        "",
        "## Hosts of unequal speed",
        "",
        *unequal_part(),
        "## One context of all authorities",
        "",
        *authorities_part(),
        "## On paper: Apple hosts",
        "",
        *paper_part(),
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
