"""Say how the newest run stands: what failed, why, and what to do next. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from coordinator.stages.display import approximate
from coordinator.stages.run_log import RunState
from coordinator.stages.stage import STAGES
from coordinator.watch.folder import View
from ingest.errors import quoted

State = Literal["none", "running", "waiting", "done", "stopped", "failed", "gone"]
NAMES: dict[State, str] = {
    "none": "no run",
    "running": "running",
    "waiting": "waiting",
    "done": "done",
    "stopped": "stopped",
    "failed": "not complete",
    "gone": "gone",
}
MAX_CAUSES = 5
SAME = "Start the same command again: what is done is kept, and only the rest is tried."
AFTER = {  # status with which a run ended → what was the matter, and what helps
    "incomplete": ("", SAME),
    "storage": ("The disk takes no more.", f"Make room on the disk of the data folder (`df -h`). {SAME}"),
    "authentication": ("The source refuses the API key.", f"Set EIA_API_KEY to a valid key. {SAME}"),
    "usage": ("A setting cannot be right.", "Correct it, then start the command again."),
    "failed": ("", f"Its error is in the terminal that started it. Correct the cause. {SAME}"),
}


@dataclass(frozen=True)
class Cause:
    """Why tasks were given up: one cause may end many."""

    tasks: tuple[str, ...]
    why: str

    @property
    def title(self) -> str:
        """The first task, and how many more."""
        more = len(self.tasks) - 1
        return self.tasks[0] + (f" and {more:,} more" if more else "")


@dataclass(frozen=True)
class Advice:
    """How a run stands. `then`: what to do next, and `command` what to type."""

    state: State
    title: str
    why: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    then: str = ""
    command: str = ""

    @property
    def name(self) -> str:
        """The state in words."""
        return NAMES[self.state]


def causes(failed: Iterable[tuple[str, str, str]]) -> tuple[Cause, ...]:
    """Return the causes of tasks that were given up, (task, error, message) each; the same one once, however many tasks it ended."""
    by_cause: dict[str, tuple[str, list[str]]] = {}
    for task, error, message in failed:
        why = f"{error}: {message}" if message else error
        by_cause.setdefault(why.replace(task, "…"), (why, []))[1].append(task)
    most = sorted(by_cause.values(), key=lambda one: -len(one[1]))
    return tuple(Cause(tuple(tasks), why) for why, tasks in most[:MAX_CAUSES])


def advice(view: View) -> Advice:
    """Return how the newest run of a folder stands."""
    state = view.state
    if view.missing and (state is not None or view.log):
        return Advice(
            "gone", f"{view.data} is gone: this is what it last held.", then="The page waits until it is there again."
        )
    if state is None:
        return Advice(
            "none",
            "No run has written a status here yet.",
            command=f"coordinator start --extract --data {quoted(view.data)}",
        )
    if view.running:
        return _of_running(view, state)
    if not state.ended:
        age = approximate(view.now - state.at)
        why = f"Its coordinator (process {state.pid} of the host that started it) has written no status for {age}: it was killed, its host is down, or its disk is full."
        return Advice("gone", f"{state.stage} has no end.", (why,), then=SAME)
    message = next((one.message for one in view.stages if one.stage == state.stage), "")
    if state.ended == "done":
        entry = next((one for one in STAGES if one.name == state.stage), None)
        command = "" if entry is None else f"{entry.then} --data {quoted(view.data)}"
        return Advice("done", f"{state.stage} is done.", command=command, then="Next:" if command else "")
    if state.ended in ("drain", "stopped"):
        return Advice("stopped", f"{state.stage} was stopped before it was complete.", then=SAME)
    what, then = AFTER.get(state.ended, ("", SAME))
    reasons = tuple(one for one in (what, message) if one)
    return Advice("failed", f"{state.stage} has ended.", reasons, causes(state.run.quarantined), then)


def _of_running(view: View, state: RunState) -> Advice:
    run, progress = state.run, state.run.progress
    why = [f"{wait}." for wait in map(str, run.waits)]
    if run.halt:
        why.append(f"No more leases are issued: {run.halt}.")
    leased = run.tasks.get("leased", 0)
    waiting = bool(run.waits) and sum(wait.tasks for wait in run.waits) >= leased
    title = f"{state.stage} is running."
    if progress is not None:
        left = "time left unknown" if progress.eta_s is None else f"{approximate(progress.eta_s)} left"
        title = f"{state.stage} {progress.share:.0%}, {left}."
    given_up = causes(run.quarantined)
    then = "The run goes on without what was given up; the same command tries it again afterwards." if given_up else ""
    return Advice("waiting" if waiting else "running", title, tuple(why), given_up, then)
