"""The scaling benchmark of ring attention: `python -m scripts.bench.ring run --out results/ring.jsonl --peer-python PY`.

  run   measures and appends one JSON line a measurement: time, memory, balance, against peers, with the FMA peak of the same round
  plot  draws time, memory, share of peak and efficiency from those lines
  docs  rewrites the generated section of docs/reference/ring_attention.md from those lines

Every measurement runs in fresh processes with both cores for each contender, under --limit seconds; a peer or a size that cannot
finish in time is recorded with the reason. FLOPs of forward and backward are 14 N² D H, of forward 4 N² D H, half of it
when causal.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from ringattn import LaunchError, launch, planner
from ringattn.hosts import Link, Speed
from ringattn.kernels import native
from scripts.bench.common import append, cores, parser, processor, run_json
from scripts.bench.ring_report import CASE, HEADLINE, docs, flops, named, plot, read

HERE = Path(__file__).parent
SIZES = tuple(2048 * 2**i for i in range(7))
TUNING_LENGTH = 8192
LONGEST = 131_072
SECONDS_A_CASE = 12.0  # of repeats; a long step is not warmed up either
PEER_SETTINGS: dict[str, list[dict]] = {
    "torch": [{}],
    "ring-attention-pytorch": [{"bucket": b, "striped": s} for s in (False, True) for b in (256, 512, 1024, 2048)],
    "jax-ringattention": [{"chunk": c} for c in (128, 256, 512, 1024)],
}


def case(what: str, length: int, *, causal: bool = True, backward: bool = True, **more: object) -> dict:
    """Return the description of one measurement."""
    return {"what": what, "length": length, "causal": causal, "backward": backward, **more}


def tuning(sizes: Sequence[int]) -> list[dict]:
    """Return the cases that tune the peers' settings, at one length."""
    return [
        case(peer, tuning_length(sizes), causal=causal, setting=setting, tuning=True)
        for peer, settings in PEER_SETTINGS.items()
        for setting in settings
        for causal in (True, False)
        if len(settings) > 1 and not (setting.get("striped") and not causal)
    ]


def tuning_length(sizes: Sequence[int]) -> int:
    """Return the size at which peers are tuned and special cases compared."""
    return min(sizes, key=lambda n: abs(n - TUNING_LENGTH))


def contenders(length: int) -> list[dict]:
    """Return all contenders at one length, measured in turns, round after round."""
    cases = []
    for causal, backward in ((True, True), (False, True), (True, False), (False, False)):
        cases += [case("ring", length, causal=causal, backward=backward, ranks=ranks) for ranks in (1, 2, 4)]
        cases += [case(peer, length, causal=causal, backward=backward) for peer in (*PEER_SETTINGS, "mx.fast")]
    return cases


def headline() -> list[dict]:
    """Return the comparisons of the first table in the docs."""
    cases = []
    for length, causal in HEADLINE:
        cases += [case("ring", length, causal=causal, ranks=ranks) for ranks in (1, 2)]
        cases += [case(peer, length, causal=causal) for peer in PEER_SETTINGS]
    return cases


def special(length: int) -> list[dict]:
    """Return layouts, bf16, unequal hosts, the mlx kernel and slow links, compared with the plain ring of 2."""
    slowed: dict[str, Any] = {"ranks": 2, "slow": [1.0, 2.0]}
    return [
        case("ring", length, ranks=2),
        *(case("ring", length, ranks=2, layout=layout) for layout in ("contiguous", "striped")),
        *(case("ring", length, ranks=ranks, dtype="bfloat16") for ranks in (1, 2)),
        case("ring", length, **slowed),
        case("ring", length, **slowed, weights=[2.0, 1.0]),
        *(case("ring", length, causal=causal, ranks=2, kernel="mlx", openblas=True) for causal in (True, False)),
        *(case("ring", length, ranks=2, link_share=share) for share in (0.5, 0.8)),
    ]


def longest() -> list[dict]:
    """Return the memory cases: the result is memory, so one step may take longer than in other cases."""
    return [case("ring", LONGEST, ranks=ranks, repeats=1, warm=False, limit=3600.0) for ranks in (2, 4)]


PARTS: dict[str, Callable[[Sequence[int]], list[list[dict]]]] = {
    "tuning": lambda sizes: [tuning(sizes)],
    "headline": lambda sizes: [headline()],
    "contenders": lambda sizes: [contenders(length) for length in sizes],
    "special": lambda sizes: [special(tuning_length(sizes))],
    "longest": lambda sizes: [longest()],
}
"""Name -> groups of cases; a group's cases take turns."""


class Bench:
    """Run cases and append their lines; earlier lines tell how long a case takes, and the peers' best settings."""

    def __init__(self, out: Path, peer_python: str | None, limit: float, repeats: int) -> None:
        self.out, self.peer_python, self.limit, self.repeats = out, peer_python, limit, repeats
        self.cores = cores()
        self.seen: dict[str, float] = {}  # case → least seconds by the square of the length
        self.tuned: dict[tuple[str, bool], tuple[float, dict]] = {}
        out.parent.mkdir(parents=True, exist_ok=True)
        for line in read(out) if out.exists() else []:
            self._learn(line)

    def measure(self, asked: dict) -> dict:
        """Return one line: the case, then its result or why it was skipped."""
        spec = {"heads": 8, "dim": 64, "dtype": "float32", "limit": self.limit, "cores": self.cores, **asked}
        peer = spec["what"] in PEER_SETTINGS
        if peer and "setting" not in spec:
            default = PEER_SETTINGS[spec["what"]][0]
            spec["setting"] = self.tuned.get((spec["what"], spec["causal"]), (0.0, default))[1]
        expected = self._expected(spec)
        if expected:
            spec.setdefault("repeats", max(1, min(self.repeats, int(SECONDS_A_CASE / expected))))
        spec.setdefault("repeats", self.repeats)
        spec.setdefault("warm", expected < SECONDS_A_CASE / 4)
        if 2 * expected > spec["limit"]:
            return self._write(
                spec, {"skipped": f"about {expected:.0f} s a step, over half of the limit of {self.limit:g} s"}
            )
        if (
            spec["what"] == "mx.fast"
            and (scores := 12 * spec["length"] ** 2 * spec["heads"]) > psutil.virtual_memory().available / 2
        ):
            return self._write(
                spec, {"skipped": f"keeps three arrays of all scores, {scores / 1e9:,.0f} GB: more than is free here"}
            )
        peak = native.fma_peak(self.cores)
        try:
            result = self._peer(spec) if peer else self._ring(spec)
        except (LaunchError, subprocess.SubprocessError, OSError, ValueError) as error:
            # Memory that runs out kills a process: a reason like any other.
            return self._write(spec, {"skipped": " ".join(str(error).split()).replace(f"{HERE}/", "")[:300]})
        peak = max(peak, native.fma_peak(self.cores))
        return self._learn(self._write(spec, {**result, "fma_peak": peak}))

    def _learn(self, line: dict) -> dict:
        if "seconds" in line:
            best = min(line["seconds"])
            by_square = best / line["length"] ** 2
            self.seen[_key(line)] = min(self.seen.get(_key(line), by_square), by_square)
            if line.get("tuning"):
                at = (line["what"], line["causal"])
                known = self.tuned.get(at, (best, line["setting"]))
                self.tuned[at] = min(known, (best, line["setting"]), key=lambda x: x[0])
        return line

    def _expected(self, spec: dict) -> float:
        return self.seen.get(_key(spec), 0.0) * spec["length"] ** 2

    def _peer(self, spec: dict) -> dict:
        if self.peer_python is None:
            raise ValueError(
                "not installed: give --peer-python, a Python with torch, ring-attention-pytorch, jax, ringattention"
            )
        asked = json.dumps({"peer": spec["what"], **spec})
        return run_json([self.peer_python, str(HERE / "ring_peers.py"), asked], timeout=spec["limit"])

    def _ring(self, spec: dict) -> dict:
        ranks = spec.get("ranks", 1)
        env = {"OPENBLAS_NUM_THREADS": str(max(1, self.cores // ranks))} if spec.get("openblas") else {}
        if spec.get("link_share"):
            spec["bandwidth"], spec["predicted"] = self._link(spec)
        script = [str(HERE / "ring_rank.py"), json.dumps(spec)]
        outputs = launch.run(ranks, script, env=env, timeout=spec["limit"])
        by_rank = [json.loads(lines[-1]) for lines in outputs]
        seconds = [max(at) for at in zip(*(r["seconds"] for r in by_rank), strict=True)]
        fields = ("compute", "wait", "sent", "peak", "active")
        return {"seconds": seconds, **{f: [r[f] for r in by_rank] for f in fields}, "version": by_rank[0]["version"]}

    def _link(self, spec: dict) -> tuple[float, float]:
        """Return a bandwidth at which communication takes `link_share` of the computation, and the planner's time there."""
        shape = planner.Shape(
            spec["length"], heads=spec["heads"], kv_heads=spec["heads"], dim=spec["dim"], causal=spec["causal"]
        )
        alone = self._ring({k: v for k, v in spec.items() if k not in ("link_share", "bandwidth")})
        compute = min(max(at) for at in zip(*alone["compute"], strict=True))
        bandwidth = alone["sent"][0] / (spec["link_share"] * compute)
        # Forward and backward as one speed each, from the same run: 4 and 10 of 14 parts of the work.
        pairs = shape.batch * shape.heads * shape.dim * shape.length**2 * shape.density / spec["ranks"]
        rate = 14 * pairs / compute
        return bandwidth, planner.step_seconds(shape, Speed(rate, rate), Link("slowed", bandwidth, 0.0), spec["ranks"])

    def _write(self, spec: dict, result: dict) -> dict:
        about = f"{processor()}, {os.cpu_count()} cores, {platform.system()}"
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return append({**spec, **result, "machine": about, "at": at}, self.out)


def _key(line: dict) -> str:
    """Return the part of a case that makes measurements of different lengths comparable."""
    fields = (*CASE[:1], *CASE[2:], "setting")  # all but the length
    return json.dumps([line.get(name) for name in fields])


def run(options: argparse.Namespace) -> int:
    """Measure all cases, with a line of progress each on stderr."""
    bench = Bench(options.out, options.peer_python, options.limit, options.repeats)
    for group in (group for part in options.parts for group in PARTS[part](options.sizes)):
        for _ in range(options.rounds):
            for asked in group:
                if options.only and asked["what"] not in options.only:
                    continue
                line = bench.measure(asked)
                outcome = line.get("skipped")
                if outcome is None:
                    best = min(line["seconds"])
                    outcome = f"{best:.3f} s, {flops(line) / best / 1e9:.0f} GFLOP/s"
                how = f"{'causal' if line['causal'] else 'full'} {'fwd+bwd' if line['backward'] else 'fwd'}"
                print(f"{line['length']:>7} {how:<15} {named(line)}: {outcome}", file=sys.stderr, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    command = parser(__doc__)
    commands = command.add_subparsers(required=True)
    measuring = commands.add_parser("run", help="measure")
    measuring.add_argument("--out", type=Path, required=True, help="JSON lines are appended to this file")
    measuring.add_argument("--peer-python", help="Python of an environment with the peers; without it they are skipped")
    measuring.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tokens")
    measuring.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all")
    measuring.add_argument("--only", nargs="+", default=[], help="contenders: ring, torch, mx.fast, …")
    measuring.add_argument("--limit", type=float, default=300.0, help="seconds a measurement may take")
    measuring.add_argument("--repeats", type=int, default=5, help="steps of a measurement, fewer where they are long")
    measuring.add_argument("--rounds", type=int, default=1, help="times that the contenders take turns")
    measuring.set_defaults(do=run)
    for name, do in (("plot", plot), ("docs", docs)):
        reporting = commands.add_parser(name, help=do.__doc__)
        reporting.add_argument("--in", dest="lines", type=Path, required=True, help="the file that run wrote")
        reporting.set_defaults(do=do)
    options = command.parse_args(argv)
    return options.do(options)


if __name__ == "__main__":
    sys.exit(main())
