"""The scaling benchmark of ring attention: `python scripts/bench_ring.py run --out results/ring.jsonl --peer-python PY`.

  run   measures and appends one JSON line a measurement: time, memory, balance, against peers, beside the FMA peak
  plot  draws time, memory, share of peak and efficiency from those lines alone
  docs  rewrites the generated section of docs/ring_attention.md from those lines alone

Every measurement runs in fresh processes with both cores for everyone, under --limit seconds; what a peer or a size cannot
do within that is recorded with its reason. FLOPs of forward and backward are 14 N² D H, of forward 4 N² D H, half of it
when causal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench_ring_report import docs, flops, named, plot  # type: ignore[import-not-found]

from ringattn import LaunchError, launch, planner
from ringattn.kernels import native

HERE = Path(__file__).parent
SIZES = tuple(2048 * 2**i for i in range(7))
TUNING_LENGTH = 8192
LONGEST = 131_072
PEER_SETTINGS: dict[str, list[dict]] = {
    "torch": [{}],
    "ring-attention-pytorch": [{"bucket": b, "striped": s} for s in (False, True) for b in (512, 1024, 2048)],
    "jax-ringattention": [{"chunk": c} for c in (256, 512, 1024)],
}


def case(what: str, length: int, *, causal: bool = True, backward: bool = True, **more: object) -> dict:
    """What one measurement is asked to do."""
    return {"what": what, "length": length, "causal": causal, "backward": backward, **more}


def suite(sizes: Sequence[int]) -> Iterator[dict]:
    """Every measurement, the peers' tuning first, then size by size with all contenders beside each other."""
    tuning = min(sizes, key=lambda n: abs(n - TUNING_LENGTH))
    for peer, settings in PEER_SETTINGS.items():
        for setting in settings if len(settings) > 1 else []:
            for causal in (True, False):
                if not (setting.get("striped") and not causal):
                    yield case(peer, tuning, causal=causal, setting=setting, tuning=True)
    for length in sizes:
        for causal in (True, False):
            for backward in (True, False):
                for ranks in (1, 2, 4):
                    yield case("ring", length, causal=causal, backward=backward, ranks=ranks)
                for peer in (*PEER_SETTINGS, "mx.fast"):
                    yield case(peer, length, causal=causal, backward=backward)
        for layout in ("contiguous", "striped"):
            yield case("ring", length, ranks=2, layout=layout)
        yield case("ring", length, ranks=2, dtype="bfloat16")
    if max(sizes) >= LONGEST:
        # Memory is the result here, so one step that may take longer than others.
        for ranks in (2, 4):
            yield case("ring", LONGEST, ranks=ranks, repeats=1, limit=3600.0, long=True)
    balance: dict[str, Any] = {"ranks": 2, "slow": [1.0, 2.0]}
    yield case("ring", tuning, **balance)
    yield case("ring", tuning, **balance, weights=[2.0, 1.0])
    for causal in (True, False):
        yield case("ring", tuning, causal=causal, ranks=2, kernel="mlx", openblas=True)
    for share in (0.5, 0.8):
        yield case("ring", tuning, ranks=2, link_share=share)


class Bench:
    """Runs cases and appends their lines; remembers times, to skip what cannot end within the limit."""

    def __init__(self, out: Path, peer_python: str | None, limit: float, repeats: int) -> None:
        self.out, self.peer_python, self.limit, self.repeats = out, peer_python, limit, repeats
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.seen: dict[str, tuple[int, float]] = {}
        self.tuned: dict[tuple[str, bool], tuple[float, dict]] = {}
        out.parent.mkdir(parents=True, exist_ok=True)

    def measure(self, asked: dict) -> dict:
        """One line: the case, then its result or why it was skipped."""
        spec = {"heads": 8, "dim": 64, "dtype": "float32", "limit": self.limit, "cores": self.cores, **asked}
        peer = spec["what"] in PEER_SETTINGS
        if peer and "setting" not in spec:
            default = next((s for s in PEER_SETTINGS[spec["what"]]), {})
            spec["setting"] = self.tuned.get((spec["what"], spec["causal"]), (0.0, default))[1]
        key = json.dumps(
            {k: v for k, v in spec.items() if k not in ("length", "tuning", "limit", "repeats", "long")}, sort_keys=True
        )
        expected = self._expected(key, spec["length"])
        spec.setdefault(
            "repeats", max(1, min(self.repeats, int(self.limit / 3 / expected))) if expected else self.repeats
        )
        if 2 * expected > spec["limit"]:
            return self._write(
                spec, {"skipped": f"about {expected:.0f} s a step, over half of the limit of {self.limit:g} s"}
            )
        peak = native.fma_peak(self.cores)
        try:
            result = self._peer(spec) if peer else self._ring(spec)
        except (LaunchError, subprocess.SubprocessError, OSError, ValueError) as error:
            # Memory that runs out kills a process: a reason like any other.
            return self._write(spec, {"skipped": " ".join(str(error).split())[:300]})
        peak = max(peak, native.fma_peak(self.cores))
        best = min(result["seconds"])
        self.seen[key] = (spec["length"], best)
        if spec.get("tuning"):
            at = (spec["what"], spec["causal"])
            self.tuned[at] = min(
                self.tuned.get(at, (best, spec["setting"])), (best, spec["setting"]), key=lambda x: x[0]
            )
        return self._write(spec, {**result, "best": best, "fma_peak": peak})

    def _expected(self, key: str, length: int) -> float:
        at, seconds = self.seen.get(key, (0, 0.0))
        return seconds * (length / at) ** 2 if at else 0.0

    def _peer(self, spec: dict) -> dict:
        if self.peer_python is None:
            raise ValueError(
                "not installed: give --peer-python, a Python with torch, ring-attention-pytorch, jax, ringattention"
            )
        done = subprocess.run(
            [self.peer_python, str(HERE / "bench_ring_peers.py"), json.dumps({"peer": spec["what"], **spec})],
            capture_output=True,
            text=True,
            timeout=spec["limit"],
        )
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        return json.loads(done.stdout.splitlines()[-1])

    def _ring(self, spec: dict) -> dict:
        ranks = spec.get("ranks", 1)
        env = {}
        if spec.get("openblas"):
            library = next(Path("/usr/lib").glob("*/openblas-pthread/libblas.so.3"), None)
            if library is None:
                raise ValueError("OpenBLAS is not installed: apt install libopenblas0-pthread")
            env = {"LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": str(max(1, self.cores // ranks))}
        if spec.get("link_share"):
            spec["bandwidth"], spec["predicted"] = self._link(spec)
        script = [str(HERE / "bench_ring_rank.py"), json.dumps(spec)]
        outputs = launch.run(ranks, script, env=env, timeout=spec["limit"])
        by_rank = [json.loads(lines[-1]) for lines in outputs]
        seconds = [max(at) for at in zip(*(r["seconds"] for r in by_rank), strict=True)]
        fields = ("compute", "wait", "sent", "peak", "active")
        return {"seconds": seconds, **{f: [r[f] for r in by_rank] for f in fields}, "version": by_rank[0]["version"]}

    def _link(self, spec: dict) -> tuple[float, float]:
        """A bandwidth at which the communication takes `link_share` of the computation, and the planner's time there."""
        shape = planner.Shape(
            spec["length"], heads=spec["heads"], kv_heads=spec["heads"], dim=spec["dim"], causal=spec["causal"]
        )
        alone = self._ring({k: v for k, v in spec.items() if k not in ("link_share", "bandwidth")})
        compute = min(max(at) for at in zip(*alone["compute"], strict=True))
        bandwidth = alone["sent"][0] / (spec["link_share"] * compute)
        # Forward and backward as one speed each, from the same run: 4 and 10 of 14 parts of the work.
        pairs = shape.batch * shape.heads * shape.dim * shape.length**2 * shape.density / spec["ranks"]
        rate = 14 * pairs / compute
        return bandwidth, planner.step_seconds(
            shape, planner.Speed(rate, rate), planner.Link("slowed", bandwidth, 0.0), spec["ranks"]
        )

    def _write(self, spec: dict, result: dict) -> dict:
        line = {**spec, **result, "machine": machine(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line


def machine() -> str:
    """The processor's name, as the plots and docs state it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def run(options: argparse.Namespace) -> int:
    """Measure; one line of progress each on stderr."""
    bench = Bench(options.out, options.peer_python, options.limit, options.repeats)
    for asked in suite(options.sizes):
        if options.only and asked["what"] not in options.only:
            continue
        line = bench.measure(asked)
        outcome = (
            f"{line['best']:.3f} s, {flops(line) / line['best'] / 1e9:.0f} GFLOP/s"
            if "best" in line
            else line["skipped"]
        )
        how = f"{'causal' if line['causal'] else 'full'} {'fwd+bwd' if line['backward'] else 'fwd'}"
        print(f"{line['length']:>7} {how:<15} {named(line)}: {outcome}", file=sys.stderr, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("run", help="measure")
    measuring.add_argument("--out", type=Path, required=True, help="JSON lines are appended to this file")
    measuring.add_argument("--peer-python", help="Python of an environment with the peers; without it they are skipped")
    measuring.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tokens")
    measuring.add_argument("--only", nargs="+", default=[], help="contenders: ring, torch, mx.fast, …")
    measuring.add_argument("--limit", type=float, default=300.0, help="seconds a measurement may take")
    measuring.add_argument("--repeats", type=int, default=5, help="the best of so many counts")
    measuring.set_defaults(do=run)
    for name, do in (("plot", plot), ("docs", docs)):
        reporting = commands.add_parser(name, help=do.__doc__)
        reporting.add_argument("--in", dest="lines", type=Path, required=True, help="the file that run wrote")
        reporting.set_defaults(do=do)
    options = parser.parse_args(argv)
    return options.do(options)


if __name__ == "__main__":
    sys.exit(main())
