"""What a forecast is worth, and what a data folder gives for it: measured hours, a trained policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of, to_bytes
from rl.env.forecasts import day_ahead, oracle, persistence
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.errors import DataError
from rl.evaluation.score import rollout
from rl.evaluation.worth import forecast_worth
from rl.folder import trained
from rl.gym import GridControl
from rl.policy import init_mlp
from rl.policy import to_bytes as policy_bytes

HOURS = 30


@pytest.fixture(scope="module")
def summer() -> Dataset:
    return build_dataset([synthetic(24 * 60)[0]], [None], "2017-02-01T00", "2017-02-08T00")


def test_better_forecasts_are_worth_more(summer: Dataset) -> None:
    region, issued = synthetic(24 * 60)
    forecasts = {
        "perfect": oracle(region, 12),
        "DF": day_ahead(region, issued, 12),
        "yesterday": persistence(region, 12),
    }
    rows = {name: summer.gather([forecast]) for name, forecast in forecasts.items()}
    found = forecast_worth(Grid(), summer, rows, summer.episodes(24)[:2], 24)
    assert list(found) == ["perfect", "DF", "yesterday"]
    assert 1 > found["perfect"] > 0.8 and found["perfect"] > found["DF"] > found["yesterday"]


def test_episodes_follow_one_another_from_midnight(summer: Dataset) -> None:
    rows = summer.episodes(48)
    assert_array_equal(np.diff(rows), 48)
    assert set(summer.clock[rows]) == {0} and rows[-1] + 48 <= len(summer.load)
    assert_array_equal(summer.episodes(48, 2), rows[::2])
    assert [summer.row_of(summer.time_of(row)) for row in rows] == list(rows)


def test_trained_policy_is_played_on_its_own_hours(summer: Dataset, tmp_path: Path) -> None:
    sha256, content = to_bytes(summer)
    folder = tmp_path / "control"
    path_of(folder, sha256).parent.mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no trained policy .* run `coordinator start --rollouts --data"):
        trained(tmp_path)
    path_of(folder, sha256).write_bytes(content)
    (folder / "tables.json").write_text(json.dumps({"tables": {"test": sha256}}))
    env = GridControl(data=summer, hours=HOURS)
    count = len(env.observation_names)
    made = init_mlp(
        env.observation_names, np.zeros(count, np.float32), np.ones(count, np.float32), 4, 8, np.random.default_rng(0)
    )
    (folder / "policy.npz").write_bytes(policy_bytes(made))
    policy, data = trained(tmp_path)
    assert (data.first_hours, data.peaks) == (summer.first_hours, summer.peaks)
    start = int(data.episodes(HOURS)[0])
    observation, _ = env.reset(options={"start": start})
    costs = []
    for _ in range(HOURS):
        observation, reward, *_ = env.step(policy.act(observation[None])[:, 0])
        costs.append(-reward)
    assert sum(costs) == pytest.approx(rollout(Grid(), data, policy, np.array([start]), HOURS).cost.sum())
    with pytest.raises(DataError, match="split 'last': choose test"):
        trained(tmp_path, "last")
    with pytest.raises(
        DataError, match=r"trained on 15 features, the environment has 39: 24 are new, first `forecast \+0.0`"
    ):
        policy(GridControl(hours=HOURS).env)
