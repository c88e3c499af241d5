"""Measure what a flood of half-open connections costs a run with keys: `uv run python -m scripts.bench.flood --connections 700`.

A second process holds the connections: each sends a ZMTP greeting that names CURVE and nothing more, and is opened again when the
coordinator closes it. Meanwhile one keyed worker does one task after another, each of `--task-ms`. Rounds with and without the flood
alternate; the printed ratio is the median over the pairs of (time with the flood) / (time without).
"""

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coordinator.scheduling.records import TaskSpec
from coordinator.server import key_store
from coordinator.server.descriptors import raise_limit
from coordinator.wire import auth
from coordinator.wire.messages import Lease
from tests.support.serving import Running

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)


def flood(port: int, connections: int) -> None:
    """Hold half-open connections until the process is killed."""
    raise_limit()
    waiting = selectors.DefaultSelector()

    def connect() -> None:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(GREETING)
        waiting.register(connection, selectors.EVENT_READ)

    for _ in range(connections):
        connect()
    print("open", flush=True)
    while True:
        for key, _ in waiting.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                closed = not connection.recv(4096)
            except OSError:
                closed = True
            if closed:
                waiting.unregister(connection)
                connection.close()
                connect()


def measure(connections: int, rounds: int, tasks: int, task_s: float) -> dict[str, object]:
    """Return the times of all rounds, in seconds, and their ratio."""
    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        keys, data = Path(folder) / "keys", Path(folder) / "data"
        data.mkdir()
        key = auth.load_worker(key_store.add_worker(keys, "mine"))
        running = Running(data, ("first",), key=key_store.load_coordinator(keys))
        worker = running.peer("w", key)
        worker.register()
        port = running.server.endpoint.rpartition(":")[2]
        for index in range(2 * rounds):
            flooded = index % 4 in (1, 2)  # off, on, on, off: a drift of the machine cancels
            process = None
            if flooded:
                command = [
                    sys.executable,
                    "-m",
                    "scripts.bench.flood",
                    "--flood",
                    port,
                    "--connections",
                    str(connections),
                ]
                process = subprocess.Popen(command, stdout=subprocess.PIPE)
                assert process.stdout is not None
                process.stdout.readline()
            running.server.add_tasks(TaskSpec(f"{index}-{n}", "noop", {}) for n in range(tasks))
            began = time.perf_counter()
            for _ in range(tasks):
                lease = worker.receive(Lease)
                time.sleep(task_s)
                worker.finish(lease)
            times[flooded].append(time.perf_counter() - began)
            if process is not None:
                process.kill()
                process.wait()
        refused = running.server.status().counters["refused"]
        running.close()
    ratio = statistics.median(on / off for on, off in zip(times[True], times[False], strict=True))
    return {"without": times[False], "with": times[True], "ratio": round(ratio, 4), "refused": refused}


def main() -> None:
    """Measure, or be the flood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=4, help="pairs of rounds")
    parser.add_argument("--tasks", type=int, default=100, help="tasks of a round")
    parser.add_argument("--task-ms", type=float, default=50.0)
    parser.add_argument("--flood", type=int, default=0, help="port to flood")
    options = parser.parse_args()
    if options.flood:
        flood(options.flood, options.connections)
    raise_limit()
    print(json.dumps(measure(options.connections, options.rounds, options.tasks, options.task_ms / 1e3)))


if __name__ == "__main__":
    main()
