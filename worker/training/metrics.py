"""Output of a training rank: metrics.jsonl, the heartbeat file, and a watchdog that ends a rank whose ring makes no progress."""

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
from ingest.metrics import keep_until
from worker.training.config import TrainConfig, plain

SUSPENDED_S = 10.0  # the watchdog wakes every second: after a longer gap this process was suspended
PRINT_INTERVAL_S = 10.0


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step of the ring."""

    step: int
    loss: float
    gradient_norm: float
    tokens: int  # of all ranks
    seconds: float  # of this rank, waiting included
    busy: Sequence[float]  # seconds of each rank, waiting not included
    shares: Sequence[float]  # of the tokens, one a rank, 1.0 being an equal one


class HeartbeatWriter:
    """Append a rank's heartbeats to its file, which the worker that started it follows.

    Args:
        path: of the file; `Path()` for none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8") if path != Path() else None

    def write(self, phase: str, step: int) -> None:
        """Append a line."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "phase": phase, "time": time.time()}) + "\n")
            self._file.flush()


class MetricsWriter:
    """Write a rank's metrics and heartbeats, and watch its progress.

    Only rank 0 writes metrics.jsonl; every rank has its own heartbeat file and watchdog.

    Args:
        config: settings of the run.
        heartbeats: of this rank.
        rank: this process's rank.
        done: step that the run resumes from; metrics of later steps are removed, as the run repeats those steps.
    """

    def __init__(self, config: TrainConfig, heartbeats: HeartbeatWriter, rank: int, done: int) -> None:
        self._timeout, self._last_progress = config.timeout, time.monotonic()
        self._heartbeats = heartbeats
        self._lines: IO[str] | None = None
        self._printed = 0.0
        if rank == 0:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            (config.run_dir / "config.json").write_text(json.dumps(plain(config), indent=1), "utf-8")
            path = config.run_dir / "metrics.jsonl"
            keep_until(path, "step", done)
            self._lines = path.open("a", encoding="utf-8")
        threading.Thread(target=self._watchdog, daemon=True).start()

    def step(self, done: StepRecord, hops: Sequence[ringattn.HopTime]) -> None:
        """Record a finished step: a line of metrics.jsonl, a heartbeat, and a line on stderr every 10 s.

        Args:
            done: the step.
            hops: times of the ring's hops during the step.
        """
        speed = done.tokens / done.seconds
        line = {
            "step": done.step,
            "loss": done.loss,
            "gradient_norm": done.gradient_norm,
            "tokens": done.tokens,
            "tokens_per_s": speed,
            "attention_share": sum(hop.compute for hop in hops) / done.seconds,
            "wait_share": sum(hop.wait for hop in hops) / done.seconds,
            "sent_bytes": sum(hop.sent for hop in hops),
            "ranks": len(done.busy),
            "seconds": done.seconds,
            "busy": done.busy,
            "shares": done.shares,
        }
        self.write(line)
        self.heartbeat("step", done.step)
        if self._lines is not None and time.monotonic() - self._printed > PRINT_INTERVAL_S:
            self._printed = time.monotonic()
            print(
                f"step {done.step}: loss {done.loss:.4f}, {speed:,.0f} tokens/s, attention {line['attention_share']:.0%}, "
                f"waiting {line['wait_share']:.0%}",
                file=sys.stderr,
                flush=True,
            )

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl on rank 0; do nothing on other ranks."""
        if self._lines is not None:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()

    def heartbeat(self, phase: str, step: int) -> None:
        """Report progress to the watchdog and, through the heartbeat file, to the worker that started this rank."""
        self._last_progress = time.monotonic()
        self._heartbeats.write(phase, step)

    def _watchdog(self) -> None:
        """End this process when it makes no progress for `timeout` seconds."""
        # mlx's collectives have no deadline: a rank whose peer is frozen would wait in all_sum for ever.
        checked = time.monotonic()
        while True:
            time.sleep(1)
            now = time.monotonic()
            if now - checked > SUSPENDED_S:  # no peer is to blame for the gap
                self._last_progress += now - checked
            checked = now
            if now - self._last_progress > self._timeout:
                print(f"no step for {self._timeout:g} s: a peer is gone or frozen; start again", file=sys.stderr)
                ringattn.abort(ExitCode.INCOMPLETE)


def peak_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
