#!/usr/bin/env python3
"""A rank that keeps worker/train.py's contract without a model: a ring of plain sockets, a state that is a chain of hashes.

Its configuration (TOML): steps, step_s (seconds a step), every (steps between checkpoints), and the faults to simulate:
exit_code with exit_step and exit_rank (that rank exits with that code at that step; only once a run if exit_once), usage
(a message: exit 2), hold_s (seconds that a SIGTERM is ignored). While the run folder holds a file `endless`, the training
continues after `steps`.
The loss of a step is computed from the state's hash, so any difference in the state changes the curve.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import sys
import time
import tomllib
from pathlib import Path

EXIT_USAGE, EXIT_BROKEN = 2, 75
JOIN_S = 180.0  # for the neighbours to start, on a busy machine too; the coordinator ends a ring that is not whole
START = hashlib.sha256(b"start").hexdigest()
stop_asked = False


def loss_of(state: str) -> float:
    return int(state[:8], 16) / 2**32


def curve(steps: int) -> list[float]:
    """The losses of steps 1 … `steps` of an undisturbed run."""
    state, losses = START, []
    for _ in range(steps):
        state = hashlib.sha256(state.encode()).hexdigest()
        losses.append(loss_of(state))
    return losses


class Ring:
    """Sockets to both neighbours. Any error of a socket ends the rank with exit code 75."""

    def __init__(self, rank: int, addresses: list[str]) -> None:
        self.size = len(addresses)
        if self.size == 1:
            return
        host, port = addresses[rank].split(":")
        until = time.monotonic() + JOIN_S
        with socket.create_server((host, int(port))) as server:
            server.settimeout(JOIN_S)
            host, port = addresses[(rank + 1) % self.size].split(":")
            while True:
                try:
                    self.right = socket.create_connection((host, int(port)), timeout=JOIN_S)
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
            self.left, _ = server.accept()

    def any(self, mine: bool) -> bool:
        """Whether it is true of any rank. Also a barrier."""
        seen = mine
        token = mine
        for _ in range(self.size - 1):
            self.right.sendall(b"1" if token else b"0")
            got = self.left.recv(1)
            if not got:
                raise ConnectionError("a neighbour is gone")
            token = got == b"1"
            seen = seen or token
        return seen


def newest(run: Path) -> tuple[int, str]:
    """Step and state of the newest checkpoint."""
    folders = sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit())
    if not folders:
        return 0, START
    return int(folders[-1].name), json.loads((folders[-1] / "state.json").read_text())["state"]


def checkpoint(run: Path, step: int, state: str) -> Path:
    final = run / "checkpoints" / f"{step:06d}"
    if not final.exists():
        part = final.with_name(f"{final.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        (part / "state.json").write_text(json.dumps({"step": step, "state": state}))
        (part / "average.safetensors").write_text(state)
        part.rename(final)
    return final


def drop_later_steps(path: Path, done: int) -> Path:
    if path.exists():
        kept = [line for line in path.read_text().splitlines(True) if json.loads(line)["step"] <= done]
        path.with_suffix(".part").write_text("".join(kept))
        path.with_suffix(".part").replace(path)
    return path


def train(run: Path, heartbeat: Path, config: dict) -> int:
    hosts = os.environ.get("MLX_HOSTFILE")
    addresses = [host[0] for host in json.loads(Path(hosts).read_text())] if hosts else ["alone"]
    rank = int(os.environ.get("MLX_RANK", "0"))
    words = heartbeat.open("a", buffering=1)

    def say(step: int, phase: str) -> None:
        words.write(json.dumps({"step": step, "phase": phase, "time": time.time()}) + "\n")

    step, state = newest(run)
    say(step, "start")
    print(f"rank {rank} of {len(addresses)} goes on from step {step}", flush=True)
    ring = Ring(rank, addresses)
    metrics = drop_later_steps(run / "metrics.jsonl", step).open("a", buffering=1) if rank == 0 else None
    while step < config["steps"] or ring.any((run / "endless").exists()):
        if ring.any(stop_asked):
            time.sleep(config.get("hold_s", 0))
            say(step, "checkpoint")
            if rank == 0:
                checkpoint(run, step, state)
            return EXIT_BROKEN
        time.sleep(config["step_s"])
        step, state = step + 1, hashlib.sha256(state.encode()).hexdigest()
        once = run / f"exited-{rank}"
        if config.get("exit_step") == step and config.get("exit_rank", 0) == rank and not once.exists():
            if config.get("exit_once", False):
                once.touch()
            print("this rank was told to fail", file=sys.stderr)
            return int(config["exit_code"])
        if metrics is not None:
            line = {"step": step, "loss": loss_of(state), "ranks": ring.size, "tokens_per_s": 1e3, "seconds": 0.0}
            metrics.write(json.dumps(line) + "\n")
        say(step, "step")
        if step % config["every"] == 0:
            say(step, "checkpoint")
            if rank == 0:
                checkpoint(run, step, state)
    ring.any(False)
    if rank == 0:
        path = checkpoint(run, step, state)
        digest = hashlib.sha256((path / "average.safetensors").read_bytes()).hexdigest()
        result = {"steps": step, "validation_skill": 0.25, "checkpoint": f"checkpoints/{path.name}", "sha256": digest}
        part = run / "result.json.part"
        part.write_text(json.dumps(result))
        part.rename(run / "result.json")
    say(step, "end")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("data", "run", "heartbeat", "config"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    config = tomllib.loads(options.config.read_text())
    if "usage" in config:
        print(config["usage"], file=sys.stderr)
        return EXIT_USAGE

    def ask(signum: int, frame: object) -> None:
        global stop_asked
        stop_asked = True

    signal.signal(signal.SIGTERM, ask)
    try:
        return train(options.run, options.heartbeat, config)
    except OSError as error:
        print(f"the ring broke: {error}", file=sys.stderr)
        return EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main())
