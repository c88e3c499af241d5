"""Run a coordinator of no-op leases for `leases.py`: `python scripts/bench/lease_coordinator.py DATA BIND TASKS [KEYS]`.

Resumes from the journal of DATA. Prints its endpoint, then, at its end, one JSON line: the number of leases that this process committed,
and the seconds from the first commit to the last.
"""

import json
import sys
import time
from pathlib import Path

from coordinator.scheduling.events import TaskDone
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.folder_lock import FolderLock
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import load_coordinator
from coordinator.server.server import Server
from coordinator.stages.run_log import RunRecorder
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.lease_kinds import LeaseKind


def main() -> None:
    """Serve until all tasks are committed."""
    data, bind, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with FolderLock(data):
        scheduler, journal = Scheduler(filesystem_id(data)), Journal(data / "journal.sqlite")
        for record in journal.load():
            scheduler.apply(record)
        times = [0.0, 0.0]
        commits = 0

        def commit(done: TaskDone) -> None:
            nonlocal commits
            times[min(commits, 1)] = time.perf_counter()
            commits += 1

        def write_status() -> None:
            if recorder.due():
                recorder.write(server.status(), {}, 0)

        keys = load_coordinator(Path(sys.argv[4])) if len(sys.argv) > 4 else None
        recorder = RunRecorder(data, "leases", "")
        hooks = StageHooks(on_task_done=commit, on_tick=write_status)
        server = Server(scheduler, journal, data_dir=data, bind=bind, keys=keys, hooks=hooks)
        server.add_tasks(TaskSpec(f"t{n}", LeaseKind.NOOP, {}) for n in range(count) if f"t{n}" not in scheduler.tasks)
        print(server.endpoint, flush=True)
        outcome = server.run()
        line = {
            "status": outcome.status,
            "commits": commits,
            "seconds": times[1] - times[0],
            "counters": server.counters,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
