"""Worker processes against a server in this process: registration, kills, restarts, draining, files, keys."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.scheduling.events import Outcome, TaskDone
from coordinator.scheduling.records import Committed, Done, Leased, TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server import key_store
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import CoordinatorKeys
from coordinator.server.lease_files import LeaseFiles
from coordinator.server.server import Server
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.lease_kinds import LeaseKind
from tests.support.waiting import WAIT_S, until
from worker.agent.handlers import default_handlers

AGENT = Path(__file__).resolve().parents[2] / "support" / "agent_process.py"
COORDINATOR = Path(__file__).resolve().parents[2] / "support" / "coordinator_process.py"
LIMITS = LeaseTimings(heartbeat_s=0.2, silence_s=4.0, lease_s=20.0, backoff_s=0.05, max_failures=2)
OWN = LeaseFiles((r"raw/a/\d+\.bin",), 8, 1 << 30)  # of every lease


class Fleet:
    """A server in a thread of the test, and its worker processes."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.done: dict[str, TaskDone] = {}
        self.outcome: Outcome | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        self.thread: threading.Thread | None = None

    def serve(self, *tasks: TaskSpec, bind: str = "tcp://127.0.0.1:0", key: CoordinatorKeys | None = None) -> Server:
        self.data_dir.mkdir(exist_ok=True)
        self.scheduler = Scheduler(filesystem_id(self.data_dir), LIMITS)
        self.journal = Journal(self.data_dir / "journal.sqlite")
        for record in self.journal.load():
            self.scheduler.apply(record)
        self.server = Server(
            self.scheduler,
            self.journal,
            data_dir=self.data_dir,
            bind=bind,
            keys=key,
            hooks=StageHooks(on_task_done=self._commit, lease_files=lambda task: OWN),
        )
        self.server.add_tasks(tasks)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self.server

    def _run(self) -> None:
        self.outcome = self.server.run()

    def _commit(self, done: TaskDone) -> None:
        self.done[done.task.id] = done

    def worker(
        self, data_dir: Path | None = None, capacity: int = 2, key: Path | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(AGENT), self.server.endpoint, str(data_dir or self.data_dir), str(capacity)]
        process = subprocess.Popen(
            command + ([str(key)] if key else []),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "EIA_API_KEY": "very-secret-key"},
        )
        self.processes.append(process)
        return process

    def end(self) -> Outcome:
        assert self.thread is not None
        self.thread.join(WAIT_S)
        assert self.outcome is not None, self.server.status()
        return self.outcome

    def close(self) -> None:
        if self.thread is not None and self.thread.is_alive():
            self.server.stop_now()
            self.thread.join(WAIT_S)
        for process in self.processes:
            process.kill()
            process.communicate()
        self.journal.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    one = Fleet(tmp_path / "data")
    yield one
    one.close()


def waiting(tmp_path: Path, name: str = "hold") -> TaskSpec:
    return TaskSpec(name, "wait", {"begun": str(tmp_path / f"{name}.begun"), "until": str(tmp_path / "go")})


def test_workers_register_run_all_leases_and_stop(fleet: Fleet, tmp_path: Path) -> None:
    steps = [TaskSpec(f"t{n}", "step", {"seed": str(n)}) for n in range(40)]
    fleet.serve(waiting(tmp_path), *steps, TaskSpec("last", "noop", {"spin": 9}))
    workers = [fleet.worker(), fleet.worker()]
    until(lambda: len(fleet.scheduler.workers) == 2, "both workers")
    (tmp_path / "go").touch()
    assert fleet.end().status == "done"
    assert len(fleet.done) == 42 and fleet.done["last"].output == {"spun": 9}
    assert [worker.wait(WAIT_S) for worker in workers] == [0, 0]


def test_lease_of_killed_worker_counts_failure_and_runs_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    server = fleet.serve(waiting(tmp_path))
    doomed = fleet.worker()
    until(
        lambda: any(
            lease.executing for one in list(fleet.scheduler.workers.values()) for lease in list(one.held.values())
        ),
        "a heartbeat that lists the lease",
    )
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    server.lost(doomed.pid)
    (tmp_path / "go").touch()
    other = fleet.worker()
    assert fleet.end().status == "done"
    assert fleet.done["hold"].output == {"pid": other.pid}
    assert (fleet.done["hold"].attempt, fleet.scheduler.tasks["hold"].failures) == (2, 1)


def test_frozen_worker_loses_lease_and_its_late_result_is_dropped(fleet: Fleet, tmp_path: Path) -> None:
    fleet.serve(waiting(tmp_path))
    frozen = fleet.worker()
    until(lambda: list(tmp_path.glob("hold.begun.*")), "the lease to begin")
    frozen.send_signal(signal.SIGSTOP)
    until(lambda: not fleet.scheduler.workers, "the server to count the worker as lost")
    (tmp_path / "go").touch()
    other = fleet.worker()
    until(lambda: "hold" in fleet.done, "the other worker")
    assert fleet.done["hold"].output == {"pid": other.pid}
    frozen.send_signal(signal.SIGCONT)
    assert fleet.end().status == "done"


def test_task_that_kills_workers_is_quarantined_and_others_finish(fleet: Fleet) -> None:
    server = fleet.serve(TaskSpec("poison", "suicide", {}), TaskSpec("good", "step", {"seed": "x"}, depends_on=()))
    while fleet.outcome is None and len(fleet.processes) < 12:
        process = fleet.worker(capacity=1)
        until(lambda: fleet.outcome or fleet.processes[-1].poll() is not None, "an end")
        server.lost(process.pid)
    outcome = fleet.end()
    assert (outcome.status, outcome.exit_code) == ("incomplete", 75)
    assert set(fleet.done) == {"good"}
    assert fleet.scheduler.tasks["poison"].error == "WorkerLost"


def test_crash_report_has_traceback_without_api_key(fleet: Fleet) -> None:
    fleet.serve(TaskSpec("bad", "fail", {}), TaskSpec("huge", "huge", {}), TaskSpec("odd", "nonsense", {}))
    fleet.worker()
    until(lambda: fleet.scheduler.store.counts["quarantined"] == 2, "both quarantines")
    bad, huge = fleet.scheduler.tasks["bad"], fleet.scheduler.tasks["huge"]
    assert bad.error == "Crash" and "ZeroDivisionError: told to fail with [key]" in bad.message
    assert huge.error == "Crash" and "over the limit" in huge.message
    assert fleet.scheduler.tasks["odd"].attempt == 0  # no worker has a handler for its kind
    fleet.server.drain()
    assert fleet.end().exit_code == 130
    assert all(b"very-secret-key" not in path.read_bytes() for path in fleet.data_dir.iterdir())


def test_restarted_coordinator_takes_over_workers(fleet: Fleet, tmp_path: Path) -> None:
    """The first coordinator is killed: its worker registers with the next one and releases its leases."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    first = subprocess.Popen(
        [sys.executable, str(COORDINATOR), str(tmp_path), bind, "1", "3600"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline().strip() == bind
    fleet.data_dir = tmp_path
    fleet.server = type("Endpoint", (), {"endpoint": bind})()
    worker = fleet.worker()
    look = Journal(tmp_path / "journal.sqlite")
    until(lambda: any(isinstance(record, Leased) for record in look.load()), "a lease")
    look.close()
    first.kill()
    first.communicate()
    fleet.serve(TaskSpec("t0", "step", {"seed": "t0"}), bind=bind)
    assert fleet.end().status == "done"
    assert fleet.done["t0"].attempt == 2  # the first attempt does not count
    assert fleet.done["t0"].worker.split("-")[-2] == str(worker.pid)
    assert worker.wait(WAIT_S) == 0


def test_interrupted_worker_releases_leases_and_drained_one_finishes(fleet: Fleet, tmp_path: Path) -> None:
    server = fleet.serve(waiting(tmp_path), waiting(tmp_path, "never"))
    one = fleet.worker(capacity=1)
    until(lambda: list(tmp_path.glob("hold.begun.*")), "the lease to begin")
    one.terminate()
    assert one.wait(WAIT_S) == 130
    until(lambda: fleet.scheduler.tasks["hold"].state == "pending", "the deregistration")
    assert fleet.scheduler.tasks["hold"].failures == 0
    two = fleet.worker(capacity=1)
    until(lambda: len(list(tmp_path.glob("hold.begun.*"))) == 2, "the second attempt")
    server.drain()
    (tmp_path / "go").touch()
    assert fleet.end().status == "drain"
    assert set(fleet.done) == {"hold"} and two.wait(WAIT_S) == 0


def test_abort_cancels_running_leases(fleet: Fleet, tmp_path: Path) -> None:
    server = fleet.serve(waiting(tmp_path))
    worker = fleet.worker()
    until(lambda: list(tmp_path.glob("hold.begun.*")), "the lease to begin")
    server.stop_now()
    assert fleet.end().exit_code == 130
    assert worker.wait(WAIT_S) == 0


def test_worker_exits_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, {str(AGENT)!r}, 'tcp://127.0.0.1:9', {str(tmp_path)!r}, '1'],"
        " stdin=subprocess.PIPE)\n"
        "print(p.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until((tmp_path / "id").exists, "the worker to start")
    parent.kill()
    parent.communicate()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False

    until(gone, "the worker to end")


def test_files_are_uploaded_to_coordinator_on_other_filesystem(fleet: Fleet, tmp_path: Path) -> None:
    sizes = [0, 32, 1 << 18, (1 << 20) + 32, 5 << 20]
    fleet.serve(
        *(
            TaskSpec(f"f{n}", "file", {"seed": str(n), "bytes": size, "path": f"raw/a/{n}.bin"})
            for n, size in enumerate(sizes)
        ),
        TaskSpec("near", "noop", {}, requires_shared_fs=True),
        TaskSpec("escape", "file", {"seed": "e", "bytes": 32, "path": "manifests/e.json"}),
    )
    fleet.worker(tmp_path / "far", capacity=3)
    until(lambda: len(fleet.done) == len(sizes), "the files")
    assert fleet.scheduler.tasks["near"].attempt == 0  # not leased to a worker on another file system
    until(lambda: fleet.scheduler.store.counts["quarantined"] == 1, "the refusal")
    fleet.worker()
    assert fleet.end().exit_code == 75
    assert fleet.scheduler.tasks["escape"].error == "RefusedPath"
    for n, size in enumerate(sizes):
        proof = fleet.done[f"f{n}"].output["piece"]
        body = (fleet.data_dir / proof["path"]).read_bytes()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (size, proof["sha256"])
    assert not list(fleet.data_dir.rglob("*.part"))


def test_worker_with_key_works_and_one_without_gets_no_answer(fleet: Fleet, tmp_path: Path) -> None:
    key = key_store.add_worker(tmp_path / "keys", "mine")
    fleet.serve(TaskSpec("t", "step", {"seed": "t"}), key=key_store.load_coordinator(tmp_path / "keys"))
    fleet.worker()
    fleet.worker(key=key)
    assert fleet.end().status == "done"
    assert fleet.server.counters["messages"] > 0 and fleet.scheduler.totals_of_departed_workers["rows"] in (0, 10)


def test_handlers_of_two_agents_share_no_state() -> None:
    one, other = default_handlers(), default_handlers()
    owners = [getattr(handler, "__self__", None) for handlers in (one, other) for handler in handlers.values()]
    assert len({id(owner) for owner in owners if owner is not None}) == 4  # control and ranks, of each
    assert LeaseKind.JOIN not in default_handlers(ranks=False)


# -- kills at random ----------------------------------------------------------------------------------------------------------


def kill_loop(data: Path, kills: int, tasks: int, seconds: float, seed: int) -> None:
    """Kill workers and coordinators at random moments; compare the commits with those of a run without kills."""
    draw = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    log = (data.parent / "fleet.log").open("ab")

    def coordinator() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(COORDINATOR), str(data), bind, str(tasks), str(seconds)]
        return subprocess.Popen(command, stdout=log, stderr=log)

    def worker() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(AGENT), bind, str(data), "2"], stdin=subprocess.PIPE, stderr=log)

    def committed() -> int:
        return len(list((data / "manifests").glob("*.json")))

    data.mkdir()
    boss, workers, killed, deadline = coordinator(), [worker(), worker()], 0, time.monotonic() + 20 * WAIT_S
    try:
        goals = sorted(draw.sample(range(1, tasks), kills))  # spread over the progress, not over the time
        while boss.poll() is None or killed < kills:
            assert time.monotonic() < deadline
            if killed < kills and committed() >= goals[killed]:
                time.sleep(draw.random() * 0.05)
                victim = boss if draw.random() < 0.4 else draw.choice(workers)
                victim.kill()
                victim.wait()
                killed += 1
            if boss.poll() is not None and (killed < kills or boss.returncode != 0):
                boss = coordinator()
            workers = [one if one.poll() is None else worker() for one in workers]
            time.sleep(0.01)
        assert boss.returncode == 0
    finally:
        for process in (boss, *workers):
            process.kill()
            process.communicate()
        log.close()
    expected = {f"t{n}": sealed(f"t{n}") for n in range(tasks)}
    found = {path.stem: json.loads(path.read_text())["value"] for path in (data / "manifests").glob("*.json")}
    assert found == expected
    records = list(Journal(data / "journal.sqlite").load())
    for kind in (Done, Committed):
        assert sorted(record.task for record in records if isinstance(record, kind)) == sorted(expected)
    pairs = [(record.task, record.attempt) for record in records if isinstance(record, Leased)]
    assert len(pairs) == len(set(pairs))


def sealed(seed: str) -> str:
    value = seed.encode()
    for _ in range(1_000):
        value = hashlib.sha256(value).digest()
    return value.hex()


def test_random_kills_do_not_change_results(tmp_path: Path) -> None:
    kill_loop(tmp_path / "data", kills=5, tasks=40, seconds=0.05, seed=7)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_fifty_random_kills_do_not_change_results(tmp_path: Path) -> None:
    kill_loop(tmp_path / "data", kills=50, tasks=300, seconds=0.05, seed=11)
