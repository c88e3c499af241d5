"""Client side of the rate limiter: no permit is used before its time, lost, or kept for a burst."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.scheduling.rate_limit import RequestBudget
from ingest.errors import Cancelled, UsageError
from worker.agent.permits import STALE_S, Permits


def unpaused(next_s: float) -> None:
    pytest.fail("no throttle holds the bucket back")


class Owner:
    """Server side of the rate limiter, which answers requests at once."""

    def __init__(self, budget: RequestBudget) -> None:
        self.budget = budget
        self.asked: list[int] = []
        self.promised: list[float] = []
        self.permits = Permits(self.ask)

    def ask(self, bucket: str, count: int) -> None:
        self.asked.append(count)
        now = time.monotonic()
        delays = self.budget.grant(now, count)
        self.promised += [now + delay for delay in delays]
        threading.Thread(target=self.permits.granted, args=(bucket, delays)).start()


def test_bucket_without_limit_requests_nothing() -> None:
    Permits(lambda bucket, count: pytest.fail("asked")).acquire("", threading.Event(), unpaused)


def test_permit_is_used_once_and_not_before_its_time() -> None:
    owner, free = Owner(RequestBudget(200.0, burst=3)), threading.Event()

    def spend(_: int) -> float:
        owner.permits.acquire("source", free, unpaused)
        return time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        used = sorted(pool.map(spend, range(60)))
    assert len(owner.promised) == sum(owner.asked) == 60  # requested as many as were needed, not one more
    assert all(use >= promise for use, promise in zip(used, sorted(owner.promised), strict=True))


def test_cancelled_wait_leaves_permit_to_next_caller() -> None:
    asked: list[int] = []
    permits, cancelled = Permits(lambda bucket, count: asked.append(count)), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(permits.acquire, "source", cancelled, unpaused)
        while not asked:
            time.sleep(0.001)
        cancelled.set()
        with pytest.raises(Cancelled):
            waiting.result(timeout=20)
    permits.granted("source", (0.0,))
    permits.acquire("source", threading.Event(), unpaused)
    assert asked == [1]


def test_revoked_permits_are_requested_again_and_the_pause_is_reported() -> None:
    permits = Permits(lambda bucket, count: asked.append(count))
    asked: list[int] = []
    pauses: list[float] = []
    permits.granted("source", (0.0, 0.0))
    permits.revoke("source")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(permits.acquire, "source", threading.Event(), pauses.append)
        while not asked:
            time.sleep(0.001)
        permits.granted("source", (0.3,))
        waiting.result(timeout=20)
    assert 0.2 < max(pauses) <= 0.3
    permits.granted("source", (0.05,))
    permits.acquire("source", threading.Event(), unpaused)  # the throttle is over


def test_stale_permit_is_dropped() -> None:
    asked: list[int] = []
    permits = Permits(lambda bucket, count: asked.append(count))
    permits.granted("source", (-STALE_S - 1.0,))
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        permits.acquire("source", cancelled, unpaused)
    assert asked == [1]


def test_unknown_budget_raises_instead_of_waiting() -> None:
    permits = Permits(lambda bucket, count: permits.granted(bucket, ()))
    with pytest.raises(UsageError, match="no request budget"):
        permits.acquire("nonsense", threading.Event(), unpaused)
