"""Coordinator and worker of a training whose ranks are `fake_rank.py`.

`python train_process.py DATA RANKS CONFIG RETRIES` runs the stage; its summary is the last line on stdout. The workers that it starts are
this file as well (`train_process.py --coordinator …`).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

HERE = Path(__file__).resolve()
FAKE = HERE.with_name("fake_rank.py")


def work() -> int:
    from worker.agent.agent import WorkerConfig, run_agent
    from worker.training.rank_runner import RankRunner

    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--connections")
    parser.add_argument("--stop-with-parent", action="store_true")
    options = parser.parse_args()
    ranks = RankRunner(FAKE)
    handlers = {"port": ranks.join, "train": ranks.run}
    config = WorkerConfig(options.coordinator, options.data, make_handlers=lambda: handlers)
    return run_agent(config, stop_with_parent=options.stop_with_parent)


def coordinate(data: Path, ranks: int, config: Path, retries: int) -> int:
    from coordinator.scheduling.worker_state import LeaseTimings
    from coordinator.stages.fleet import Fleet
    from coordinator.stages.stage import OutputMode
    from coordinator.stages.train.controller import TrainOptions
    from coordinator.stages.train.stage import TrainStage
    from coordinator.stages.train.stall import SupervisionTimeouts

    # A deployment's times, cut to a half or less, so that a test of a fault is over within seconds.
    timings = LeaseTimings(heartbeat_s=0.2, silence_s=5.0)
    timeouts = SupervisionTimeouts(
        rejoin_s=2.0, stopped_s=1.0, min_s=4.0, drain_grace_s=20.0, max_rounds_without_progress=retries
    )
    fleet = Fleet(
        data, "tcp://127.0.0.1:0", ranks, 1, retries, worker_command=(sys.executable, str(HERE)), timings=timings
    )
    options = TrainOptions(
        data_dir=data,
        run=data / "train",
        ranks=ranks,
        config=config.read_bytes(),
        workers=ranks,
        connections=1,
        bind=fleet.bind,
        keys=data / "keys",
        retries=retries,
    )
    summary = TrainStage(fleet, timeouts).run(options, OutputMode())
    print(msgspec.json.encode(summary).decode(), flush=True)
    return summary.exit_code


if __name__ == "__main__":
    if "--coordinator" in sys.argv:
        os._exit(work())
    sys.exit(coordinate(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
