"""Measure environment steps a second on one core: `python -m scripts.bench.rollouts [--peer-python PY] [--out FILE]`.

Every contender runs in turn for several rounds, and its best round counts: other work on the machine can only slow it. Actions are
drawn beforehand. Each contender gives one JSON line. For comparison, gymnasium's CartPoleVectorEnv runs too, and CityLearn if
--peer-python names an interpreter that has it and --schema one of its data sets: it needs numpy < 2, which this project does not
use, so no dependency group can include it (`uv venv --python 3.11 PEER && uv pip install --python PEER citylearn`). A contender that
cannot run gives a line with the reason.

`python -m scripts.bench.rollouts --fleet [--out FILE]` compares a policy of 64 hidden units in the environment in two processes without
network with leases of two workers over ZeroMQ, in turn; it needs both cores idle.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gymnasium
import msgspec
import numpy as np

from coordinator.scheduling.events import TaskDone
from coordinator.scheduling.records import TaskSpec, ephemeral_task
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.server import Server
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Weights
from coordinator.workers.local import LocalWorkerPool
from rl.distributed.jobs import Rollout, shapes
from rl.distributed.runner import JobRunner
from rl.env.grid import Grid
from rl.env.vector import VectorGridEnv
from rl.gym import synthetic_dataset
from rl.policy import from_bytes, init_mlp, normalisation, to_bytes
from scripts.bench.common import ROOT, emit, parser, processor, run_json
from worker.control.datasets import store_dataset

HOURS = 168
ROUND = 2  # episodes of HOURS steps in a round
DRAWN = 64  # sets of actions, used in turn
PEER_SECONDS = 120
FLEET_EPISODES = 1_024  # of a rollout's lease: 172,032 steps, 3.4 MB of actions and costs
FLEET_SECONDS = 6.0  # of a round
WORKERS, AHEAD = 2, 4  # leases of each worker: one runs, the others are in transit


def environment(count: int) -> Callable[[], int]:
    """Return a round of the environment; it returns the number of steps."""
    data = synthetic_dataset()
    env = VectorGridEnv(Grid(), data, count, HOURS)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (DRAWN, env.num_actions, count))
    starts = rng.choice(data.starts(HOURS), (ROUND, count))

    def play() -> int:
        for rows in starts:
            env.reset(rows)
            for hour in range(HOURS):
                env.step(actions[hour % DRAWN])
        return ROUND * HOURS * count

    return play


def vector(name: str, count: int) -> Callable[[], int]:
    """Return a round of a gymnasium environment with its own vectorised implementation."""
    made = gymnasium.make_vec(name, num_envs=count, vectorization_mode="vector_entry_point")
    made.action_space.seed(0)
    actions = [made.action_space.sample() for _ in range(DRAWN)]
    made.reset(seed=0)

    def play() -> int:
        for step in range(ROUND * HOURS):
            made.step(actions[step % DRAWN])
        return ROUND * HOURS * count

    return play


# Runs in the peer's interpreter, without this project.
CITYLEARN = r"""
import json, sys, time
from importlib.metadata import version
from citylearn.citylearn import CityLearnEnv
env = CityLearnEnv(sys.argv[1], central_agent=True)
env.reset()
actions = [[space.sample() for space in env.action_space] for _ in range(8)]
best = 0.0
for _ in range(3):
    env.reset()
    start, steps, ended = time.perf_counter(), 0, False
    while not ended and steps < 500:
        result = env.step(actions[steps % 8])
        ended = bool(result[2])
        steps += 1
    best = max(best, steps / (time.perf_counter() - start))
print(json.dumps({"steps_per_s": best, "version": version("citylearn")}))
"""


def citylearn(python: str | None, schema: str | None) -> dict[str, object]:
    """Return CityLearn's line, one environment of the data set's buildings, or the reason why there is none."""
    if python is None or schema is None:
        return {"skipped": "no --peer-python with CityLearn, or no --schema of a data set"}
    try:
        return run_json([python, "-c", CITYLEARN, schema], timeout=PEER_SECONDS)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"skipped": f"{type(error).__name__}: {error}"}


def fleet_folder(folder: Path) -> tuple[str, str]:
    """Write the synthetic dataset and a policy; return the sha256 of both."""
    data = synthetic_dataset()
    sha256 = store_dataset(folder / "control", data)
    env = VectorGridEnv(Grid(), data, 256, HOURS)
    mean, scale = normalisation(env.reset(np.random.default_rng(0).choice(data.starts(HOURS), 256)))
    policy = to_bytes(init_mlp(env.observation_names, mean, scale, env.num_actions, 64, np.random.default_rng(0)))
    (folder / "policy.npz").write_bytes(policy)
    return sha256, hashlib.sha256(policy).hexdigest()


def rollout_job(dataset: str, policy: str, seed: int) -> Rollout:
    """Return the job of one lease."""
    return Rollout(dataset, policy, seed, FLEET_EPISODES, HOURS, (0.1,) * 4)


def alone(folder: Path, dataset: str, policy: str) -> None:
    """Run jobs in this process, without network; print steps and seconds."""
    actor = from_bytes((folder / "policy.npz").read_bytes())
    runner = JobRunner(folder / "control", lambda sha256: actor)
    runner.run(rollout_job(dataset, policy, 0))
    began, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < FLEET_SECONDS:
        runner.run(rollout_job(dataset, policy, steps + 1))
        steps += HOURS * FLEET_EPISODES
    print(json.dumps([steps, seconds]))


def without_network(folder: Path, dataset: str, policy: str) -> float:
    """Return the steps a second of as many processes as there are workers."""
    environ = {**os.environ, **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")}
    command = [sys.executable, "-m", "scripts.bench.rollouts", "--alone", str(folder), dataset, policy]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT) for _ in range(WORKERS)
    ]
    return sum(steps / seconds for steps, seconds in (json.loads(one.communicate()[0]) for one in running))


def over_zeromq(folder: Path, dataset: str, policy: str) -> float:
    """Return the steps a second of two workers that return their results through leases."""
    scheduler = Scheduler(filesystem_id(folder))
    journal = Journal(folder / f"journal-{time.monotonic_ns()}.sqlite")
    content = (folder / "policy.npz").read_bytes()
    weights = Weights(0, policy, content)
    issued, times = 0, []

    def more() -> TaskSpec:
        nonlocal issued
        issued += 1
        job = rollout_job(dataset, policy, issued)
        plain = msgspec.to_builtins(job)
        arrays = shapes(job, 4)
        return ephemeral_task(f"control/{issued:08d}", LeaseKind.ROLLOUT, plain, arrays, requires_shared_fs=True)

    def done(what: TaskDone) -> list[TaskSpec]:
        assert len(what.arrays) == 2
        times.append(time.perf_counter())
        if times[-1] - times[0] > FLEET_SECONDS:
            server.stop_now()
        return [more()]

    server = Server(
        scheduler,
        journal,
        data_dir=folder,
        hooks=StageHooks(on_task_done=done, get_weights=lambda sha256: weights, has_more_work=lambda: True),
    )
    command = (sys.executable, "-m", "worker")
    workers = LocalWorkerPool(command, server.endpoint, folder, WORKERS, 1, 60.0)
    server.add_tasks([more() for _ in range(WORKERS * (AHEAD + 1))])
    workers.start()
    try:
        server.run()
    finally:
        workers.stop()
        journal.close()
    # From the first result on: by then both workers have started, or are about to.
    return (len(times) - 1) * HOURS * FLEET_EPISODES / (times[-1] - times[0])


def fleet(rounds: int) -> list[dict[str, object]]:
    """Return the lines of `--fleet`: the best round of each, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset, policy = fleet_folder(folder)
        found: dict[str, list[float]] = {"without network": [], "over ZeroMQ": []}
        for _ in range(rounds):
            found["without network"].append(without_network(folder, dataset, policy))
            found["over ZeroMQ"].append(over_zeromq(folder, dataset, policy))
    share = max(found["over ZeroMQ"]) / max(found["without network"])
    return [
        {
            "what": f"policy of 64 units, 2 processes, {what}",
            "environments": FLEET_EPISODES,
            "steps_per_s": max(rates),
            "rounds": rates,
            **({"share": share} if what == "over ZeroMQ" else {}),
            **machine(WORKERS),
        }
        for what, rates in found.items()
    ]


def main() -> None:
    """Run the contenders and write their lines."""
    command = parser(__doc__)
    command.add_argument("--out", type=Path, help="file of JSON lines to append to; they go to stdout in any case")
    command.add_argument("--rounds", type=int, default=15)
    command.add_argument("--peer-python", help="interpreter of a virtual environment that has CityLearn")
    command.add_argument("--schema", help="schema.json of a CityLearn data set on this machine")
    command.add_argument(
        "--fleet", action="store_true", help="only the lines with the policy, without network and over ZeroMQ"
    )
    args = command.parse_args()
    if args.fleet:
        for line in fleet(args.rounds):
            emit(line, args.out)
        return
    one_core()
    cartpole = f"gymnasium {gymnasium.__version__} CartPole-v1"
    contenders: dict[tuple[str, int], Callable[[], int]] = {
        **{("environment", n): environment(n) for n in (1, 64, 256, 1024, 4096)},
        ("GridControlVector", 256): vector("rl.gym:GridControl-v0", 256),
        (cartpole, 256): vector("CartPole-v1", 256),
        (cartpole, 1024): vector("CartPole-v1", 1024),
    }
    best = dict.fromkeys(contenders, 0.0)
    # Round by round, so that a slow moment of the machine affects all of them.
    for _ in range(args.rounds):
        for key, play in contenders.items():
            start = time.perf_counter()
            best[key] = max(best[key], play() / (time.perf_counter() - start))
    lines = [{"what": what, "environments": n, "steps_per_s": best[what, n], **machine(1)} for what, n in contenders]
    lines.append(
        {"what": "CityLearn", "environments": 1, **citylearn(args.peer_python, args.schema), "cpu": processor()}
    )
    for line in lines:
        emit(line, args.out)


def machine(cores: int) -> dict[str, object]:
    """Return the fields that describe this machine and the number of cores used."""
    return {"cpu": processor(), "python": platform.python_version(), "numpy": version("numpy"), "cores": cores}


def one_core() -> None:
    """Pin the process to one core, where the system allows it."""
    if sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        # In a separate thread, as in a worker: glibc returns large arrays to the system less often there.
        thread = threading.Thread(target=alone, args=(Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
        thread.start()
        thread.join()
    else:
        main()
