"""Call an engine's factory and run a first task there: `python -m worker.engine.check MODULE:FACTORY`, which the coordinator starts before a run.

A process of its own: the run's own call comes from its `worker --engine`, and libraries of engines leave threads, signal handlers and
processes behind.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

import msgspec

from coordinator.wire.engines import PASSED, REFUSED, load_factory
from coordinator.wire.lease_kinds import LeaseKind
from ingest.console import brief
from worker.engine.causes import cause_of, own_version
from worker.engine.messages import LeaseFailure, LeaseRequest, decode_answer, encode
from worker.engine.run import run
from worker.process.parent_death import exit_with_parent

END_S = 4.0  # for the executor's processes to end


def problem_of(name: str) -> str:
    """Call the factory, run a task that does nothing, end what was made, and return why a run cannot use it; "": it can."""
    try:
        executor = load_factory(name)()
    except BaseException as error:  # whatever a user's factory does, sys.exit() included
        return f"raised {brief(error)}"
    if not isinstance(executor, Executor):
        return f"returned {type(executor).__name__}, not a concurrent.futures.Executor"
    try:
        return _first_task(executor)
    finally:
        with suppress(Exception):
            executor.shutdown(wait=False)


def _first_task(executor: Executor) -> str:
    request = LeaseRequest(own_version(), LeaseKind.NOOP, {}, os.sep, "", {}, {})
    try:
        future = executor.submit(run, encode(request))
    except BaseException as error:
        return f"returned an executor that takes no task: {cause_of(error)}"
    try:
        found = future.result()
    except BaseException as error:
        return f"returned an executor that cannot run this project: {cause_of(error)}"
    try:
        answer = decode_answer(found)
    except (TypeError, msgspec.DecodeError):
        return f"returned an executor that answers with {type(found).__name__} of its own in place of the task's result"
    return f"cannot be used: {answer.failure.message}" if isinstance(answer, LeaseFailure) else ""


def main(name: str) -> int:
    """Check a factory in this process; what it prints goes nowhere."""
    exit_with_parent()
    told = os.dup(1)
    os.dup2(2, 1)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    problem = problem_of(name)
    os.write(told, problem.encode(errors="replace") or PASSED)
    code = REFUSED if problem else 0
    timer = threading.Timer(END_S, os._exit, (code,))  # threads of a library may not end
    timer.daemon = True
    timer.start()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
