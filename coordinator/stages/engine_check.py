"""Call an engine's factory once, in a process of its own, before a run depends on it.

The process ends what the factory made: the run's own call comes from its `worker --engine`, and libraries of engines leave
threads, signal handlers and processes behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Executor
from contextlib import suppress
from functools import cache
from pathlib import Path

from coordinator.wire.engines import load_factory
from ingest.errors import UsageError

CHECK_S = 60.0  # for the factory to return; one that waits longer, e.g. for an allocation, is left to the run
END_S = 4.0  # for the executor's processes to end
REFUSED = 3  # exit code of the process: the factory cannot be used, stdout says why


@cache
def check_engine(name: str) -> None:
    """Check that the factory `MODULE:FACTORY` returns an executor. Once in a process: `follow` builds many fleets.

    Raises:
        UsageError: it raised, or returned something else; the message says which.
    """
    with tempfile.TemporaryFile() as told:  # no pipe: a process that the engine leaves behind would hold it open
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, name],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.DEVNULL,
        )
        try:
            code = process.wait(CHECK_S + END_S)
        except subprocess.TimeoutExpired:
            return
        finally:
            if process.poll() is None:
                process.terminate()
        told.seek(0)
        problem = told.read().decode(errors="replace")
    if code == REFUSED:
        raise UsageError(f"--engine {name} {problem}; correct the factory, then run the same command again.")


def problem_of(name: str) -> str:
    """Call the factory, end what it returns, and return why a run cannot use it; "": it can."""
    try:
        executor = load_factory(name)()
    except Exception as error:  # whatever a user's factory does
        text = " ".join(str(error).split())[:1000]
        return f"raised {type(error).__name__}" + (f": {text.rstrip('.')}" if text else "")
    if not isinstance(executor, Executor):
        return f"returned {type(executor).__name__}, not a concurrent.futures.Executor"
    with suppress(Exception):
        executor.shutdown(wait=False)
    return ""


def main(name: str) -> int:
    """Check a factory in this process; what it prints goes nowhere."""
    told = os.dup(1)
    os.dup2(2, 1)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    problem = problem_of(name)
    os.write(told, problem.encode(errors="replace"))
    code = REFUSED if problem else 0
    timer = threading.Timer(END_S, os._exit, (code,))  # threads of a library may not end
    timer.daemon = True
    timer.start()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
