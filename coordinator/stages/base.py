"""One run of tasks over the fleet: journal, server, workers of this host, signals, display. Every stage goes through it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from coordinator.scheduling.events import (
    Event,
    Outcome,
    TaskFailed,
    TaskProgress,
    TaskQuarantined,
    WorkerLost,
)
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.scheduler import LeaseTimings, Scheduler, TaskSpec
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import LOCAL, CoordinatorKeys, host_keys, load_coordinator, worker_key
from coordinator.server.server import Server
from coordinator.stages.display import Display, Rendering, render, run_view
from coordinator.wire.auth import is_loopback, local_address_towards
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import Weights
from coordinator.workers.hostfile import HERE, Hosts
from coordinator.workers.local import LocalWorkerPool
from coordinator.workers.remote import SshWorkerPool
from ingest.errors import UsageError

DEFAULT_TIMINGS = LeaseTimings()
WORKER = (sys.executable, "-m", "worker")
ENDPOINT_FILE = ".endpoint"  # in the data folder while a coordinator runs: where `coordinator status` asks


@dataclass(frozen=True)
class Fleet:
    """Where the tasks run."""

    data_dir: Path
    bind: str
    workers: int  # to start on this host
    connections: int  # of each of them to the source
    retries: int  # failures until quarantine
    keys: CoordinatorKeys | None = None
    worker_key: Path | None = None  # key file of this host's workers, where CURVE is on
    worker_command: tuple[str, ...] = WORKER
    timings: LeaseTimings = DEFAULT_TIMINGS
    hosts: SshWorkerPool | None = None  # on other hosts, their sessions open


class StageOptions(Protocol):
    """What every stage's options say of its fleet, under the names of the settings."""

    @property
    def data_dir(self) -> Path:
        """The coordinator's."""

    @property
    def bind(self) -> str:
        """Where to listen, tcp://ADDRESS:PORT."""

    @property
    def workers(self) -> int:
        """To start on this host."""

    @property
    def connections(self) -> int:
        """Of each worker to the source."""

    @property
    def retries(self) -> int:
        """Failures until quarantine."""

    @property
    def keys(self) -> Path:
        """The folder of the keys."""

    @property
    def hosts(self) -> Hosts | None:
        """Of the hostfile, if there is one."""


def build_fleet(wanted: StageOptions, say: Callable[[str], None]) -> Fleet:
    """Workers of this host go over loopback in clear, or with a key of their own where the bind is off loopback.

    Each host that is named gets a worker too, and a session to it is opened, which `say` is told of. UsageError tells of those
    that can't be used.
    """
    data_dir, hosts, keys, workers, command = wanted.data_dir, wanted.hosts, wanted.keys, wanted.workers, WORKER
    bind = reachable_bind(wanted.bind, hosts)
    if hosts is not None:
        # Not by this host's own name, which may be one of the hostfile's; without an entry of its own it takes no rank.
        workers, command = max(1, hosts.here), (*WORKER, "--host", HERE[0], *(() if hosts.here else ("--no-ranks",)))
    if is_loopback(bind):
        return Fleet(data_dir, bind, workers, wanted.connections, wanted.retries, worker_command=command)
    remote = None
    if hosts is not None and hosts.remote:
        remote = SshWorkerPool(
            hosts,
            wanted.connections,
            DEFAULT_TIMINGS.silence_s / 2,
            data_dir / "logs",
            {host.name: host_keys(keys, host.name) for host in hosts.remote},
        )
        say(f"reaching {len(hosts.remote)} hosts over ssh")
        remote.open()
    key = worker_key(keys, LOCAL)  # before the list is read
    return Fleet(
        data_dir,
        bind,
        workers,
        wanted.connections,
        wanted.retries,
        keys=load_coordinator(keys),
        worker_key=key,
        worker_command=command,
        hosts=remote,
    )


def reachable_bind(bind: str, hosts: Hosts | None) -> str:
    """Where to listen: with hosts that would have to reach loopback, on this host's address on the way to the first of them.

    UsageError where there is no way.
    """
    if hosts is None or not hosts.remote or not is_loopback(bind):
        return bind
    first = hosts.remote[0]
    try:
        own = local_address_towards(f"tcp://{first.address or first.name.rpartition('@')[2]}:22")
    except OSError as error:
        raise UsageError(
            f"{first.name} has no address here ({error}): give its `ips` in the hostfile, or say with "
            "--bind tcp://ADDRESS:PORT where the hosts reach this one."
        ) from None
    where = f"[{own}]" if ":" in own else own
    if is_loopback(f"tcp://{where}:1"):
        raise UsageError(
            f"{first.name}: {own} is this host's address on the way to it, which no other host reaches. Correct its `ips` in the "
            "hostfile (workers of this host are entries with ssh 127.0.0.1), or give --bind tcp://ADDRESS:PORT."
        )
    return f"tcp://{where}:{bind.rpartition(':')[2]}"


@dataclass(frozen=True)
class RunResult:
    """How the run ended, and what was seen on the way."""

    outcome: Outcome
    seconds: float = 0.0
    peak_rss: int = 0  # bytes: the largest worker
    restarts: int = 0  # workers that died or were lost, and were started again
    snapshot: dict[str, Any] | None = None  # the server's last


class StageController(Protocol):
    """A stage that goes on deciding while its leases run."""

    def on_start(self, scheduler: Scheduler, post: Callable[[Event | Weights], None]) -> None:
        """The journal has been replayed; nothing is served yet. `post`: as `Server.post`, from any thread."""

    def on_lease_event(self, what: TaskProgress | TaskFailed) -> None:
        """What a lease said, or its end without a result."""

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        """Five times a second: events to decide, and lines to say."""

    def has_more_work(self) -> bool:
        """More is to come, even if no task is open."""

    def get_weights(self, sha256: str) -> Weights | None:
        """For a worker that asks for them; None: not known (any more)."""

    def view(self) -> Rendering:
        """What displays and `coordinator status` show."""


def run_tasks(
    fleet: Fleet,
    tasks: Iterable[TaskSpec],
    budgets: dict[str, RequestBudget],
    display: Display,
    hooks: StageHooks,
    controller: StageController | None = None,
) -> RunResult:
    """Lease `tasks`, and those that a hook or the controller opens, until all have ended or the run was interrupted.

    With a controller, its methods take the place of the hooks of the same names.
    The first Ctrl-C (or SIGTERM) finishes what is leased, the second stops at once; both leave a run that can be resumed.
    """
    journal = Journal(fleet.data_dir / "journal.sqlite")
    scheduler = Scheduler(filesystem_id(fleet.data_dir), replace(fleet.timings, max_failures=fleet.retries))
    for record in journal.load():
        scheduler.apply(record)
    began = time.monotonic()
    peak_rss, already_done = 0, None

    def tick() -> None:
        nonlocal peak_rss, already_done
        heard = {worker.registration.pid for worker in scheduler.workers.values() if worker.shares_filesystem}
        for line in workers.supervise(heard, server.lost):
            display.say(line)
        if fleet.hosts is not None:
            for line in fleet.hosts.supervise({w.registration.host for w in scheduler.workers.values()}, lost_host):
                display.say(line)
        snapshot = server.snapshot()
        peak_rss = max([peak_rss, *(worker["rss"] for worker in snapshot["workers"])])
        if already_done is None:
            already_done = snapshot["tasks"].get("done", 0)
        if controller is None:
            display.update(render(run_view(snapshot, already_done)))
            return
        for what in controller.on_tick(scheduler, time.monotonic()):
            if isinstance(what, str):
                display.say(what)
            else:
                server.post(what)
        display.update(controller.view())

    def lost_host(host: str, reason: str) -> None:
        for name, worker in scheduler.workers.items():
            if worker.registration.host == host:
                server.post(WorkerLost(name, reason))

    def quarantined(what: TaskQuarantined) -> None:
        display.say(f"quarantined {what.task.id}: {what.error}: {what.message}")

    if controller is not None:
        hooks = replace(
            hooks,
            on_lease_event=controller.on_lease_event,
            has_more_work=controller.has_more_work,
            get_weights=controller.get_weights,
            status_extra=lambda: {"training": controller.view().line},
        )
    server = Server(
        scheduler,
        journal,
        budgets,
        data_dir=fleet.data_dir,
        bind=fleet.bind,
        keys=fleet.keys,
        hooks=replace(hooks, on_quarantined=quarantined, on_tick=tick),
    )
    if controller is not None:
        controller.on_start(scheduler, server.post)
    workers = LocalWorkerPool(
        fleet.worker_command,
        server.endpoint,
        fleet.data_dir,
        fleet.workers,
        fleet.connections,
        fleet.timings.silence_s / 2,
        key=fleet.worker_key,
    )
    endpoint = fleet.data_dir / ENDPOINT_FILE
    endpoint.write_text(server.endpoint)
    try:
        server.add_tasks(tasks, whole=True)
        workers.start()
        if fleet.hosts is not None:
            fleet.hosts.start(server.endpoint)
        with interrupts(server, display):
            outcome = server.run()
    finally:
        endpoint.unlink(missing_ok=True)
        if fleet.hosts is not None:
            fleet.hosts.stop()
        workers.stop()
        journal.close()
    restarts = workers.restarts + (fleet.hosts.restarts if fleet.hosts is not None else 0)
    return RunResult(outcome, time.monotonic() - began, peak_rss, restarts, server.snapshot())


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
