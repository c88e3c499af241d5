"""Local workers: dead and unresponsive ones are restarted; one that has not registered yet is left alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.workers.local import LocalWorkerPool
from ingest.errors import StorageError
from tests.support.waiting import WAIT_S

STAND_IN = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[LocalWorkerPool]:
    made = LocalWorkerPool(STAND_IN, "tcp://127.0.0.1:1", tmp_path, 2, 1, unresponsive_timeout_s=0.1)
    made.start()
    yield made
    made.stop(timeout_s=0.0)


def pids(workers: LocalWorkerPool) -> list[int]:
    return [process.pid for process in workers._processes if process is not None]


def supervise_until(workers: LocalWorkerPool, known: list[int], lost: list[int]) -> list[str]:
    deadline, said = time.monotonic() + WAIT_S, []
    while not lost:
        assert time.monotonic() < deadline
        said += workers.supervise(known, lambda pid, reason: lost.append(pid))
    return said


def test_dead_worker_is_restarted_and_reported(workers: LocalWorkerPool) -> None:
    first, second = pids(workers)
    os.kill(first, 9)
    lost: list[int] = []
    supervise_until(workers, [first, second], lost)
    assert lost == [first]
    assert pids(workers)[1] == second
    assert all(process is not None and process.poll() is None for process in workers._processes)
    assert workers.restarts == 1


def test_unresponsive_worker_is_replaced(workers: LocalWorkerPool) -> None:
    first, second = pids(workers)
    workers.supervise([first], lambda pid, reason: None)
    lost: list[int] = []
    said = supervise_until(workers, [], lost)
    assert lost == [first]
    assert "runs but sends no heartbeat" in said[0]
    assert pids(workers)[1] == second  # it has not registered yet and may take its time to start


def test_responsive_worker_is_not_restarted(workers: LocalWorkerPool) -> None:
    known = pids(workers)
    until = time.monotonic() + 3 * workers.unresponsive_timeout_s
    while time.monotonic() < until:
        assert not workers.supervise(known, lambda pid, reason: None)
    assert pids(workers) == known


def test_end_by_sigkill_names_memory(workers: LocalWorkerPool) -> None:
    first, second = pids(workers)
    os.kill(first, 9)
    lost: list[int] = []
    said = supervise_until(workers, [first, second], lost)
    assert "signal 9 (killed; by the system if memory ran out" in said[0]


def test_log_that_cannot_be_written_is_a_resumable_error(tmp_path: Path) -> None:
    (tmp_path / "logs" / "worker-0.log").mkdir(parents=True)
    pool = LocalWorkerPool(STAND_IN, "tcp://127.0.0.1:1", tmp_path, 1, 1, unresponsive_timeout_s=0.1)
    with pytest.raises(StorageError, match=r"worker-0\.log: Is a directory"):
        pool.start()
