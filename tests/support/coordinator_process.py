"""A coordinator process for tests: `python coordinator_process.py DATA BIND TASKS SECONDS`. It prints its endpoint, then its outcome.

Each commit writes `manifests/<task>.json` and appends a line to `commits.log`.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from coordinator.scheduling.events import TaskDone
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server.folder_lock import FolderLock
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.server import Server
from coordinator.wire.filesystem_id import filesystem_id

if __name__ == "__main__":
    data, bind, count, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    with FolderLock(data):
        (data / "manifests").mkdir(exist_ok=True)
        timings = LeaseTimings(
            heartbeat_s=0.2, silence_s=4.0, lease_s=8.0, backoff_s=0.05, backoff_max_s=0.5, max_failures=50
        )
        scheduler = Scheduler(filesystem_id(data), timings)
        journal = Journal(data / "journal.sqlite")
        for record in journal.load():
            scheduler.apply(record)

        def commit(done: TaskDone) -> None:
            path = data / "manifests" / f"{done.task.id}.json"
            path.with_suffix(".part").write_text(json.dumps(done.output))
            path.with_suffix(".part").replace(path)
            with (data / "commits.log").open("a") as log:
                log.write(f"{done.task.id} {done.attempt}\n")

        server = Server(scheduler, journal, data_dir=data, bind=bind, hooks=StageHooks(on_task_done=commit))
        known = [f"t{n}" for n in range(count) if not (data / "manifests" / f"t{n}.json").exists()]
        server.add_tasks([TaskSpec(name, "step", {"seed": name, "seconds": seconds}) for name in known], whole=True)
        signal.signal(signal.SIGINT, lambda *_: server.drain())
        print(server.endpoint, flush=True)
        outcome = server.run()
        print(outcome.status, flush=True)
        sys.exit(outcome.exit_code)
