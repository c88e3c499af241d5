"""A supervised training as a test sees it from outside: processes by their command lines, steps by metrics.jsonl, faults by signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.waiting import await_gone, end_of, footprint, until

KINDS = ("rank kill", "rank stop", "worker kill", "worker stop")


class Supervised:
    """A training with its data in `folder`/data, and the coordinator's process that runs it now.

    `command` starts a coordinator that prints its summary as the last line on stdout; `script`: what its ranks run.
    """

    def __init__(self, folder: Path, command: list[str], script: str, env: Mapping[str, str] | None = None) -> None:
        self.folder, self.command, self.script = folder, command, script
        self.env = {**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"}  # see `end_of`
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

    def progress(self) -> object:
        """Return a value that changes while the run gets on. Its log is left out: it grows also when nothing happens."""
        return footprint(self.data)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Return the first true value of a condition. Fails when the run has ended, or does not progress."""

        def holds() -> Any:
            ended = self.process.poll() is not None
            found = condition()
            assert found or not ended, f"the run was over before {what}: {self.log.read_text()[-3000:]}"
            return found

        return until(holds, what, self.progress)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for the end and return exit code and summary. Asserts that no process of the training is left."""
        out, _ = end_of(self.process, f"the end of the run: see {self.log}", self.progress)
        self.gone()
        return self.process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}

    def gone(self) -> None:
        await_gone(self.known.values(), "the end of all processes of the training")

    def kill_all(self) -> None:
        """Kill all processes of the training, also after a failed test."""
        for process in self.started:
            process.kill()
            process.wait()
        for child in self.known.values():
            with suppress(psutil.NoSuchProcess):
                child.kill()


def hit(victims: Callable[[], list[psutil.Process]], number: int, draw: random.Random) -> psutil.Process | None:
    """Send a signal to one of the `victims`, and return it; None if there was none, or it ended before."""
    if found := victims():
        victim = draw.choice(found)
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
            return victim
    return None


def fault(training: Supervised, kind: str, draw: random.Random) -> float:
    """Inject one fault at a random step; return the seconds until the next new step. A stopped process may continue afterwards."""
    whom, _, how = kind.partition(" ")
    goal = training.step() + draw.randint(1, 8)
    training.until(lambda: training.step() >= goal, f"step {goal}")
    # Counted before the victim is chosen: if its round is ending for another reason, the next one is waited for all the same.
    rounds = training.rounds()
    family = training.ranks if whom == "rank" else training.holders
    number = signal.SIGKILL if how == "kill" else signal.SIGSTOP
    victim = training.until(lambda: hit(family, number, draw), "somebody to fail")
    began = time.monotonic()
    training.until(lambda: training.rounds() > rounds, f"a round after {kind}")
    first = training.step()
    training.until(lambda: training.step() > first, f"a step after {kind}")
    seconds = time.monotonic() - began
    if how == "stop":
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)
    return seconds
