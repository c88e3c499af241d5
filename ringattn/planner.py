"""Plan a ring: `python -m ringattn.planner [--length 131072 --heads 8 --dim 64]` predicts when a ring is faster than one host.

Measures this machine's block-attention speed F (FLOP/s, forward and backward) and the loopback link, then prints for links from
Wi-Fi to Thunderbolt 5 the smallest block a host at which communication hides, and the predicted efficiency of 1 to 16 hosts like
this one; then the same for Apple chips at published speeds (`ringattn.hosts`), which were never measured. docs/reference/ring_attention.md derives the formulas; the benchmark compares predictions with measurements.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn import kernels, launch
from ringattn.hosts import CHIPS, LINKS, Link, Speed

HOSTS = (1, 2, 4, 8, 16)
# The kernel that runs during the measured exchange: its tokens; the exchange: its seconds, and bytes at most.
OVERLAP_BLOCK, OVERLAP_S, OVERLAP_BYTES = 512, 0.5, 1 << 28
FORWARD_FLOPS, BACKWARD_FLOPS = 4, 10  # a (query, key) pair, times head dimension: 2 and 5 matrix products
OPTIONS: dict[str, dict[str, Any]] = {
    "--length": {"type": int, "default": 131_072, "help": "tokens of the whole sequence"},
    "--batch": {"type": int, "default": 1},
    "--heads": {"type": int, "default": 8, "help": "query heads"},
    "--kv-heads": {"type": int, "help": "default: as many as --heads"},
    "--dim": {"type": int, "default": 64, "help": "head dimension"},
    "--bf16": {"action": "store_true", "help": "bfloat16 instead of float32"},
    "--full": {"action": "store_true", "help": "full instead of causal attention"},
    "--layers": {
        "type": int,
        "help": "of a language model: also predict the memory of its KV cache and the time of a token",
    },
    "--json": {"action": "store_true", "help": "print the report as JSON"},
    "--measure-link": {"action": "store_true", "help": argparse.SUPPRESS},
}


@dataclass(frozen=True)
class Shape:
    """An attention call.

    Attributes:
        length: tokens of the whole sequence.
        batch: sequences.
        heads: query heads.
        kv_heads: key and value heads.
        dim: head dimension.
        itemsize: bytes of an element of K and V.
        causal: whether a query sees only keys up to its own position.
    """

    length: int
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    dim: int = 64
    itemsize: int = 4
    causal: bool = True

    @property
    def density(self) -> float:
        """Visible share of a block: with zigzag about one half at every causal hop."""
        return 0.5 if self.causal else 1.0

    @property
    def head(self) -> float:
        """Share of the own block's pairs that its first half of queries sees: with zigzag's two chunks, half of one of four."""
        return 0.25 if self.causal else 0.5


def hop_seconds(shape: Shape, speed: Speed, link: Link, hosts: int) -> tuple[float, float, float, float]:
    """Return the seconds of one hop: forward compute, backward compute, moving K and V, moving dK and dV (float32)."""
    block = shape.length / hosts
    pairs = shape.batch * shape.heads * shape.dim * block**2 * shape.density
    elements = 2 * shape.batch * shape.kv_heads * block * shape.dim
    return (
        FORWARD_FLOPS * pairs / speed.forward,
        BACKWARD_FLOPS * pairs / speed.backward,
        link.latency + elements * shape.itemsize / link.bandwidth,
        link.latency + elements * 4 / link.bandwidth,
    )


def step_seconds(shape: Shape, speed: Speed, link: Link, hosts: int) -> float:
    """Predict the seconds of forward and backward: simulate the loop of `ringattn.ring`, one exchange at a time."""
    forward, backward, move, move_grad = hop_seconds(shape, speed, link, hosts)
    if hosts == 1:
        return forward + backward
    now = free = 0.0  # time of the computation; time at which the link is free
    for hop in range(hosts - 1):
        free = max(now, free) + move
        now = max(_worked(now, forward, free, link), free)
        if hop == hosts - 2:
            now += forward
    home = 0.0  # time at which the gradients in transfer arrive
    head = backward * shape.head
    for hop in range(hosts):
        if hop < hosts - 1:
            arrives = free = max(now, free) + move
        now = _worked(now, backward if hop else head, free, link)  # the own block's head hides the first exchange
        if hop:
            now = max(now, home)
            home = free = max(now, free) + move_grad
        if hop < hosts - 1:
            now = max(now, arrives)
    return max(_worked(now, backward - head, free, link), home)  # its tail hides the gradients' last move


def _worked(now: float, work: float, free: float, link: Link) -> float:
    """Return when `work` seconds of computation that begin at `now` are done, if the link is busy until `free`."""
    overlapped = min(work, max(0.0, free - now) * link.kernel_share)
    return now + overlapped / link.kernel_share + (work - overlapped)


def efficiency(shape: Shape, speed: Speed, link: Link, hosts: int) -> float:
    """Return one host's time over `hosts` times the ring's time: 1.0 is perfect, below 1 / hosts one host is faster."""
    return step_seconds(shape, speed, link, 1) / (hosts * step_seconds(shape, speed, link, hosts))


def smallest_block(shape: Shape, speed: Speed, link: Link) -> int:
    """Return the smallest number of tokens a host at which every hop's communication hides behind its computation.

    Forward: itemsize * kv_heads * F / (2 * density * heads * B); backward, where K, V and the float32 gradients move while
    one block is computed: (itemsize + 4) * kv_heads * F / (5 * density * heads * B); and at its ends, where the halves of the own
    block hide one exchange each. Latency adds a term that falls with the square of the block, so the exact bound is found by
    bisection.
    """

    def hides(block: int) -> bool:
        part = Shape(**{**asdict(shape), "length": block})
        forward, backward, move, move_grad = hop_seconds(part, speed, link, 1)
        head, share = backward * shape.head, link.kernel_share
        return (
            min(forward, head) >= share * move
            and backward >= share * (move + move_grad)
            and backward - head >= share * move_grad
        )

    low, high = 1, 1
    while not hides(high):
        low, high = high, high * 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if hides(middle) else (middle, high)
    return high


def measure_speeds(shape: Shape) -> dict[str, Speed]:
    """Measure each kernel that may be this machine's best, the fastest first.

    On a Mac's CPU that is also `mlx`: its matrix products are Accelerate's, which has Apple's matrix units to itself, while `select`
    prefers `native` from measurements on Linux.
    """
    chosen = kernels.select().name
    names = [chosen]
    if sys.platform == "darwin" and chosen == "native" and not os.environ.get("RINGATTN_KERNEL"):
        names.append("mlx")
    speeds = {name: measure_speed(shape, kernel=name) for name in names}
    return dict(
        sorted(speeds.items(), key=lambda one: FORWARD_FLOPS / one[1].forward + BACKWARD_FLOPS / one[1].backward)
    )


def measure_speed(shape: Shape, *, block: int = 2048, repeats: int = 3, kernel: str | None = None) -> Speed:
    """Measure this machine's speed on one block of `block` tokens, best of `repeats`, with a kernel as `select` returns it."""
    forward, backward = (min(seconds_of(work) for _ in range(repeats)) for work in _kernel(shape, block, kernel))
    pairs = shape.heads * shape.dim * block**2 * shape.density
    return Speed(FORWARD_FLOPS * pairs / forward, BACKWARD_FLOPS * pairs / backward)


def _kernel(shape: Shape, block: int, name: str | None = None) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return forward and backward on one block, ready to be timed."""
    dtype = mx.float32 if shape.itemsize == 4 else mx.bfloat16
    rng = np.random.default_rng(0)

    def draw(heads: int) -> mx.array:
        return mx.array(rng.standard_normal((1, heads, block, shape.dim), dtype=np.float32)).astype(dtype)

    q, k, v, do = draw(shape.heads), draw(shape.kv_heads), draw(shape.kv_heads), draw(shape.heads)
    at = np.arange(block, dtype=np.int32)
    mask = kernels.Block(at, at, causal=shape.causal)
    kernel = kernels.select(name)
    o, lse = kernel.forward(q, k, v, mask, scale=0.1)
    delta = (do.astype(mx.float32) * o).sum(axis=-1)
    mx.eval(q, k, v, do, lse, delta)
    return (
        lambda: mx.eval(kernel.forward(q, k, v, mask, scale=0.1)),
        lambda: mx.eval(kernel.backward(q, k, v, do, lse, delta, mask, scale=0.1)),
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_link(timeout: float = 60.0) -> Link:
    """Measure the link between two ranks of this machine, through the ring's transport."""
    out = launch.run(2, [str(Path(__file__)), "--measure-link"], timeout=timeout)
    return Link("loopback", **json.loads(out[0][-1]))


def _measure_link_rank() -> None:
    from ringattn import init
    from ringattn.transport import MlxTransport, Shift

    transport, doing = MlxTransport(init()), "measuring the link"
    other = 1 - transport.rank()

    def exchange(nbytes: int) -> Shift:
        x = mx.zeros((nbytes // 4,))
        mx.eval(x)
        return Shift([x], other, [(x.shape, x.dtype)], other)

    def median(nbytes: int, repeats: int) -> float:
        shift = exchange(nbytes)
        return float(np.median([seconds_of(lambda: transport.shift(shift, doing).wait(30)) for _ in range(repeats)]))

    latency, size = median(4, 30), 16_000_000
    bandwidth = size / max(1e-9, median(size, 7) - latency)
    _, work = _kernel(Shape(OVERLAP_BLOCK), OVERLAP_BLOCK)
    alone = min(seconds_of(work) for _ in range(5))
    (rates,) = transport.all_gather(mx.array([bandwidth]), "agreeing on a size").wait(30)
    shift = exchange(min(OVERLAP_BYTES, int(OVERLAP_S * float(np.array(rates).min()))))
    ticket, done, began = transport.shift(shift, doing), 0, time.perf_counter()
    while not ticket.done.is_set():
        work()
        done += 1
    ticket.wait(30)
    transport.all_gather(mx.array([0]), "ending together").wait(30)
    share = min(1.0, done * alone / (time.perf_counter() - began))
    print(json.dumps({"latency": latency, "bandwidth": bandwidth, "kernel_share": share}))


def report(shape: Shape, speeds: Mapping[str, Speed], links: Sequence[Link]) -> dict:
    """Return all predictions as plain data; under "paper" those of Apple chips, from published figures.

    Args:
        shape: the attention call.
        speeds: this machine's by kernel, as `measure_speeds` returns; the first one is taken.
        links: the links to predict for.
    """
    (kernel, speed), *slower = speeds.items()
    return {
        "shape": asdict(shape),
        "speed": asdict(speed),
        "kernel": kernel,
        "slower_kernels": {name: asdict(other) for name, other in slower},
        "links": _predicted(shape, speed, links),
        "paper": [
            {
                "chip": chip.name,
                "source": chip.source,
                "speed": asdict(by_count := chip.metal_speed(shape.dim, shape.itemsize)),
                "links": _predicted(shape, by_count, chip.links),
            }
            for chip in CHIPS
        ],
    }


def _predicted(shape: Shape, speed: Speed, links: Sequence[Link]) -> list[dict]:
    rows = []
    for link in links:
        by_hosts = {n: efficiency(shape, speed, link, n) for n in HOSTS}
        best = max(HOSTS, key=lambda n: by_hosts[n] * n)
        rows.append(
            {
                **link.to_json(),
                "smallest_block": smallest_block(shape, speed, link),
                "efficiency": by_hosts,
                "best": best,
            }
        )
    return rows


def text(found: dict) -> str:
    """Format the report for a terminal."""
    shape = found["shape"]
    lines = [
        *_kernel_lines(found),
        f"{shape['length']} tokens, {shape['heads']} heads of {shape['dim']}, {'causal' if shape['causal'] else 'full'}; "
        "predicted efficiency of n hosts like this one:",
        f"{'link':<15}{'GB/s':>7}{'hides from':>15}" + "".join(f"{f'n={n}':>8}" for n in HOSTS) + "   best",
        *_lines(found["links"]),
        "hides from: tokens a host from which communication is hidden; loopback is measured, the others were read (ringattn/hosts.py)",
        "",
        "On paper, of Apple hosts, from published figures and the metal kernel's counts; nothing of it was measured:",
    ]
    for chip in found["paper"]:
        forward, backward = (chip["speed"][way] / 1e12 for way in ("forward", "backward"))
        lines += [
            f"{chip['chip']}: at most {forward:.2f} TFLOP/s forward, {backward:.2f} backward",
            *_lines(chip["links"]),
        ]
    return "\n".join(lines)


def _kernel_lines(found: dict) -> list[str]:
    speeds = {found["kernel"]: found["speed"], **found["slower_kernels"]}
    lines = [
        f"{name} kernel here: {speed['forward'] / 1e9:.0f} GFLOP/s forward, {speed['backward'] / 1e9:.0f} backward"
        for name, speed in speeds.items()
    ]
    if len(speeds) > 1:
        usual = kernels.select().name
        make = (
            ""
            if found["kernel"] == usual
            else f"; the ring takes {usual} unless RINGATTN_KERNEL={found['kernel']} is set"
        )
        lines.append(f"the predictions take {found['kernel']}, the fastest{make}")
    return lines


def _lines(rows: Sequence[dict]) -> list[str]:
    found = []
    for row in rows:
        best = "one host is faster" if row["best"] == 1 else f"{row['best']} hosts"
        found.append(
            f"{row['name']:<15}{row['bandwidth'] / 1e9:>7.2f}{row['smallest_block']:>9} tokens"
            + "".join(f"{row['efficiency'][n]:>8.0%}" for n in HOSTS)
            + f"   {best}"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ringattn.planner",
        description="Predict when a ring is faster than one host.",
        epilog="example: python -m ringattn.planner --length 32768 --heads 8",
    )
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **settings)
    options = parser.parse_args(argv)
    from ringattn.decode_planner import decode_report, decode_text, measure_read  # it takes Shape from here

    if options.measure_link:
        _measure_link_rank()
        return 0
    kv_heads = options.kv_heads or options.heads
    least = min(options.length, options.batch, options.heads, options.dim, kv_heads, options.layers or 1)
    if least < 1 or options.heads % kv_heads or options.layers == 0:
        parser.error("lengths, heads and layers must be 1 or more, and --heads a multiple of --kv-heads")
    shape = Shape(
        options.length, options.batch, options.heads, kv_heads, options.dim, 2 if options.bf16 else 4, not options.full
    )
    try:
        print("measuring this machine's kernel and loopback; this takes some seconds", file=sys.stderr, flush=True)
        links = [*LINKS, measure_link()]
        found = report(shape, measure_speeds(shape), links)
        if options.layers:
            found["decode"] = decode_report(shape, options.layers, measure_read(shape), links)
    except KeyboardInterrupt:
        print("planner: interrupted; run the same command to measure again", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(found))
    else:
        print(text(found) + (decode_text(found["decode"]) if options.layers else ""))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # ringattn alone in another project: streams stay as they are
        from ingest.console import protect

        protect()
    sys.exit(main())
