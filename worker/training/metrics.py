"""What a training run says of itself: metrics.jsonl, the heartbeat, and the watchdog that ends a rank whose ring does not move."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ringattn
from coordinator.wire.exit_codes import ExitCode
from worker.training.config import TrainConfig, plain

AWAY_S = 10.0  # between looks of the watchdog, a second apart


@dataclass(frozen=True)
class StepRecord:
    """An optimiser step of the ring."""

    step: int
    loss: float
    gradient_norm: float
    tokens: int  # of all ranks
    seconds: float  # of this rank, waiting included
    busy: Sequence[float]  # seconds of each rank, waiting not included
    shares: Sequence[float]  # of the tokens, one a rank, 1.0 being an equal one


class Metrics:
    """metrics.jsonl is rank 0's; each rank has its heartbeat and its watchdog."""

    def __init__(self, config: TrainConfig, rank: int, done: int) -> None:
        self._timeout, self._moved, self._began = config.timeout, time.monotonic(), time.monotonic()
        self._beats = config.heartbeat.open("a") if config.heartbeat != Path() else None
        self._lines: IO[str] | None = None
        self._said = 0.0
        if rank == 0:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            (config.run_dir / "config.json").write_text(json.dumps(plain(config), indent=1))
            path = config.run_dir / "metrics.jsonl"
            _drop_later_steps(path, done)
            self._lines = path.open("a")
        threading.Thread(target=self._watch, daemon=True).start()

    def step(self, done: StepRecord, hops: Sequence[ringattn.HopTime]) -> None:
        """A finished step and its hops: a line of metrics.jsonl, a word to the heartbeat, and a line for people every 10 s."""
        speed = done.tokens / done.seconds
        line = {
            "step": done.step,
            "loss": done.loss,
            "gradient_norm": done.gradient_norm,
            "tokens_per_s": speed,
            "attention_share": sum(hop.compute for hop in hops) / done.seconds,
            "wait_share": sum(hop.wait for hop in hops) / done.seconds,
            "ranks": len(done.busy),
            "seconds": done.seconds,
            "busy": done.busy,
            "shares": done.shares,
        }
        self.write(line)
        self.beat("step", done.step)
        if self._lines is not None and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            print(
                f"step {done.step}: loss {done.loss:.4f}, {speed:,.0f} tokens/s, attention {line['attention_share']:.0%}, "
                f"waiting {line['wait_share']:.0%}",
                file=sys.stderr,
                flush=True,
            )

    def write(self, line: dict[str, Any]) -> None:
        """One JSON line; rank 0 alone."""
        if self._lines is not None:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()

    def beat(self, phase: str, step: int) -> None:
        """A sign of life, for the watchdog and for the worker that holds this rank."""
        self._moved = time.monotonic()
        if self._beats is not None:
            self._beats.write(json.dumps({"step": step, "phase": phase, "time": time.time()}) + "\n")
            self._beats.flush()

    def _watch(self) -> None:
        # mlx's collectives have no deadline: a rank whose peer is frozen would wait in all_sum for ever.
        looked = time.monotonic()
        while True:
            time.sleep(1)
            now = time.monotonic()
            if now - looked > AWAY_S:  # this process itself was suspended: nobody kept it waiting
                self._moved += now - looked
            looked = now
            if now - self._moved > self._timeout:
                print(f"no step for {self._timeout:g} s: a peer is gone or frozen; start again", file=sys.stderr)
                ringattn.abort(ExitCode.INCOMPLETE)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def _drop_later_steps(path: Path, done: int) -> None:
    """Lines of steps that a resumed run makes again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line and json.loads(line)["step"] <= done]
        part = path.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in kept))
        part.replace(path)
