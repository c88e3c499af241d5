"""Engines for tests: those of docs/how-to/engines.md, as `my_engines.py`, and one whose scheduler is a process of its own."""

from __future__ import annotations

import atexit
import re
import subprocess
import sys
import time
from concurrent.futures import Executor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "engines.md"
SCHEDULER_S = 60.0  # for a scheduler to write its address
PIDS = "schedulers.txt"  # in the working folder: a process id each line


def write_documented(folder: Path) -> None:
    """Write `my_engines.py` and `my_slurm.py` as the page has them."""
    found = re.findall(r"```python\n(# (my_\w+\.py)\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for _, name in found] == ["my_engines.py", "my_slurm.py"]
    for code, name in found:
        (folder / name).write_text(code)


def pool() -> Executor:
    """Return a pool of the standard library, and write its workers' process ids."""
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor

    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    _note(executor.submit(os.getpid).result())
    return executor


def dask_apart() -> Executor:
    """Return an executor of Dask with a scheduler and two workers, each a process of its own; all end with the scheduler."""
    from distributed import Client

    name = Path(f"scheduler-{time.monotonic_ns()}.json").resolve()
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", name], stderr=subprocess.DEVNULL)
    atexit.register(scheduler.kill)
    until = time.monotonic() + SCHEDULER_S
    while not name.exists() and time.monotonic() < until:
        time.sleep(0.05)
    worker: list[str | Path] = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--scheduler-file",
        name,
        "--nthreads",
        "1",
    ]
    worker += ["--no-dashboard", "--no-nanny", "--death-timeout", "5"]
    for _ in range(2):
        atexit.register(subprocess.Popen(worker, stderr=subprocess.DEVNULL).kill)
    executor = Client(scheduler_file=str(name), timeout=SCHEDULER_S).get_executor()
    _note(scheduler.pid)
    return executor


def _note(pid: int) -> None:
    with Path(PIDS).open("a") as file:
        file.write(f"{pid}\n")
