"""A worker that a coordinator starts over ssh: `python -m worker.process.remote_main`, by coordinator/workers/remote.py and by nobody else.

Says on stdout what is installed here; takes one line of orders on stdin, with the key, so that no secret is on a command line or
on this host's disk; then works until the coordinator says Stop, its ssh session ends, or nobody answers for the patience's time.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from worker.process.parent_death import exit_with_parent

EXIT_TAKEN = 3
MLX = "mlx"
PACKAGE = "ring-attention-energy"


def host_versions() -> dict[str, str]:
    """What has to be the same on both sides."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in (PACKAGE, MLX):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def main() -> None:
    """Greet, take the orders from stdin, work; end with stdin."""
    print(json.dumps(host_versions()), flush=True)
    line = os.fdopen(os.dup(0), "rb", buffering=0).readline()  # unbuffered: what follows on stdin is its end
    if not line:
        return
    exit_with_parent()
    orders: dict[str, Any] = json.loads(line)
    os.environ.update(orders["environment"])
    data = Path(orders["data"]).expanduser()
    lock = acquire_worker_lock(data, orders["host"], orders["patience_s"])
    if lock is None:
        print(f"another worker of {orders['host']} uses {data}: end it, or name another --host-data", file=sys.stderr)
        sys.exit(EXIT_TAKEN)
    from worker.cli import main as work

    arguments = ["--coordinator", orders["endpoint"], "--data", str(data), "--connections", str(orders["connections"])]
    arguments += ["--host", orders["host"], "--patience", str(orders["patience_s"])]
    if orders["address"]:
        arguments += ["--address", orders["address"]]
    work(arguments, orders["key"])


def acquire_worker_lock(data: Path, host: str, wait_s: float) -> int | None:
    """One worker a host and data folder: an open lock, for as long as this process lives. One that was cut off ends by itself within
    its patience, so it is waited for; None when it did not."""
    data.mkdir(parents=True, exist_ok=True)
    file = os.open(data / f".worker-{host.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > until:
                return None
            time.sleep(0.2)


if __name__ == "__main__":
    main()
