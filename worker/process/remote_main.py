"""Remote worker bootstrap over SSH: `python -m worker.process.remote_main`, started by `coordinator.workers.remote` only.

It prints the installed versions to stdout and reads one line of configuration from stdin. The key is part of that line,
so no secret is on a command line or on this host's disk. The worker then runs until the coordinator stops it, its SSH
session ends, or no coordinator answers for `patience_s`.
"""

import fcntl
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ingest.console import protect
from worker.process.awake import stay_awake
from worker.process.parent_death import exit_with_parent

EXIT_TAKEN = 3  # another worker uses the data folder
LOCK_RETRY_S = 0.2
MLX = "mlx"
PACKAGE = "ring-attention-energy"


def host_versions() -> dict[str, str]:
    """Return the versions that must be equal on both sides; "" for a package that is not installed."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in (PACKAGE, MLX):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def main() -> None:
    """Print the versions, read the configuration from stdin, run a worker, and end with stdin."""
    protect()
    print(json.dumps(host_versions()), flush=True)
    line = os.fdopen(os.dup(0), "rb", buffering=0).readline()  # unbuffered: the rest of stdin is for the watch thread
    if not line:
        return
    exit_with_parent()
    config: dict[str, Any] = json.loads(line)
    os.environ.update(config["environment"])
    data = Path(config["data"]).expanduser()
    lock = acquire_worker_lock(data, config["host"], config["patience_s"])
    if lock is None:
        print(f"another worker of {config['host']} uses {data}: end it, or choose another --host-data", file=sys.stderr)
        sys.exit(EXIT_TAKEN)
    stay_awake()
    from worker.cli import main as run_worker

    arguments = ["--coordinator", config["endpoint"], "--data", str(data), "--connections", str(config["connections"])]
    arguments += ["--host", config["host"], "--patience", str(config["patience_s"])]
    if config["address"]:
        arguments += ["--address", config["address"]]
    run_worker(arguments, config["key"])


def acquire_worker_lock(data: Path, host: str, wait_s: float) -> int | None:
    """Take the lock that allows one worker per host name and data folder.

    A worker that has lost its coordinator exits within its own --patience, so this process waits for a held lock.

    Args:
        data: Data folder; created where it is missing.
        host: Name of this host.
        wait_s: Seconds to wait for the lock.

    Returns:
        A file descriptor that holds the lock for the life of this process; None when another worker kept it.
    """
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
            time.sleep(LOCK_RETRY_S)


if __name__ == "__main__":
    main()
