"""Measure the kernels on this machine: `python -m ringattn.kernels.bench [--lengths 2048 4096]`.

First each kernel's results are compared with those of plain attention; then the time of a step is measured, for each kernel that
agrees and for `mx.fast.scaled_dot_product_attention`, at 2,048 to 32,768 tokens, beside the rate of the chip's own matrix products.
Prints tables on stderr and one line of JSON on stdout: from a Mac, please send that line. docs/benchmarks.md says where it goes.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn import kernels
from ringattn._errors import KernelError
from ringattn.kernels import native, parity
from ringattn.kernels.base import Block, Kernel

LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
FAST = "mx.fast"
FORWARD_FLOPS, STEP_FLOPS = 4, 14
"""A (query, key) pair, times head dimension: 2 matrix products forward, 7 forward and backward"""
REPEATS = 15
"""At most; a step that takes longer than the limit is measured once."""
ALLOWED_TF32 = 1e-2
"""Difference of the mlx kernel where the chip rounds the factors of fp32 products to TF32, as MLX does on an M5 by default."""
MEMORY_SHARE = 0.6
"""Of the memory that a process should use; more is not tried, so that the machine does not swap."""


@dataclass(frozen=True)
class Setting:
    """One attention call, but for its length."""

    heads: int = 8
    kv_heads: int = 8
    dim: int = 64
    dtype: str = "float32"
    causal: bool = True

    def flops(self, length: int, factor: int) -> float:
        """Return the visible work of forward (4) or of a step (14)."""
        return factor * length**2 * self.dim * self.heads * (0.5 if self.causal else 1.0)


@dataclass(frozen=True)
class Work:
    """One contender at one length, ready to be timed."""

    forward: Callable[[], None]
    step: Callable[[], None]
    """forward and backward"""


@dataclass
class Time:
    """What was measured of one contender at one length."""

    kernel: str
    length: int
    forward: list[float]
    step: list[float]
    peak_memory: int


def products_are_fp32() -> bool:
    """Return whether the default device multiplies fp32 matrices in fp32: 256 products add up to 1e-5 then, in TF32 to 5e-3."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((256, 256), dtype=np.float32) for _ in range(2))
    error = np.abs(np.array(mx.array(a) @ mx.array(b)) - a.astype(np.float64) @ b.astype(np.float64)).max()
    return bool(error < 1e-3)


def agreement(usable: Sequence[str], setting: Setting, *, fp32: bool) -> dict[str, dict[str, Any]]:
    """Return each kernel's largest difference from plain attention on `parity.CASES`, or why it failed.

    Args:
        usable: the kernels' names.
        setting: its head dimension and dtype count.
        fp32: whether the device multiplies fp32 matrices in fp32, of which the mlx kernel is made.
    """
    dtype = getattr(mx, setting.dtype)
    found: dict[str, dict[str, Any]] = {}
    with mx.stream(mx.cpu):  # in full fp32 on every chip
        oracle = kernels.select("reference")
        wanted = {name: parity.results(oracle, setting.dim, dtype, *case) for name, case in parity.CASES.items()}
    for kernel in usable:
        try:
            errors = [
                (*parity.worst(parity.results(kernels.select(kernel), setting.dim, dtype, *case), wanted[name]), name)
                for name, case in parity.CASES.items()
            ]
        except Exception as error:  # of a compiler or driver; the other kernels are measured all the same
            found[kernel] = {"agrees": False, "failed": str(error).strip()[:500] or repr(error)}
            continue
        output, difference, mask = max(errors, key=lambda one: one[1])
        allowed = parity.ALLOWED[dtype] if fp32 or kernel != "mlx" else max(ALLOWED_TF32, parity.ALLOWED[dtype])
        found[kernel] = {
            "agrees": difference <= allowed, "difference": difference, "of": output, "mask": mask, "allowed": allowed
        }  # fmt: skip
    return found


def kernel_work(kernel: Kernel, setting: Setting, length: int) -> Work:
    """Return a kernel's work on one block of `length` queries and keys."""
    q, k, v, do = _tensors(setting, length)
    at = np.arange(length, dtype=np.int32)
    block, scale = Block(at, at, causal=setting.causal), setting.dim**-0.5

    def step() -> None:
        o, lse = kernel.forward(q, k, v, block, scale=scale)
        delta = (do.astype(mx.float32) * o).sum(axis=-1)
        mx.eval(o, lse, delta)
        mx.eval(kernel.backward(q, k, v, do, lse, delta, block, scale=scale))

    return Work(lambda: mx.eval(kernel.forward(q, k, v, block, scale=scale)), step)


def fast_work(setting: Setting, length: int) -> Work:
    """Return the work of mlx's own attention, which gives no log-sum-exp: a ring cannot use it."""
    q, k, v, do = _tensors(setting, length)

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        mask = "causal" if setting.causal else None
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=setting.dim**-0.5, mask=mask)

    return Work(lambda: mx.eval(attend(q, k, v)), lambda: mx.eval(mx.vjp(attend, [q, k, v], [do])))


def _tensors(setting: Setting, length: int) -> list[mx.array]:
    rng = np.random.default_rng(0)
    heads = (setting.heads, setting.kv_heads, setting.kv_heads, setting.heads)
    drawn = [
        mx.array(rng.standard_normal((1, n, length, setting.dim), dtype=np.float32)).astype(getattr(mx, setting.dtype))
        for n in heads
    ]
    mx.eval(drawn)
    return drawn


def rates(setting: Setting, on_gpu: bool) -> dict[str, float]:
    """Measure the FLOP/s of matrix products in the setting's dtype, and of fused multiply-adds on a CPU."""
    n = 4096 if on_gpu else 512  # a CPU's stock BLAS needs a tenth of a second for the smaller one
    a, b = (mx.random.normal((n, n)).astype(getattr(mx, setting.dtype)) for _ in range(2))
    mx.eval(a, b)
    best = min(_seconds(lambda: mx.eval(a @ b)) for _ in range(8))
    found = {"matmul": 2 * n**3 / best}
    if not on_gpu and kernels.available()["native"] is None:
        found["fma"] = native.fma_peak()
    return found


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(
    makers: dict[str, Callable[[int], Work]],
    lengths: Sequence[int],
    limit: float,
    memory: int,
    say: Callable[[str], None],
) -> tuple[list[Time], list[dict[str, Any]]]:
    """Time every contender at every length, in turns; what would need too long or too much memory is left out, with the reason."""
    times: list[Time] = []
    left_out: list[dict[str, Any]] = []
    for length in lengths:
        works: dict[str, Work] = {}
        for name, make in makers.items():
            reason = too_large([one for one in times if one.kernel == name], length, limit, memory)
            reason = reason or next((one["reason"] for one in left_out if one["kernel"] == name), None)
            if reason is None:
                works[name] = make(length)
            else:
                left_out.append({"kernel": name, "length": length, "reason": reason})
        times += _in_turns(works, length, limit)
        say(f"{length:,} tokens measured: {', '.join(works)}")
    return times, left_out


def too_large(before: Sequence[Time], length: int, limit: float, memory: int) -> str | None:
    """Return why a length is not tried after those before: time grows with its square, memory at most so; None if it is."""
    if not before:
        return None
    last = before[-1]
    growth = (length / last.length) ** 2
    seconds, needed = min(last.step) * growth, last.peak_memory * growth
    if seconds > 6 * limit:
        return f"a step of {length:,} tokens would take about {seconds:.0f} s"
    if needed > MEMORY_SHARE * memory:
        return f"{length:,} tokens could take {needed / 1e9:.1f} GB"
    return None


def _in_turns(works: dict[str, Work], length: int, limit: float) -> list[Time]:
    """Measure contenders one after the other, round after round, so that a disturbance hits all."""
    found = {}
    for name, work in works.items():
        mx.reset_peak_memory()
        warm = _seconds(work.step)  # compiles; counts where repeats would take too long
        found[name] = Time(name, length, [], [warm] if warm > limit else [], mx.get_peak_memory())
    for _ in range(REPEATS):
        for name, work in works.items():
            forward, step = found[name].forward, found[name].step
            within = sum(forward) + sum(step) <= limit
            if within or not forward:
                forward.append(_seconds(work.forward))
            if within or not step:
                step.append(_seconds(work.step))
    return list(found.values())


def memory_bytes() -> int:
    """Return the memory that a process of this machine should use at most, in bytes."""
    working_set = mx.device_info().get("max_recommended_working_set_size")
    if working_set is not None:
        return int(working_set)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def rows(line: dict[str, Any]) -> list[list[str]]:
    """Return a line as a table: tokens, kernel, median forward and step, TFLOP/s and share of the best measured rate."""
    setting, rate = Setting(**line["setting"]), max(line["rates"].values())
    found = []
    for one in line["times"]:
        forward, step = statistics.median(one["forward"]), statistics.median(one["step"])
        cells = [f"{one['length']:,}", one["kernel"]]
        for seconds, factor in ((forward, FORWARD_FLOPS), (step, STEP_FLOPS)):
            flops = setting.flops(one["length"], factor) / seconds
            cells += [f"{seconds * 1e3:,.1f} ms", f"{flops / 1e12:.3f}", f"{flops / rate:.0%}"]
        found.append(cells)
    return found


HEADER = ("tokens", "kernel", "forward", "TFLOP/s", "share", "step", "TFLOP/s", "share")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 1 if a kernel differs from plain attention or does not run."""
    options = _parser().parse_args(argv)
    kv_heads = options.kv_heads or options.heads
    if min(options.heads, options.dim, kv_heads, *options.lengths) < 1 or options.heads % kv_heads:
        _parser().error("lengths and heads must be 1 or more, and --heads a multiple of --kv-heads")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        _parser().error(
            f"--out: there is no folder {options.out.absolute().parent}; make it first, or name another file"
        )
    setting = Setting(options.heads, kv_heads, options.dim, options.dtype, not options.full)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        line = run(setting, sorted(options.lengths), options.seconds, say)
    except KernelError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted; run the same command to measure again")
        return 130
    _show(line, say)
    print(json.dumps(line), flush=True)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return 0 if all(one["agrees"] for one in line["parity"].values()) else 1


def run(setting: Setting, lengths: Sequence[int], limit: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the line of one run: machine, setting, parity, rates, times."""
    on_gpu = mx.default_device().type == mx.gpu
    available = kernels.available()
    usable = [name for name, reason in available.items() if reason is None and name != "reference"]
    say(f"comparing {', '.join(usable)} with plain attention, {setting.dtype}, head dimension {setting.dim}")
    fp32 = products_are_fp32()
    agrees = agreement(usable, setting, fp32=fp32)
    say("measuring the rate of matrix products; the machine should do nothing else")
    makers: dict[str, Callable[[int], Work]] = {
        name: partial(kernel_work, kernels.select(name), setting) for name in usable if agrees[name]["agrees"]
    }
    makers[FAST] = partial(fast_work, setting)
    measured_rates = rates(setting, on_gpu)
    times, left_out = measured(makers, lengths, limit, memory_bytes(), say)
    return {
        "event": "kernels",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "chip": str(mx.device_info().get("device_name", platform.machine())),
        "system": f"{platform.system()} {platform.mac_ver()[0] or platform.release()} {platform.machine()}",
        "device": "gpu" if on_gpu else "cpu",
        "cores": os.cpu_count(),
        "memory": memory_bytes(),
        "python": platform.python_version(),
        "mlx": metadata.version("mlx"),
        "setting": asdict(setting),
        "unavailable": {name: reason for name, reason in available.items() if reason is not None},
        "fp32_products": fp32,
        "parity": agrees,
        "rates": measured_rates,
        "times": [asdict(one) for one in times],
        "left_out": left_out,
    }


def _show(line: dict[str, Any], say: Callable[[str], None]) -> None:
    for name, one in line["parity"].items():
        if "failed" in one:
            say(f"{name}: FAILED: {one['failed']}")
        else:
            verdict = "agrees with" if one["agrees"] else "DIFFERS FROM"
            say(
                f"{name}: {verdict} plain attention: {one['of']} by {one['difference']:.1e}, allowed {one['allowed']:g}"
            )
    say(", ".join(f"{what}: {rate / 1e12:.3f} TFLOP/s" for what, rate in line["rates"].items()))
    for cells in (HEADER, *rows(line)):
        say("".join(f"{cell:>12}" for cell in cells))
    for one in line["left_out"]:
        say(f"left out: {one['kernel']} at {one['length']:,}: {one['reason']}")
    say("the line below holds all of it; from a Mac, please send it: docs/benchmarks.md says where it goes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ringattn.kernels.bench",
        description="Compare and time the attention kernels of this machine.",
        epilog="example: python -m ringattn.kernels.bench --lengths 512 1024   # seconds, also on a CPU",
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens, one block each")
    parser.add_argument("--heads", type=int, default=Setting.heads, help="query heads")
    parser.add_argument("--kv-heads", type=int, help="default: as many as --heads")
    parser.add_argument("--dim", type=int, default=Setting.dim, help="head dimension")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=Setting.dtype)
    parser.add_argument("--full", action="store_true", help="full instead of causal attention")
    parser.add_argument("--seconds", type=float, default=10.0, help="of repeats for each contender and length")
    parser.add_argument("--out", type=Path, help="append the line to this file")
    return parser


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # ringattn alone in another project: streams stay as they are
        from ingest.console import protect

        protect()
    sys.exit(main())
