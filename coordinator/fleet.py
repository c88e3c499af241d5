"""One run of tasks over the fleet: journal, server, workers of this host, signals, display. Every stage goes through it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Protocol

from coordinator.budget import Budget
from coordinator.curve import Curve, is_loopback, load_coordinator, local_worker_key
from coordinator.events import Event, Outcome, TaskDone, TaskGone, TaskProgress, TaskQuarantined
from coordinator.journal import Journal
from coordinator.local import LocalWorkers
from coordinator.progress import Display, Shown, shown, view_of
from coordinator.protocol import data_id
from coordinator.scheduler import Limits, Scheduler, TaskSpec
from coordinator.server import Server

DEFAULT_LIMITS = Limits()
ENDPOINT_FILE = ".endpoint"  # in the data folder while a coordinator runs: where `coordinator status` asks


@dataclass(frozen=True)
class Fleet:
    """Where the tasks run."""

    data_dir: Path
    bind: str
    workers: int  # to start on this host
    connections: int  # of each of them to the source
    retries: int  # failures until quarantine
    curve: Curve | None = None
    worker_key: Path | None = None  # key file of this host's workers, where CURVE is on
    worker_command: tuple[str, ...] = (sys.executable, "-m", "worker")
    limits: Limits = DEFAULT_LIMITS


def fleet_on(data_dir: Path, bind: str, workers: int, connections: int, retries: int, keys: Path) -> Fleet:
    """Workers of this host go over loopback in clear, or with a key of their own where the bind is off loopback."""
    if is_loopback(bind):
        return Fleet(data_dir, bind, workers, connections, retries)
    key = local_worker_key(keys)
    return Fleet(data_dir, bind, workers, connections, retries, curve=load_coordinator(keys), worker_key=key)


@dataclass(frozen=True)
class Ended:
    """How the run ended, and what was seen on the way."""

    outcome: Outcome
    seconds: float = 0.0
    peak_rss: int = 0  # bytes: the largest worker
    restarts: int = 0  # workers of this host that died and were started again
    snapshot: dict[str, Any] | None = None  # the server's last


class Supervisor(Protocol):
    """A stage that goes on deciding while its leases run."""

    def begin(self, scheduler: Scheduler) -> None:
        """The journal has been replayed; nothing is served yet."""

    def saw(self, what: TaskProgress | TaskGone) -> None:
        """What a lease said, or its end without a result."""

    def tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        """Five times a second: events to decide, and lines to say."""

    def busy(self) -> bool:
        """More is to come, even if no task is open."""

    def shown(self) -> Shown:
        """What displays and `coordinator status` show."""


def run_tasks(
    fleet: Fleet,
    tasks: Iterable[TaskSpec],
    budgets: dict[str, Budget],
    display: Display,
    on_done: Callable[[TaskDone], Iterable[TaskSpec]],
    supervisor: Supervisor | None = None,
    *,
    proofs: Mapping[str, Any] = MappingProxyType({}),
) -> Ended:
    """Lease `tasks`, and those that `on_done` or the supervisor opens, until all have ended or the run was interrupted.

    `proofs`: the type of a kind's proof.
    The first Ctrl-C (or SIGTERM) finishes what is leased, the second stops at once; both leave a run that can be resumed.
    """
    journal = Journal(fleet.data_dir / "journal.sqlite")
    scheduler = Scheduler(data_id(fleet.data_dir), replace(fleet.limits, max_failures=fleet.retries))
    for record in journal.load():
        scheduler.apply(record)
    if supervisor is not None:
        supervisor.begin(scheduler)
    began = time.monotonic()
    peak_rss, already_done = 0, None

    def tick() -> None:
        nonlocal peak_rss, already_done
        heard = {worker.hello.pid for worker in scheduler.workers.values() if worker.shares}
        for line in workers.supervise(heard, server.lost):
            display.say(line)
        snapshot = server.snapshot()
        peak_rss = max([peak_rss, *(worker["rss"] for worker in snapshot["workers"])])
        if already_done is None:
            already_done = snapshot["tasks"].get("done", 0)
        if supervisor is None:
            display.update(shown(view_of(snapshot, already_done)))
            return
        for what in supervisor.tick(scheduler, time.monotonic()):
            if isinstance(what, str):
                display.say(what)
            else:
                server.post(what)
        display.update(supervisor.shown())

    def quarantined(what: TaskQuarantined) -> None:
        display.say(f"quarantined {what.task.id}: {what.error}: {what.message}")

    server = Server(
        scheduler,
        journal,
        budgets,
        data_dir=fleet.data_dir,
        bind=fleet.bind,
        curve=fleet.curve,
        proofs=proofs,
        on_done=on_done,
        on_quarantined=quarantined,
        on_lease=supervisor.saw if supervisor is not None else lambda what: None,
        on_tick=tick,
        busy=supervisor.busy if supervisor is not None else lambda: False,
        look=lambda: {} if supervisor is None else {"training": supervisor.shown().line},
    )
    workers = LocalWorkers(
        fleet.worker_command,
        server.endpoint,
        fleet.data_dir,
        fleet.workers,
        fleet.connections,
        fleet.limits.silence_s / 2,
        key=fleet.worker_key,
    )
    endpoint = fleet.data_dir / ENDPOINT_FILE
    endpoint.write_text(server.endpoint)
    try:
        server.add_tasks(tasks, whole=True)
        workers.start()
        with interrupts(server, display):
            outcome = server.run()
    finally:
        endpoint.unlink(missing_ok=True)
        workers.stop()
        journal.close()
    return Ended(outcome, time.monotonic() - began, peak_rss, workers.restarts, server.snapshot())


@contextmanager
def interrupts(server: Server, display: Display) -> Iterator[None]:
    """Ctrl-C and SIGTERM, while inside: first drain, then stop."""
    asked = 0

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            display.say("finishing what is leased; once more stops at once (either way, start again to resume)")
            server.drain()
        else:
            server.stop_now()

    before = {which: signal.signal(which, ask) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
