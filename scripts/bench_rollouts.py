"""How fast the environment steps, alone on one core: `python scripts/bench_rollouts.py [--peer-python PY] [--out FILE]`.

Every contender runs in turn, several rounds, and its best round counts: other work on the machine can only slow it. Actions are
drawn beforehand. One JSON line a contender. gymnasium's own CartPoleVectorEnv stands beside it. So does CityLearn where --peer-python
names an interpreter that has it and --schema one of its data sets: it wants numpy < 2, which this project does not, so no
dependency group can hold it (`uv venv --python 3.11 PEER && uv pip install --python PEER citylearn`). What cannot run is
recorded with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np

from rl.env import Episodes
from rl.grid import Grid
from rl.gym import synthetic_table

HOURS = 168
ROUND = 2  # episodes of HOURS steps in a round
DRAWN = 64  # sets of actions, used in turn
PEER_SECONDS = 120


def environment(count: int) -> Callable[[], int]:
    """A round of the numpy core: environment steps done."""
    data = synthetic_table()
    episodes = Episodes(Grid(), data, count, HOURS)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (DRAWN, episodes.actions, count))
    starts = rng.choice(data.starts(HOURS), (ROUND, count))

    def play() -> int:
        for rows in starts:
            episodes.reset(rows)
            for hour in range(HOURS):
                episodes.step(actions[hour % DRAWN])
        return ROUND * HOURS * count

    return play


def vector(name: str, count: int) -> Callable[[], int]:
    """A round of a gymnasium vector environment that is vectorised by itself."""
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
    """CityLearn's line, one environment of the data set's buildings; or why there is none."""
    if python is None or schema is None:
        return {"skipped": "no --peer-python with CityLearn, or no --schema of a data set"}
    try:
        ended = subprocess.run(
            [python, "-c", CITYLEARN, schema], capture_output=True, text=True, timeout=PEER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"skipped": f"{type(error).__name__}: {error}"}
    if ended.returncode:
        return {"skipped": (ended.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines, appended to; stdout has them in any case")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peer-python", help="interpreter of a virtual environment that has CityLearn")
    parser.add_argument("--schema", help="schema.json of a CityLearn data set on this machine")
    args = parser.parse_args()
    cartpole = f"gymnasium {gymnasium.__version__} CartPole-v1"
    contenders: dict[tuple[str, int], Callable[[], int]] = {
        **{("environment", n): environment(n) for n in (1, 64, 256, 1024, 4096)},
        ("GridControlVector", 256): vector("rl.gym:GridControl-v0", 256),
        (cartpole, 256): vector("CartPole-v1", 256),
        (cartpole, 1024): vector("CartPole-v1", 1024),
    }
    best = dict.fromkeys(contenders, 0.0)
    # Round by round, so that a slow moment of the machine meets all of them.
    for _ in range(args.rounds):
        for key, play in contenders.items():
            start = time.perf_counter()
            best[key] = max(best[key], play() / (time.perf_counter() - start))
    machine = {"cpu": _cpu(), "python": platform.python_version(), "numpy": version("numpy"), "cores": 1}
    lines = [{"what": what, "environments": n, "steps_per_s": best[what, n], **machine} for what, n in contenders]
    lines.append({"what": "CityLearn", "environments": 1, **citylearn(args.peer_python, args.schema), "cpu": _cpu()})
    for line in lines:
        print(json.dumps(line))
    if args.out:
        with args.out.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")


if __name__ == "__main__":
    # One core, as the name says, where the system lets a process choose.
    if sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
