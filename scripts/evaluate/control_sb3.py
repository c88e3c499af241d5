"""Train Stable-Baselines3's PPO on the synthetic region: `uv run --group sb3 python -m scripts.evaluate.control_sb3 --seeds 0,1,2`.

It trains on 2017 and 2018 and scores each week of 2019 against the exact optimum: PoP, the share of the perfect-foresight saving
(1 the optimum, 0 doing nothing). A line of JSON for each seed goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from rl.env.dataset import build_dataset
from rl.env.forecasts import day_ahead
from rl.env.region import WEEK, synthetic
from rl.evaluation.score import reference_costs, rollout
from rl.gym import GridControl
from rl.wrappers import NormalizedObservation, normalized

EPISODES = 32  # at once
STEPS = 1_200_000
SETTINGS: dict[str, Any] = {
    "n_steps": WEEK,  # an episode: the advantage is never bootstrapped
    "batch_size": EPISODES * WEEK // 8,
    "n_epochs": 8,
    "gamma": 0.99,  # what an hour's charge is worth is known within a day or two
    "learning_rate": lambda left: 1e-3 * left,
    "policy_kwargs": {"net_arch": [128, 128], "log_std_init": -1.0},
    "device": "cpu",
}


def train(seed: int, steps: int) -> PPO:
    """Return a policy trained on the default dataset."""
    envs = make_vec_env(lambda: normalized(GridControl()), EPISODES, seed=seed)
    model = PPO("MlpPolicy", envs, seed=seed, **SETTINGS)
    with torch.no_grad():
        model.policy.action_net.bias[-1] = -0.5  # exploration would shed load, at $1,200/MWh; below 0 nothing is shed
    return model.learn(steps)


def pop_of(model: PPO) -> float:
    """Return the PoP over the weeks of 2019, which the training has not seen."""
    region, issued = synthetic()
    held_out = build_dataset([region], [day_ahead(region, issued, 24)], "2019-01-01T00", "2019-12-31T00")
    starts = np.arange(0, len(held_out.load) - WEEK + 1, WEEK)
    scale = NormalizedObservation(GridControl(data=held_out), like=GridControl())
    grid = GridControl().env.grid

    def policy(env: Any) -> Any:
        return model.predict(scale.observation(env.observation), deterministic=True)[0].T

    cost = rollout(grid, held_out, policy, starts, WEEK).cost.sum(axis=0)
    return reference_costs(grid, held_out, starts, WEEK).pop(cost)


def main() -> None:
    """Train and score each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is small: threads only wait for each other
    for seed in map(int, options.seeds.split(",")):
        began, used = time.monotonic(), time.process_time()
        pop = pop_of(train(seed, options.steps))
        line = {
            "seed": seed,
            "steps": options.steps,
            "seconds": round(time.monotonic() - began),
            "cpu_s": round(time.process_time() - used),
            "pop": round(pop, 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
