"""A supervised training as a test sees it from outside: processes by their command lines, steps by metrics.jsonl, faults by signals."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.waiting import WAIT_S, until

END_S = 600.0  # the same, for a whole run
KINDS = ("rank kill", "rank stop", "worker kill", "worker stop")


class Supervised:
    """A training with its data in `folder`/data, and the coordinator's process that runs it now.

    `command` starts a coordinator that prints its summary as the last line on stdout; `script`: what its ranks run.
    """

    def __init__(self, folder: Path, command: list[str], script: str, env: Mapping[str, str] | None = None) -> None:
        self.folder, self.command, self.script, self.env = folder, command, script, env
        self.data, self.run = folder / "data", folder / "data" / "train"
        self.log = folder / "coordinator.log"
        self.started: list[subprocess.Popen[str]] = []
        self.known: dict[int, psutil.Process] = {}  # every process of this training that was ever seen

    def start(self) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.folder, env=self.env
            )
        self.started.append(self.process)
        return self.process

    def family(self, word: str) -> list[psutil.Process]:
        """Living processes below the coordinator with `word` on their command line."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    self.known[child.pid] = child
                    if word in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def ranks(self) -> list[psutil.Process]:
        return self.family(self.script)

    def workers(self) -> list[psutil.Process]:
        return self.family("--coordinator")

    def holders(self) -> list[psutil.Process]:
        """Return the workers that hold a rank. The ring does not depend on the others."""
        parents = set()
        for rank in self.ranks():
            with suppress(psutil.NoSuchProcess):
                parents.add(rank.ppid())
        return [worker for worker in self.workers() if worker.pid in parents]

    def steps(self) -> list[int]:
        """Return the steps in metrics.jsonl, in file order."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines if '"loss"' in line and line.endswith("}")]

    def step(self) -> int:
        return max(self.steps(), default=0)

    def rounds(self) -> int:
        """Rounds whose rank 0 was started."""
        path = self.run / "logs" / "rank-0.log"
        return path.read_text().count("== round") if path.exists() else 0

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for the end and return exit code and summary. Asserts that no process of the training is left."""
        out, _ = self.process.communicate(timeout=END_S)
        self.gone()
        return self.process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}

    def gone(self) -> None:
        _, left = psutil.wait_procs(list(self.known.values()), timeout=WAIT_S)
        assert not left, f"left behind: {left}"

    def kill_all(self) -> None:
        """Kill all processes of the training, also after a failed test."""
        for process in self.started:
            process.kill()
            process.wait()
        for child in self.known.values():
            with suppress(psutil.NoSuchProcess):
                child.kill()


def fault(training: Supervised, kind: str, draw: random.Random) -> float:
    """Inject one fault at a random moment; return the seconds until the next new step. A stopped process may continue afterwards."""
    whom, _, how = kind.partition(" ")
    goal = training.step() + draw.randint(1, 8)
    until(lambda: training.step() >= goal or training.process.poll() is not None, f"step {goal}")
    assert training.process.poll() is None, (
        f"the run was over at step {training.step()}: it needs more steps for its faults"
    )
    victims = until(training.ranks if whom == "rank" else training.holders, "somebody to fail")
    victim = draw.choice(victims)
    rounds, began = training.rounds(), time.monotonic()
    victim.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    until(lambda: training.rounds() > rounds, f"a round after {kind}")
    first = training.step()
    until(lambda: training.step() > first or training.process.poll() is not None, f"a step after {kind}")
    seconds = time.monotonic() - began
    if how == "stop":
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)
    return seconds
