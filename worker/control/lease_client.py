"""The learner's end of the pipe: asks for jobs, takes results in the order of its jobs, audits them, and shuns who gave wrong ones."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rl.distributed.audit import Sampler, difference, replay
from rl.distributed.jobs import AnyJob, Arrays, Rollout, datasets_of, kind_of, policies_of, shapes, steps_of
from rl.distributed.protocol import (
    DistrustWorker,
    FromLearner,
    JobResult,
    Log,
    Progress,
    PublishPolicy,
    RunJob,
    ToLearner,
    receive,
    send,
)
from rl.distributed.runner import JobRunner
from rl.errors import DataError
from rl.policy import Mlp, from_bytes

REMEMBERED = 512  # results that were used, for the second one of a job that was issued twice
KEPT = 256  # policies, and those that an open job names


@dataclass(frozen=True)
class AcceptedResult:
    """A result that was handed out."""

    job: AnyJob
    worker: str
    digest: str


class LeaseClient:
    """`ask`, then `collect`. One thread, and one that reads the pipe; the process ends with the pipe."""

    def __init__(
        self, reader: IO[bytes], writer: IO[bytes], actions: int, ended: Callable[[], None] = lambda: os._exit(0)
    ) -> None:
        self._writer, self._actions, self._ended = writer, actions, ended
        self._policies: dict[str, bytes] = {}
        self._number = 0
        self._open: dict[int, AnyJob | tuple[str, dict[str, Any]]] = {}
        self._came: dict[int, tuple[JobResult, dict[str, NDArray]]] = {}
        self._used: dict[int, AcceptedResult] = {}
        self._distrusted: set[str] = set()
        self._sampler = Sampler()
        self._inbox: queue.SimpleQueue[tuple[JobResult, dict[str, NDArray]]] = queue.SimpleQueue()
        self.runner: JobRunner
        self.audits = 0
        self.steps = 0  # of environments, in all results taken
        threading.Thread(target=self._read, args=(reader,), name="pipe", daemon=True).start()

    def _read(self, reader: IO[bytes]) -> None:
        while (found := receive(reader, ToLearner)) is not None:
            self._inbox.put(found)
        self._ended()  # nobody is there to learn for; the newest checkpoint is whole

    def policy_of(self, sha256: str) -> Mlp:
        """The policy of this digest, of those published."""
        return from_bytes(self._policies[sha256])

    def say(self, word: FromLearner, arrays: Mapping[str, NDArray] | None = None) -> None:
        """One word to the coordinator, with `arrays` of any shape and dtype."""
        send(self._writer, word, arrays)

    def note(self, text: str) -> None:
        """A line for whoever watches."""
        self.say(Log(text))

    def progress(self, stage: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """How far a stage of the training is."""
        self.say(Progress(stage, done, total, dict(figures or {})))

    def publish(self, version: int, content: bytes) -> str:
        """Make a policy known to the workers; its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 in self._policies:
            return sha256
        self._policies[sha256] = content
        if len(self._policies) > KEPT:
            wanted = {name for job in self._open.values() if not isinstance(job, tuple) for name in policies_of(job)}
            newest = list(self._policies)[-KEPT:]
            self._policies = {name: kept for name, kept in self._policies.items() if name in newest or name in wanted}
        self.say(PublishPolicy(version, sha256), {"data": np.frombuffer(content, np.uint8)})
        return sha256

    def ask(self, jobs: Sequence[AnyJob]) -> list[int]:
        """Numbers under which to collect the results."""
        numbers = []
        for job in jobs:
            self._number += 1
            self._open[self._number] = job
            self._ask(self._number)
            numbers.append(self._number)
        return numbers

    def _ask(self, number: int) -> None:
        job = self._open[number]
        if isinstance(job, tuple):
            self.say(RunJob(number, job[0], job[1], ()))
        else:
            arrays = shapes(job, self._actions)
            self.say(RunJob(number, kind_of(job), msgspec.to_builtins(job), arrays, datasets_of(job)))

    def proof(self, kind: str, job: dict[str, Any]) -> dict[str, Any]:
        """The proof of a job that gives no arrays."""
        self._number += 1
        number = self._number
        self._open[number] = (kind, job)
        self._ask(number)
        given, _ = self._wait(number)
        del self._open[number]
        return given.proof

    def collect(self, numbers: Sequence[int]) -> list[Arrays]:
        """Results in the order of `numbers`, each checked; a job whose result was wrong is done again by somebody else."""
        return [self._checked(number) for number in numbers]

    def _checked(self, number: int) -> Arrays:
        job = self._open[number]
        assert not isinstance(job, tuple)
        while True:
            given, arrays = self._wait(number)
            wrong = self._replay_mismatch(job, arrays)
            if not wrong:
                break
            self._distrust(given.worker, f"{kind_of(job)} {number}: {wrong}")
            self._ask(number)
        del self._open[number]
        self._used[number] = AcceptedResult(job, given.worker, digest_of(arrays))
        while len(self._used) > REMEMBERED:
            del self._used[next(iter(self._used))]
        self.steps += steps_of(job)
        return arrays

    def _replay_mismatch(self, job: AnyJob, arrays: Arrays) -> str:
        """Why a rollout's costs are not those of its actions, or ""."""
        try:
            if isinstance(job, Rollout):
                replay(self.runner, job, arrays)
        except DataError as error:
            return str(error)
        return ""

    def _wait(self, number: int) -> tuple[JobResult, dict[str, NDArray]]:
        while number not in self._came:
            self._take(*self._inbox.get())
        return self._came.pop(number)

    def _take(self, given: JobResult, arrays: dict[str, NDArray]) -> None:
        if given.worker in self._distrusted:
            if given.number in self._open and given.number not in self._came:
                self._ask(given.number)
        elif given.number in self._used:
            self._check_duplicate(self._used[given.number], given, arrays)
        elif given.number in self._open and given.number not in self._came:
            job = self._open[given.number]
            # Now, not when its turn has come: what this worker sends next may be used before.
            if not isinstance(job, tuple) and self._sampler.pick(given.worker, kind_of(job)):
                self.audits += 1
                if wrong := difference(arrays, self.runner.run(job)):
                    self._distrust(given.worker, f"{kind_of(job)} {given.number}: {wrong}")
                    self._ask(given.number)
                    return
            self._came[given.number] = given, arrays

    def _check_duplicate(self, used: AcceptedResult, given: JobResult, arrays: dict[str, NDArray]) -> None:
        """Another worker's result of a job whose first was used: where the two differ, one of them is wrong."""
        if digest_of(arrays) == used.digest or not self._known(used.job):
            return
        self.audits += 1
        wrong = difference(arrays, self.runner.run(used.job))
        who, what = (given.worker, wrong) if wrong else (used.worker, "a result that was used differs from another's")
        self._distrust(who, what)

    def _known(self, job: AnyJob) -> bool:
        """Whether the job's policy is still here, to do it again."""
        return all(name in self._policies for name in policies_of(job))

    def _distrust(self, worker: str, why: str) -> None:
        """Believe nothing of this worker: what came of it and was not used is void, and asked for again."""
        if worker in self._distrusted:
            return
        self._distrusted.add(worker)
        self.note(f"{worker} is put out: {why}")
        self.say(DistrustWorker(worker, why))
        for number in [number for number, (given, _) in self._came.items() if given.worker == worker]:
            del self._came[number]
            self._ask(number)


def digest_of(arrays: Mapping[str, NDArray]) -> str:
    """sha256 over all numbers, of any shape and dtype, and their names."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
