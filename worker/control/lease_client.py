"""Learner-side client: submit jobs, collect results in order, audit them, and distrust workers with wrong results."""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import msgspec
import numpy as np

from rl.distributed.audit import AuditSampler, difference, replay
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

ACCEPTED_KEPT = 512  # accepted results, to compare with the second result of a job that ran twice
POLICIES_KEPT = 256  # besides those that an open job names

Received = tuple[JobResult, tuple[bytes, ...]]


@dataclass(frozen=True)
class AcceptedResult:
    """A result that was passed to the algorithm."""

    job: AnyJob
    worker: str
    digest: str


class LeaseClient:
    """Submits jobs (`submit`) and returns their results (`collect`). A second thread reads the pipe."""

    def __init__(
        self, reader: IO[bytes], writer: IO[bytes], actions: int, on_end: Callable[[], None] = lambda: os._exit(0)
    ) -> None:
        """Use the pipe to the coordinator. `actions`: of the fleet. `on_end` runs when the coordinator closes the pipe."""
        self._writer, self._actions, self._on_end = writer, actions, on_end
        self._policies: dict[str, bytes] = {}
        self._numbers = count(1)
        self._requests: dict[int, RunJob] = {}  # open ones
        self._jobs: dict[int, AnyJob] = {}  # of the open ones that return arrays
        self._received: dict[int, Received] = {}  # not collected yet
        self._accepted: dict[int, AcceptedResult] = {}
        self._distrusted: set[str] = set()
        self._sampler = AuditSampler()
        self._inbox: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self.runner: JobRunner
        self.audits = 0
        self.steps = 0  # of environments, in all collected results
        threading.Thread(target=self._read, args=(reader,), name="pipe", daemon=True).start()

    def _read(self, reader: IO[bytes]) -> None:
        while (received := receive(reader, ToLearner)) is not None:
            self._inbox.put(received)
        self._on_end()  # the coordinator has gone; the newest state on disk is complete

    def policy_of(self, sha256: str) -> Mlp:
        """Return the published policy of this digest."""
        return from_bytes(self._policies[sha256])

    def send(self, message: FromLearner, *frames: bytes) -> None:
        """Send one message and its frames to the coordinator."""
        send(self._writer, message, frames)

    def log(self, text: str) -> None:
        """Show a line to the user."""
        self.send(Log(text))

    def progress(self, stage: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Report how far a stage of the training is."""
        self.send(Progress(stage, done, total, dict(figures or {})))

    def publish(self, version: int, content: bytes) -> str:
        """Send a policy to the workers unless they have it, and return its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 in self._policies:
            return sha256
        self._policies[sha256] = content
        if len(self._policies) > POLICIES_KEPT:
            needed = {name for job in self._jobs.values() for name in policies_of(job)}
            needed.update(list(self._policies)[-POLICIES_KEPT:])
            self._policies = {name: kept for name, kept in self._policies.items() if name in needed}
        self.send(PublishPolicy(version, sha256), content)
        return sha256

    def submit(self, jobs: Sequence[AnyJob]) -> list[int]:
        """Submit jobs and return the numbers under which `collect` has their results."""
        numbers = []
        for job in jobs:
            arrays = shapes(job, self._actions)
            request = RunJob(next(self._numbers), kind_of(job), msgspec.to_builtins(job), arrays, datasets_of(job))
            self._jobs[request.number] = job
            numbers.append(self._submit(request))
        return numbers

    def _submit(self, request: RunJob) -> int:
        self._requests[request.number] = request
        self.send(request)
        return request.number

    def run_on_series(self, kind: str, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job that reads the data folder's series and returns no arrays; return the job's output."""
        result, _ = self._wait(self._submit(RunJob(next(self._numbers), kind, job, ())))
        del self._requests[result.number]
        return result.proof

    def collect(self, numbers: Sequence[int]) -> list[Arrays]:
        """Return verified results in the order of `numbers`. A job with a wrong result runs again on another worker."""
        return [self._collect(number) for number in numbers]

    def _collect(self, number: int) -> Arrays:
        job = self._jobs[number]
        while True:
            result, frames = self._wait(number)
            arrays = self._arrays(job, frames)
            if not (mismatch := self._replay_mismatch(job, arrays)):
                break
            self._distrust(result.worker, number, job, mismatch)
            self.send(self._requests[number])
        del self._jobs[number], self._requests[number]
        self._accepted[number] = AcceptedResult(job, result.worker, digest_of(frames))
        while len(self._accepted) > ACCEPTED_KEPT:
            del self._accepted[next(iter(self._accepted))]
        self.steps += steps_of(job)
        return arrays

    def _arrays(self, job: AnyJob, frames: Sequence[bytes]) -> Arrays:
        """Return the arrays of a result, whose sizes the coordinator has checked."""
        specs = shapes(job, self._actions)
        return {
            name: np.frombuffer(frame, dtype).reshape(shape)
            for (name, dtype, shape), frame in zip(specs, frames, strict=True)
        }

    def _replay_mismatch(self, job: AnyJob, arrays: Arrays) -> str:
        """Return how a rollout's costs differ from a replay of its actions, or ""."""
        try:
            if isinstance(job, Rollout):
                replay(self.runner, job, arrays)
        except DataError as error:
            return str(error)
        return ""

    def _wait(self, number: int) -> Received:
        while number not in self._received:
            self._take(*self._inbox.get())
        return self._received.pop(number)

    def _take(self, result: JobResult, frames: tuple[bytes, ...]) -> None:
        number = result.number
        if number in self._accepted and result.worker not in self._distrusted:
            self._check_duplicate(self._accepted[number], result, frames)
        if number not in self._requests or number in self._received:
            return
        if result.worker in self._distrusted:
            self.send(self._requests[number])
            return
        job = self._jobs.get(number)
        # Audited on arrival, not when collected: what this worker sends next may be collected before.
        if job is not None and self._sampler.pick(result.worker, kind_of(job)):
            self.audits += 1
            if wrong := difference(self._arrays(job, frames), self.runner.run(job)):
                self._distrust(result.worker, number, job, wrong)
                self.send(self._requests[number])
                return
        self._received[number] = result, frames

    def _check_duplicate(self, accepted: AcceptedResult, result: JobResult, frames: tuple[bytes, ...]) -> None:
        """Compare a second worker's result with the accepted one. Where they differ, one is wrong: run the job here."""
        job = accepted.job
        if digest_of(frames) == accepted.digest or any(name not in self._policies for name in policies_of(job)):
            return
        self.audits += 1
        if wrong := difference(self._arrays(job, frames), self.runner.run(job)):
            self._distrust(result.worker, result.number, job, wrong)
        else:
            self._distrust(accepted.worker, result.number, job, "the accepted result differs from a second one")

    def _distrust(self, worker: str, number: int, job: AnyJob, why: str) -> None:
        """Have a worker excluded; discard its results that were not collected, and submit their jobs again."""
        if worker in self._distrusted:
            return
        self._distrusted.add(worker)
        self.send(DistrustWorker(worker, f"{kind_of(job)} {number} ({why})"))
        for other in [other for other, (result, _) in self._received.items() if result.worker == worker]:
            del self._received[other]
            self.send(self._requests[other])


def digest_of(frames: Sequence[bytes]) -> str:
    """Return the sha256 of a result's frames."""
    return hashlib.sha256(b"".join(frames)).hexdigest()
