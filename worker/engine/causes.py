"""Say in one short line why an engine failed, and what to do where that is known."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version

from ingest.console import brief

PROJECT = "ring-attention-energy"
OURS = ("coordinator", "ingest", "ringattn", "rl", "worker")
LONGEST_CHAIN = 5  # of an exception and its causes
_ABSENT = re.compile(r"No module named '([\w.]+)'")
# Text of an exception → what to do.
ADVICE = {
    "BrokenProcessPool": "one of its processes was killed, by the system if memory ran out (see `dmesg`), or could not start",
    "TerminatedWorkerError": "one of its processes was killed, by the system if memory ran out (see `dmesg`)",
    "KilledWorker": "its workers died of this task: see the workers' logs",
    "WorkerCrashedError": "one of its processes was killed: see Ray's logs",
}


@cache
def own_version() -> str:
    """Return the version of this project on this host."""
    return version(PROJECT)


def cause_of(error: BaseException) -> str:
    """Return what an engine's library raised as one line without secrets, and what to do where that is known."""
    line = brief(error)
    chain = [error]  # Dask tells the module that is missing in the cause alone
    while len(chain) < LONGEST_CHAIN and (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    found = ((one, absent) for one in chain if (absent := _ABSENT.search(str(one))) is not None)
    if (first := next(found, None)) is not None:
        line, absent = brief(first[0]), first[1]
        root = absent.group(1).partition(".")[0]
        what = f"{PROJECT} {own_version()}" if root in OURS else f"what has {root}"
        return f"{line}: install {what} on the engine's hosts"
    advice = next((text for name, text in ADVICE.items() if name in f"{type(error).__name__}: {error}"), "")
    return f"{line}: {advice}" if advice else line
