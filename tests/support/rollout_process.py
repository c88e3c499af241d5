"""Coordinator and workers of a control training, with short timeouts.

`python rollout_process.py DATA WORKERS CONFIG` runs the stage and prints its summary as the last line. Its workers run this file too.
`LIES_FROM=n` in the environment makes the first worker of the folder return wrong actions from its n-th result on. `ELSEWHERE=1`
gives all but the first worker a data folder of their own, as on other hosts.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve()
LIE = 1.2  # factor of the noise: costs match the actions and no number looks odd, but the difference exceeds the audit's tolerance


def liar(honest: Any, lies_from: int) -> Any:
    """`ControlHandler.run`, wrong from its n-th rollout on: it runs the episodes with more noise than the job specifies."""
    count = 0

    def do(job: dict[str, Any], context: Any) -> Any:
        nonlocal count
        if job["kind"] == "rollout":
            count += 1
            if count >= lies_from:
                job = {**job, "noise": [LIE * std for std in job["noise"]]}
        return honest(job, context)

    return do


def work() -> int:
    from worker.agent.agent import WorkerConfig, run_agent
    from worker.agent.handlers import default_handlers

    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--connections")
    parser.add_argument("--stop-with-parent", action="store_true")
    options = parser.parse_args()
    handlers = default_handlers()
    if (lies_from := os.environ.get("LIES_FROM")) and first(options.data / "liar"):
        handlers["rollout"] = liar(handlers["rollout"], int(lies_from))
    data = options.data
    if os.environ.get("ELSEWHERE") and not first(options.data / "sharer"):
        data = data.with_name(f"elsewhere-{os.getpid()}")
    config = WorkerConfig(options.coordinator, data, make_handlers=lambda: handlers)
    return run_agent(config, stop_with_parent=options.stop_with_parent)


def first(mark: Path) -> bool:
    """Return whether this process is the first to create the file."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def coordinate(data: Path, workers: int, config: Path) -> int:
    from coordinator.scheduling.worker_state import LeaseTimings
    from coordinator.stages.fleet import Fleet
    from coordinator.stages.rollouts.stage import RolloutOptions, RolloutStage
    from coordinator.stages.stage import OutputMode

    timings = LeaseTimings(heartbeat_s=0.2, silence_s=3.0, backoff_s=0.05)
    fleet = Fleet(
        data, "tcp://127.0.0.1:0", workers, 1, 20, worker_command=(sys.executable, str(HERE)), timings=timings
    )
    options = RolloutOptions(
        data_dir=data,
        config=config,
        forecaster=data / "train",
        workers=workers,
        connections=1,
        bind=fleet.bind,
        keys=data / "keys",
        retries=20,
    )
    summary = RolloutStage(fleet).run(options, OutputMode())
    print(msgspec.json.encode(summary).decode(), flush=True)
    return summary.exit_code


if __name__ == "__main__":
    if "--coordinator" in sys.argv:
        os._exit(work())
    sys.exit(coordinate(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
