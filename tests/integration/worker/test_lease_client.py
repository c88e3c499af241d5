"""The learner's client against a coordinator of a few lines: order, audit, discarded results, second results."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rl.distributed.jobs import AnyJob, Rollout, shapes
from rl.distributed.protocol import DistrustWorker, FromLearner, JobResult, PublishPolicy, RunJob, receive, send
from rl.distributed.runner import JobRunner
from rl.policy import to_bytes
from tests.support.grid_control import untrained, write_dataset, year
from tests.support.waiting import WAIT_S
from worker.control.lease_client import LeaseClient

ACTIONS = 4
Workers = Callable[[int, int], str]  # (number, how often it was submitted) → the worker that runs it


class Coordinator:
    """Runs each job at once, on a worker that the test names; results of `liars` have louder noise, and matching costs."""

    def __init__(self, folder: Path, workers: Workers, liars: set[str]) -> None:
        self.workers, self.liars = workers, liars
        self.submitted: dict[int, list[Rollout]] = {}
        self.distrusted: list[DistrustWorker] = []
        self.published: list[int] = []
        to_client, self._out = os.pipe()
        self._in, from_client = os.pipe()
        self._files = [os.fdopen(fd, mode) for fd, mode in ((to_client, "rb"), (from_client, "wb"))]
        self._reader, self._writer = os.fdopen(self._in, "rb"), os.fdopen(self._out, "wb")
        self.client = LeaseClient(self._files[0], self._files[1], ACTIONS, on_end=lambda: None)
        # One each for the thread of the workers and for the learner's.
        self.runner, self.client.runner = (JobRunner(folder, self.client.policy_of) for _ in range(2))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (received := receive(self._reader, FromLearner)) is not None:
            message, _ = received
            if isinstance(message, RunJob):
                job = msgspec.convert(message.job, AnyJob)
                assert isinstance(job, Rollout)
                times = self.submitted.setdefault(message.number, [])
                times.append(job)
                self.return_result(message.number, self.workers(message.number, len(times)))
            elif isinstance(message, DistrustWorker):
                self.distrusted.append(message)
            elif isinstance(message, PublishPolicy):
                self.published.append(message.version)

    def return_result(self, number: int, worker: str) -> None:
        job = self.submitted[number][-1]
        if worker in self.liars:
            job = msgspec.structs.replace(job, noise=(0.2,) * ACTIONS)
        arrays = self.runner.run(job)
        send(
            self._writer,
            JobResult(number, worker, 0.1, {}),
            [arrays[name].tobytes() for name, _, _ in shapes(job, ACTIONS)],
        )

    def close(self) -> None:
        self._files[1].close()
        self._thread.join(WAIT_S)
        self._writer.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    write_dataset(tmp_path, year(6))
    made: list[Coordinator] = []

    def start(workers: Workers, *liars: str) -> Coordinator:
        made.append(Coordinator(tmp_path, workers, set(liars)))
        return made[0]

    yield start
    for one in made:
        one.close()


def rollouts(client: LeaseClient, folder: Path, count: int) -> list[Rollout]:
    sha256 = write_dataset(folder, year(6))
    policy = client.publish(1, to_bytes(untrained(year(6), 8)))
    return [Rollout(sha256, policy, seed, 2, 24, (0.1,) * ACTIONS) for seed in range(count)]


def test_results_keep_the_order_of_their_jobs(serve: Callable[..., Coordinator], tmp_path: Path) -> None:
    coordinator = serve(lambda number, times: f"w{number % 3}")
    client = coordinator.client
    jobs = rollouts(client, tmp_path, 5)
    results = client.collect(client.submit(jobs)[::-1])
    for job, result in zip(jobs[::-1], results, strict=True):
        assert np.array_equal(result["actions"], client.runner.run(job)["actions"])
    assert client.audits == 3 and client.steps == 5 * 2 * 24
    assert not coordinator.distrusted and coordinator.published == [1]


@pytest.mark.parametrize("turn", [1, -1])
def test_no_result_of_a_worker_is_used_if_its_first_is_wrong(
    turn: int, serve: Callable[..., Coordinator], tmp_path: Path
) -> None:
    # The liar runs three of the five first; submitted again, they run on another worker.
    coordinator = serve(lambda number, times: "bad" if number % 2 and times == 1 else "good", "bad")
    client = coordinator.client
    jobs = rollouts(client, tmp_path, 5)
    # Also where its later results are collected before its first.
    results = client.collect(client.submit(jobs)[::turn])
    for job, result in zip(jobs[::turn], results, strict=True):
        assert np.array_equal(result["actions"], client.runner.run(job)["actions"])
    assert [message.worker for message in coordinator.distrusted] == ["bad"]
    assert sorted(n for n, times in coordinator.submitted.items() if len(times) == 2) == [1, 3, 5]


def test_wrong_result_of_two_differing_ones_is_detected(serve: Callable[..., Coordinator], tmp_path: Path) -> None:
    coordinator = serve(lambda number, times: "w" if times == 1 else "another")
    client = coordinator.client
    first, *others = rollouts(client, tmp_path, 40)
    client.collect(client.submit([first]))  # audited, and right
    coordinator.liars.add("w")
    accepted = 0
    while not accepted:  # until one is accepted that the sample leaves out
        numbers = client.submit([others.pop()])
        audits = client.audits
        client.collect(numbers)
        accepted = numbers[0] if client.audits == audits else 0
    coordinator.return_result(accepted, "w")  # an equal second result
    assert not coordinator.distrusted
    coordinator.return_result(accepted, "honest")
    coordinator.liars.clear()
    client.collect(client.submit([first]))  # earlier results were taken by then
    assert [message.worker for message in coordinator.distrusted] == ["w"]
    assert "the accepted result differs" in coordinator.distrusted[0].reason
