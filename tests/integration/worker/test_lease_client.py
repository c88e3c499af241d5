"""The learner's end of the pipe against a coordinator of a few lines: order, audit, voided results, second results."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rl.distributed.jobs import AnyJob, Arrays, Rollout
from rl.distributed.protocol import DistrustWorker, FromLearner, JobResult, PublishPolicy, RunJob, receive, send
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of
from rl.env.dataset_file import to_bytes as dataset_bytes
from rl.env.forecasts import oracle
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.policy import init_mlp, normalisation, to_bytes
from worker.control.lease_client import LeaseClient

WAIT_S = 30.0  # bound of every wait: reached only when something is broken
Workers = Callable[[int, int], str]  # (number, how often it was asked for) → who does it


class Coordinator:
    """Answers each RunJob at once, by a worker that the test names; results of `liars` are of louder noise, with the right costs."""

    def __init__(self, runner: JobRunner, learners: JobRunner, workers: Workers, liars: set[str]) -> None:
        self.runner, self.workers, self.liars = runner, workers, liars
        self.asked: dict[int, list[Rollout]] = {}
        self.distrusted: list[DistrustWorker] = []
        self.published: list[int] = []
        theirs, self._out = os.pipe()
        self._in, ours = os.pipe()
        self._files = [os.fdopen(fd, mode) for fd, mode in ((theirs, "rb"), (ours, "wb"))]
        self._reader, self._writer = os.fdopen(self._in, "rb"), os.fdopen(self._out, "wb")
        self.jobs = LeaseClient(self._files[0], self._files[1], 4, ended=lambda: None)
        self.jobs.runner = learners
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (found := receive(self._reader, FromLearner)) is not None:
            word, _ = found
            if isinstance(word, RunJob):
                job = msgspec.convert(word.job, AnyJob)
                assert isinstance(job, Rollout)
                times = self.asked.setdefault(word.number, [])
                times.append(job)
                self.give(word.number, self.workers(word.number, len(times)))
            elif isinstance(word, DistrustWorker):
                self.distrusted.append(word)
            elif isinstance(word, PublishPolicy):
                self.published.append(word.version)

    def result(self, number: int, worker: str) -> Arrays:
        job = self.asked[number][-1]
        if worker in self.liars:
            job = msgspec.structs.replace(job, noise=(0.2,) * 4)
        return self.runner.run(job)

    def give(self, number: int, worker: str) -> None:
        send(self._writer, JobResult(number, worker, 0.1, {}), self.result(number, worker))

    def close(self) -> None:
        self._files[1].close()
        self._thread.join(WAIT_S)
        self._writer.close()


@pytest.fixture(scope="module")
def data() -> Dataset:
    made, _ = synthetic(8760)
    return build_dataset([made], [oracle(made, 6)], "2017-01-02T00", "2017-12-01T00")


@pytest.fixture
def serve(data: Dataset, tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    sha256, content = dataset_bytes(data)
    path_of(tmp_path, sha256).parent.mkdir()
    path_of(tmp_path, sha256).write_bytes(content)
    made: list[Coordinator] = []

    def begin(workers: Workers, *liars: str) -> Coordinator:
        # One each for the thread of the workers and for the learner's.
        theirs, learners = (JobRunner(tmp_path, lambda sha256: made[0].jobs.policy_of(sha256)) for _ in range(2))
        made.append(Coordinator(theirs, learners, workers, set(liars)))
        return made[0]

    yield begin
    for one in made:
        one.close()


def rollouts(jobs: LeaseClient, data: Dataset, count: int) -> list[Rollout]:
    env = VectorGridEnv(Grid(), data, 256, 24)
    mean, scale = normalisation(env.reset(np.random.default_rng(0).choice(data.starts(24), 256)))
    policy = init_mlp(env.observation_names, mean, scale, env.num_actions, 8, np.random.default_rng(0))
    sha256, _ = dataset_bytes(data)
    name = jobs.publish(1, to_bytes(policy))
    return [Rollout(sha256, name, seed, 2, 24, (0.1,) * 4) for seed in range(count)]


def test_results_come_in_the_order_of_their_jobs(serve: Callable[..., Coordinator], data: Dataset) -> None:
    coordinator = serve(lambda number, times: f"w{number % 3}")
    wanted = rollouts(coordinator.jobs, data, 5)
    numbers = coordinator.jobs.ask(wanted)
    found = coordinator.jobs.collect(numbers[::-1])
    for job, result in zip(wanted[::-1], found, strict=True):
        assert np.array_equal(result["actions"], coordinator.jobs.runner.run(job)["actions"])
    assert coordinator.jobs.audits == 3 and coordinator.jobs.steps == 5 * 2 * 24
    assert not coordinator.distrusted and coordinator.published == [1]


@pytest.mark.parametrize("turn", [1, -1])
def test_nothing_of_a_worker_whose_first_result_is_wrong_is_used(
    turn: int, serve: Callable[..., Coordinator], data: Dataset
) -> None:
    # Three of five are the liar's; asked for again, they are somebody else's.
    coordinator = serve(lambda number, times: "bad" if number % 2 and times == 1 else "good", "bad")
    wanted = rollouts(coordinator.jobs, data, 5)
    # Also where its later results are collected before its first.
    found = coordinator.jobs.collect(coordinator.jobs.ask(wanted)[::turn])
    for job, result in zip(wanted[::turn], found, strict=True):
        assert np.array_equal(result["actions"], coordinator.jobs.runner.run(job)["actions"])
    assert [one.worker for one in coordinator.distrusted] == ["bad"]
    assert sorted(n for n, times in coordinator.asked.items() if len(times) == 2) == [1, 3, 5]


def test_of_two_results_that_differ_the_wrong_one_is_found(serve: Callable[..., Coordinator], data: Dataset) -> None:
    coordinator = serve(lambda number, times: "w" if times == 1 else "another")
    first, *others = rollouts(coordinator.jobs, data, 40)
    coordinator.jobs.collect(coordinator.jobs.ask([first]))  # audited, and right
    coordinator.liars.add("w")
    used = 0
    while not used:  # until one is used that the sample leaves out
        numbers = coordinator.jobs.ask([others.pop()])
        audits = coordinator.jobs.audits
        coordinator.jobs.collect(numbers)
        used = numbers[0] if coordinator.jobs.audits == audits else 0
    coordinator.give(used, "w")  # the same once more: nothing to say
    assert not coordinator.distrusted
    coordinator.give(used, "honest")
    coordinator.liars.clear()
    coordinator.jobs.collect(coordinator.jobs.ask([first]))  # whatever came before was taken by then
    assert [one.worker for one in coordinator.distrusted] == ["w"]
    assert "a result that was used differs" in coordinator.distrusted[0].reason
