"""Random signals to every process of a pipeline: no process is left, the same command resumes, and the result is that of an undisturbed run.

The stages run one after another in one command. Signals hit coordinator, workers, rank and learner after random numbers of files, steps
and versions; a run that ends before all were sent is followed by another one in a new folder.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.wire.exit_codes import ExitCode
from ingest.emulator.process import Emulator
from tests.support import control_data
from tests.support.program import PLAN, TRAINING, command, environment, series_digest
from tests.support.supervised import Supervised, hit
from tests.support.waiting import footprint, until

LATENCY_MS = "40"  # of the source: an extraction lasts long enough to be hit several times
SIGNALS = 10  # for each stage
REACH = {"extract": 8, "train": 40, "rollouts": 8}  # at most so many files, steps, versions from one signal to the next
ROLES = {
    "extract": ("coordinator", "worker"),
    "train": ("coordinator", "worker", "rank"),
    "rollouts": ("coordinator", "worker", "learner"),
}
KINDS = ("TERM", "INT", "INT INT", "HUP", "KILL", "QUIT", "STOP CONT")
HOLD_S = 2.0  # at most, that a coordinator is stopped

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")


class Pipeline(Supervised):
    """All stages in one command, in a new folder. One rank: a ring of another size would add in another order."""

    def __init__(self, folder: Path, url: str) -> None:
        folder.mkdir()
        settings = {**TRAINING, "steps": 200, "validate_every": 50, "checkpoint_every": 10}
        toml = folder / "train.toml"
        toml.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        control = control_data.config(folder / "control.toml", 24, "pathwise")
        stages = ("--extract", "--train", "--rollouts", "--train-config", toml, "--control-config", control)
        fleet = ("--workers", "2", "--ranks", "1", "--retries", "50", "--source", url)
        super().__init__(folder, command("start", "--json", *stages, *PLAN, *fleet), "worker/train.py", environment())

    def stage(self) -> str:
        """Return the newest stage that has begun."""
        for folder, stage in (("control", "rollouts"), ("train", "train")):
            if (self.data / folder).exists():
                return stage
        return "extract"

    def points(self) -> int:
        """Return the number of files of the extraction and of the control training, of steps, and of versions."""
        control = self.data / "control"
        metrics = control / "metrics.jsonl"
        folders = [self.data / name for name in ("raw", "manifests", "series")]
        versions = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        return footprint(*folders, control / "tables")[0] + self.step() + versions

    def processes(self, role: str) -> list[psutil.Process]:
        if role == "coordinator":
            return [psutil.Process(self.process.pid)]
        return {"worker": self.workers, "rank": self.ranks, "learner": lambda: self.family("worker.control.learner")}[
            role
        ]()

    def await_during(self, stage: str, condition: Callable[[], Any], what: str) -> Any:
        """Return the first true value of `condition`; None if the stage or the run is over before."""

        def over() -> bool:
            return self.process.poll() is not None or self.stage() != stage

        found = until(lambda: (value,) if (value := condition()) or over() else None, what, self.progress)
        return found[0] or None

    def send(self, stage: str, role: str, kind: str, draw: random.Random) -> bool:
        """Send a signal to a process of a role, once there is one; return whether the stage was still in progress."""
        first, *second = (signal.Signals[f"SIG{name}"] for name in kind.split())
        victim = self.await_during(stage, lambda: hit(lambda: self.processes(role), first, draw), f"a {role}")
        if victim is None:
            return False
        if kind == "STOP CONT" and role == "coordinator":
            time.sleep(draw.uniform(0.0, HOLD_S))  # how long it is stopped
        elif kind == "STOP CONT":  # until the others have got on without it
            reached = self.points()
            self.await_during(stage, lambda: self.points() > reached, f"progress beside a stopped {role}")
        for number in second:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(number)
        return True

    def gone(self) -> None:
        """Wait until no process of the pipeline is left: none that works in its folder, whoever its parent is now."""
        super().gone()
        until(lambda: not self._here(), f"the end of {[process.cmdline() for process in self._here()]}")

    def _here(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.folder):
                    found.append(process)
        return found

    def result(self) -> dict[str, Any]:
        """Return what must not depend on signals."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        trained = json.loads((self.run / "result.json").read_text())
        control = [self.data / "control" / name for name in ("policy.npz", "tables.json", "metrics.jsonl")]
        return {
            "series": series_digest(self.data),
            "losses": [(line["step"], line["loss"]) for line in lines if "loss" in line],
            "skills": [(line["step"], line["skill"]) for line in lines if "skill" in line],
            "trained": {name: trained[name] for name in ("steps", "best_step", "validation_skill", "sha256")},
            "control": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in control},
        }


def disturb(pipeline: Pipeline, left: Counter[str], draw: random.Random) -> list[str]:
    """Run a pipeline to its end, with signals as long as any are left for the stage in progress. Return those that were sent."""
    sent: list[str] = []
    code = None
    while code != 0:
        pipeline.start()
        allowed = {0}  # exit codes
        while len(allowed) == 1 and pipeline.process.poll() is None:
            stage = pipeline.stage()
            goal = pipeline.points() + draw.randint(0, REACH[stage])
            reached = lambda stage=stage, goal=goal: left[stage] and pipeline.points() >= goal  # noqa: E731 - a condition
            role, kind = draw.choice(ROLES[stage]), draw.choice(KINDS)
            if not pipeline.await_during(stage, reached, f"{stage} to go on") or not pipeline.send(
                stage, role, kind, draw
            ):
                continue
            left[stage] -= 1
            sent.append(f"{stage}: {kind} to {role}")
            print(sent[-1], flush=True)
            if role == "coordinator" and kind != "STOP CONT":
                allowed |= {int(ExitCode.INTERRUPTED), -signal.Signals[f"SIG{kind.split()[0]}"]}
        code, summary = pipeline.end()
        assert code in allowed, (sent, summary, pipeline.log.read_text()[-5000:])
    return sent


@pytest.fixture
def pipelines(tmp_path: Path) -> Iterator[Any]:
    """Make pipelines with one source; all their processes are killed at the end."""
    made: list[Pipeline] = []
    with Emulator("--latency-ms", LATENCY_MS) as emulator:

        def make(name: str) -> Pipeline:
            made.append(Pipeline(tmp_path / name, emulator.url))
            return made[-1]

        yield make
        for one in made:
            one.kill_all()


@pytest.mark.long
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("seed", [1])
def test_thirty_signals_leave_no_process_and_the_undisturbed_result(pipelines: Any, seed: int) -> None:
    undisturbed = pipelines("undisturbed")
    undisturbed.start()
    code, _ = undisturbed.end()
    assert code == 0, undisturbed.log.read_text()
    expected = undisturbed.result()
    draw, left = random.Random(seed), Counter(dict.fromkeys(ROLES, SIGNALS))
    number = 0
    while left.total():
        number += 1
        pipeline = pipelines(f"disturbed {number}")
        sent = disturb(pipeline, left, draw)
        assert sent, "no signal hit this run"
        assert pipeline.result() == expected, sent
        pipeline.start()
        code, summary = pipeline.end()
        messages = [summary[stage]["message"] for stage in ("train", "rollouts")]
        assert (code, summary["extract"]["new_shards"], messages) == (0, 0, ["nothing was left to do"] * 2)
