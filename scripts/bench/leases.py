"""Measure no-op leases per second, against dask, Parsl and Ray: `uv run python -m scripts.bench.leases [--peer-python PY]`.

- sockets: a coordinator and 2 workers as processes; every lease is journaled (SQLite, synced) before it is sent and before its
  commit
- keyed: the same with CURVE, through the proxy, as off loopback
- scheduler: decisions alone (lease, result, commit), no socket, no journal
- killed: `kill -9` of the coordinator in the middle, restarted at once; the contents of the journal are counted at the end
- peers: the same number of no-op tasks over 2 worker processes, in turn with ours, if --peer-python names an interpreter that has
  them (`uv venv PEER && uv pip install --python PEER/bin/python distributed parsl ray`)

Medians over the rounds, and ours ÷ theirs. JSON lines to docs/benchmarks/leases.jsonl.
"""

import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from coordinator.scheduling.events import AddTasks, Confirmed, Decision, Send
from coordinator.scheduling.records import Committed, Done, Leased, TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.journal import Journal
from coordinator.server.key_store import LOCAL, worker_key
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Lease, Register, Result
from scripts.bench.common import BENCHMARKS, ROOT, emit, machine_line, parser, run_json

LINES = BENCHMARKS / "leases.jsonl"
PEERS = ("dask", "parsl", "ray")
CAPACITY = 256  # leases per worker: enough that no worker waits for the journal's disk
TIMEOUT_S = 300.0  # of one run


def free_endpoint() -> str:
    """Return an endpoint on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def workers(endpoint: str, data: Path, key: Path | None = None) -> Iterator[None]:
    """Run two workers during the block."""
    command = [sys.executable, "-m", "worker", "--coordinator", endpoint, "--data", str(data)]
    command += ["--capacity", str(CAPACITY), "--stop-with-parent"]
    command += ["--key", str(key)] if key is not None else []
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) for _ in range(2)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def coordinator(data: Path, bind: str, tasks: int, *keys: Path) -> subprocess.Popen[str]:
    """Start a coordinator of no-op leases, and wait until it listens."""
    command = [sys.executable, str(Path(__file__).with_name("lease_coordinator.py")), str(data), bind, str(tasks)]
    command += map(str, keys)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def over_sockets(tasks: int, keyed: bool = False) -> dict[str, Any]:
    """Return the line of one run with processes and journal."""
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        data, bind, keys = Path(folder), free_endpoint(), Path(folder) / "keys"
        key = worker_key(keys, LOCAL) if keyed else None
        boss = coordinator(data, bind, tasks, *([keys] if keyed else []))
        with workers(bind, data, key):
            out, _ = boss.communicate(timeout=TIMEOUT_S)
    line = json.loads(out)
    assert (line["status"], line["commits"]) == ("done", tasks)
    return {
        "client": "keyed" if keyed else "sockets",
        "tasks": tasks,
        "seconds": line["seconds"],
        "commits": line["counters"]["commits"],
    }


def scheduler_alone(tasks: int) -> dict[str, Any]:
    """Return the line of the scheduler's decisions alone."""
    scheduler = Scheduler("here")
    leases: list[tuple[str, Lease]] = []

    def take(decision: Decision) -> None:
        sent = (action for action in decision.actions if isinstance(action, Send))
        leases.extend((action.worker, action.message) for action in sent if isinstance(action.message, Lease))

    scheduler.decide(AddTasks(tuple(TaskSpec(f"t{n}", LeaseKind.NOOP, {}) for n in range(tasks))), 0.0)
    for name in ("a", "b"):
        take(scheduler.decide(Register(name, "h", 1, (LeaseKind.NOOP,), CAPACITY, "here", "0", "3"), 0.0))
    began, done = time.perf_counter(), 0
    while leases:
        worker, lease = leases.pop()
        take(scheduler.decide(Result(worker, lease.task, lease.attempt, {}, 0.1), 1.0))
        scheduler.decide(Confirmed(lease.task, lease.attempt), 1.0)
        done += 1
    assert done == tasks
    return {"client": "scheduler", "tasks": tasks, "seconds": time.perf_counter() - began}


def length_of(data: Path) -> int:
    """Return the number of records in a journal that another process writes."""
    with closing(sqlite3.connect(data / "journal.sqlite")) as database:
        return int(database.execute("SELECT max(seq) FROM records").fetchone()[0] or 0)


def killed(tasks: int) -> dict[str, Any]:
    """Return counts from the journal (every task done and committed once, no attempt leased twice) and the seconds to resume."""
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        data, bind = Path(folder), free_endpoint()
        boss = coordinator(data, bind, tasks)
        with workers(bind, data):
            until = time.monotonic() + TIMEOUT_S
            while (before := length_of(data)) < 3 * tasks:  # a task without a failure has 4, the first when it is added
                assert time.monotonic() < until and boss.poll() is None
                time.sleep(0.005)
            boss.kill()
            boss.wait()
            died = time.perf_counter()
            at = length_of(data)
            boss = coordinator(data, bind, tasks)
            while length_of(data) < at + tasks // 10:
                assert time.monotonic() < until
                time.sleep(0.005)
            resumed = time.perf_counter() - died
            out, _ = boss.communicate(timeout=TIMEOUT_S)
        records = list(Journal(data / "journal.sqlite").load())
    line, names = json.loads(out), {f"t{n}" for n in range(tasks)}
    count = {kind: Counter(record.task for record in records if type(record) is kind) for kind in (Done, Committed)}
    pairs = Counter((record.task, record.attempt) for record in records if isinstance(record, Leased))
    assert line["status"] == "done"
    assert all(set(one) == names and set(one.values()) == {1} for one in count.values()), "lost, or committed twice"
    assert set(pairs.values()) == {1}, "an attempt was leased twice"
    return {
        "client": "killed",
        "tasks": tasks,
        "records_at_the_kill": before,
        "done_once": len(count[Done]),
        "committed_once": len(count[Committed]),
        "leased_again": len(pairs) - tasks,
        "resumed_s": resumed,
    }


def peer(python: str, name: str, tasks: int) -> dict[str, Any]:
    """Return the line of one run of a peer, or the reason why there is none."""
    command = [python, str(Path(__file__).with_name("leases_peer.py")), name, str(tasks)]
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # Parsl finds its own programs there
    # Ray would start its workers with `uv run` if this script was: they have to run in the peer's own environment.
    env = {**os.environ, "PATH": path, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    with tempfile.TemporaryDirectory() as folder:  # for its logs
        try:
            return run_json(command, timeout=TIMEOUT_S, cwd=folder, env=env)
        except ValueError as error:
            return {"client": name, "skipped": str(error)}


def once(tasks: int, peer_tasks: int, python: str | None) -> Iterator[dict[str, Any]]:
    """Yield the lines of one round, all clients in turn."""
    yield over_sockets(tasks)
    yield over_sockets(tasks, keyed=True)
    yield scheduler_alone(5 * tasks)
    if python is not None:
        for name in PEERS:
            yield peer(python, name, peer_tasks)


def main() -> None:
    """Measure all clients in turn and write the lines."""
    command = parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--tasks", type=int, default=20_000)
    command.add_argument("--peer-tasks", type=int, default=5_000, help="fewer, since they are slower")
    command.add_argument("--peer-python", help="interpreter with distributed, parsl and ray")
    options = command.parse_args()
    (ROOT / "runs").mkdir(exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for line in once(options.tasks, options.peer_tasks, options.peer_python):
            found.setdefault(line["client"], []).append(emit(line, None, progress=True))
    rates = {
        name: [line["tasks"] / line["seconds"] for line in lines]
        for name, lines in found.items()
        if all("seconds" in line for line in lines)
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    # Under a load above that of this program rates are too low; ratios hold.
    written = [machine_line(load=round(os.getloadavg()[0], 1), rounds=options.rounds, capacity=CAPACITY)]
    for name, lines in found.items():
        line = {"event": "rate", **{key: value for key, value in lines[-1].items() if key != "seconds"}}
        if name in rates:
            line |= {"per_s": round(medians[name]), "all_per_s": [round(rate) for rate in rates[name]]}
            if name in PEERS:
                line["ours_over_theirs"] = round(medians["sockets"] / medians[name], 2)
        written.append(line)
    written.append({"event": "killed", **killed(options.tasks)})
    LINES.unlink(missing_ok=True)
    for line in written:
        emit(line, LINES)


if __name__ == "__main__":
    main()
