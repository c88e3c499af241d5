"""The environment for users of other libraries: info, reference, pictures, wrappers, measured regions, Stable-Baselines3's checker."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from numpy.testing import assert_allclose, assert_array_equal

from rl.errors import DataError
from rl.evaluation.score import cost_parts, rollout
from rl.gym import GridControl, GridControlVector
from rl.planning.baselines import idle
from rl.render import HEIGHT, WIDTH
from rl.wrappers import NormalizedObservation, SavingReward, normalized
from tests.support.data_folder import build_all, commit, shard

HOURS = 30


def test_bounds_are_plain_numbers_and_hold_every_observation() -> None:
    """A bound of -1e-45 broke checkers and printed as 0."""
    env = GridControl(hours=HOURS)
    space = env.observation_space
    assert isinstance(space, Box)
    for bound in (space.low, space.high):
        assert not ((bound != 0) & (np.abs(bound) < np.finfo(np.float32).tiny)).any()
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(HOURS):
        assert observation in env.observation_space
        observation, *_ = env.step(env.action_space.sample())
    assert observation in env.observation_space


def test_info_explains_the_reward() -> None:
    env = GridControl(hours=HOURS)
    env.action_space.seed(1)
    _, info = env.reset(seed=1)
    actions = [env.action_space.sample() for _ in range(HOURS)]
    steps = [env.step(action) for action in actions]
    parts = {name: sum(info["cost_parts"][name] for *_, info in steps) for name in steps[0][4]["cost_parts"]}
    for _, reward, _, _, seen in steps:
        assert_allclose(-reward, sum(seen["cost_parts"].values()), rtol=1e-12)
        assert_allclose(seen["residual"], seen["load"] - seen["power"].sum() - seen["shed"], rtol=1e-12)
        assert ((seen["charge"] >= 0) & (seen["charge"] <= 1)).all()
    given = iter(actions)
    traced = rollout(env.env.grid, env.env.dataset, lambda _: next(given)[:, None], np.array([info["start"]]), HOURS)
    assert_allclose([parts[name] for name in parts], [value[0] for value in cost_parts(env.env.grid, traced).values()])
    assert list(parts) == list(cost_parts(env.env.grid, traced))
    priced = env.env.grid.generation_cost(np.array([seen["residual"], seen["residual"] + 1e-7]))
    assert_allclose(seen["price"], np.diff(priced)[0] / 1e-7, rtol=1e-4)


def test_reference_is_the_scale_of_this_episode() -> None:
    env = GridControl(hours=HOURS)
    with pytest.raises(DataError, match="reset"):
        env.reference()
    _, info = env.reset(seed=2)
    scale = env.reference()
    best = scale.schedules[0].actions(env.env.grid).astype(np.float32)
    earned = sum(env.step(best[:, hour])[1] for hour in range(HOURS))
    assert scale.pop(np.array([-earned])) == pytest.approx(1.0)
    lazy = rollout(env.env.grid, env.env.dataset, idle, np.array([info["start"]]), HOURS)
    assert scale.pop(lazy.cost.sum(axis=0)) == pytest.approx(0.0, abs=1e-9)


def test_wrappers_keep_the_ranking_and_make_doing_nothing_zero() -> None:
    env = normalized(GridControl(hours=HOURS))
    env.reset(seed=3)
    zeros = np.zeros(4, np.float32)
    saved = [float(env.step(zeros)[1]) for _ in range(HOURS)]
    assert_allclose(saved, 0, atol=1e-9)
    start = {"start": 500}
    env.reset(options=start)
    raw = GridControl(hours=HOURS)
    raw.reset(options=start)
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(HOURS)]
    steps = [env.step(action) for action in actions]
    assert all(one in env.observation_space for one, *_ in steps)
    assert sum(float(reward) for _, reward, *_ in steps) == pytest.approx(
        sum(float(raw.step(action)[1]) for action in actions) + raw.reference().idle[0]
    )
    training = GridControl(hours=HOURS)
    held_out = NormalizedObservation(SavingReward(GridControl(hours=HOURS)), like=training)
    assert_allclose(held_out.mean, NormalizedObservation(training).mean)


def test_picture_shows_the_hours_so_far() -> None:
    env = gymnasium.make("rl.gym:GridControl-v0", render_mode="rgb_array", hours=HOURS)
    env.reset(seed=0)
    pictures = [env.render()]
    for _ in range(HOURS):
        env.step(env.action_space.sample())
        pictures.append(env.render())
    first, last = np.asarray(pictures[0]), np.asarray(pictures[-1])
    assert first.shape == last.shape == (HEIGHT, WIDTH, 3) and first.dtype == np.uint8
    heading = slice(0, 24)  # rows of the first line of text: hour, cost, saving
    assert (first[heading] != last[heading]).any()
    assert (np.asarray(pictures[10]) != last).any() and len(np.unique(last.reshape(-1, 3), axis=0)) > 6
    with pytest.raises(DataError, match="rgb_array"):
        GridControl(render_mode="ansi")


@pytest.mark.skipif(find_spec("pygame") is not None, reason="pygame is installed")
def test_window_without_pygame_names_the_package() -> None:
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match="pip install"):
        GridControl(render_mode="human")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A year of PACW, whose demand of 2023-01-20T01 to T03 is missing."""
    path = tmp_path_factory.mktemp("data")
    one = shard("PACW", "2023-01-01T00", "2023-12-31T23")
    demand = demand_of(one.hours)
    demand[19 * 24 + 1 : 19 * 24 + 4] = np.nan
    commit(path, one, {"D": demand, "DF": demand_of(one.hours) + 30})
    build_all(path)
    return path


def demand_of(hours: int) -> np.ndarray:
    return np.round(3000 + 600 * np.sin(2 * np.pi * np.arange(hours) / 24))


def environment(folder: Path) -> GridControl:
    return GridControl.from_folder(folder, ["pacw"], hours=48, horizon=12, end="2023-03-01T00")


def test_environment_of_a_data_folder_has_its_loads(folder: Path) -> None:
    env = environment(folder)
    assert env.observation_space.shape == (3 + 2 + 4 + 6 + 12,)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space and env.data.regions == ("PACW",)
    demand = demand_of(31 * 24)[7 * 24 :]
    assert_allclose(env.data.load[: len(demand)], demand / demand.max(), rtol=1e-6)
    assert_allclose(observation[-12], env.data.load[info["start"]] + 30 / demand.max(), rtol=1e-5)
    for given, problem in ((["ERCO"], "ERCO"), ([], "none is named")):
        with pytest.raises(DataError, match=problem):
            GridControl.from_folder(folder, given)


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        ("2023-03-10T00", "2023-03-01T00", "start 2023-03-10T00 must be before end 2023-03-01T00"),
        ("March", "2023-04-01T00", "'March' is no hour: write YYYY-MM-DDTHH"),
        (
            "2023-03-01T00",
            "2023-03-04T00",
            "longest run is 72 h of 72. Name a longer period, or shorter episodes with hours=72",
        ),
        ("2023-01-18T00", "2023-01-26T00", "longest run is 139 h of 192"),
    ],
)
def test_unusable_period_is_named(folder: Path, start: str, end: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        GridControl.from_folder(folder, ["PACW"], start=start, end=end)


def test_environment_names_its_columns_and_says_which_hour_it_is(folder: Path) -> None:
    """A row's number alone does not say which week was played."""
    env = environment(folder)
    assert env.action_names == ("battery_2h", "battery_4h", "shiftable", "shed")
    assert len(env.observation_names) == env.observation_space.shape[0]  # type: ignore[index]
    _, info = env.reset(options={"start": "2023-01-10T05"})
    assert (info["region"], info["time"], info["peak"]) == ("PACW", "2023-01-10T05", 3600.0)
    assert info["start"] == 2 * 24 + 5
    *_, seen = env.step(np.zeros(4, np.float32))
    assert (seen["region"], seen["time"]) == ("PACW", "2023-01-10T05")
    assert seen["load"] == env.data.load[info["start"]]
    *_, seen = env.step(np.zeros(4, np.float32))
    assert seen["time"] == "2023-01-10T06"


def test_environment_of_a_folder_can_be_made_again(folder: Path) -> None:
    """Gymnasium's checker warned that there was no spec."""
    env = environment(folder)
    assert env.spec is not None
    again = env.spec.make()
    same, other = (one.reset(seed=4)[0] for one in (env, again))
    assert_array_equal(same, other)
    rows = gymnasium.make_vec("rl.gym:GridControl-v0", num_envs=3, data=env.data, hours=48)
    assert rows.reset(seed=0)[0].shape == (3, *same.shape)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"begin": 1}, "unknown options begin; known are start and region"),
        ({"start": 10**6}, "the data have 1248 rows, and an episode needs 48"),
        ({"start": -1}, "the data have 1248 rows"),
        ({"start": "2023-01-19T00"}, r"the hour 2023-01-20T01 \(row 289\) or the one before was not measured"),
        ({"start": "2023-07-01T00"}, "PACW has 2023-01-08T00 to 2023-02-28T23, not 2023-07-01T00"),
        ({"start": "soon"}, "'soon' is no hour: write YYYY-MM-DDTHH"),
        ({"start": "2023-01-10T00", "region": "ERCO"}, "region 'ERCO': choose PACW"),
    ],
)
def test_reset_refuses_hours_that_were_not_measured(folder: Path, options: dict[str, object], problem: str) -> None:
    env = environment(folder)
    with pytest.raises(DataError, match=problem):
        env.reset(options=options)


@pytest.mark.parametrize("action", [np.full(4, np.nan), np.zeros(3), np.zeros((4, 1)), np.array([0, 0, 0, np.inf])])
def test_unusable_action_is_refused_and_changes_nothing(action: np.ndarray) -> None:
    """A NaN made every later observation NaN, without a word."""
    env = GridControl(hours=HOURS)
    env.reset(seed=0)
    with pytest.raises(DataError, match="needed are 4 finite numbers, battery_2h, battery_4h, shiftable, shed"):
        env.step(action)
    assert np.isfinite(env.step(np.zeros(4))[0]).all() and env.env.hours_left == HOURS - 1


def test_unusable_actions_of_many_episodes_are_refused() -> None:
    env = GridControlVector(2, hours=2)
    env.reset(seed=0)
    with pytest.raises(DataError, match=r"actions of shape \(4, 2\): needed is \(2, 4\)"):
        env.step(np.zeros((4, 2)))
    env.step(np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]))
    with pytest.raises(DataError, match="not finite"):
        env.step(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ({"data": "data"}, r"not str: `rl.folder.dataset_from\(\"data\", \[\"ERCO\"\]\)` makes one"),
        ({"grid": {"shed": 1}}, "grid must be an rl.env.grid.Grid, not dict"),
        ({"hours": 2.5}, "hours must be a whole number of hours, not 2.5"),
        ({"hours": 10**6}, "longest run is 17496 h of 17496. Name a longer period, or shorter episodes"),
    ],
)
def test_wrong_argument_is_named(argument: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        GridControl(**argument)  # type: ignore[arg-type]


@pytest.mark.long
def test_checkers_of_gymnasium_and_stable_baselines3_are_silent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3", reason="not installed: uv run --group sb3 pytest")
    from gymnasium.utils.env_checker import check_env as check_gymnasium
    from stable_baselines3.common.env_checker import check_env

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # a window without a screen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env in (GridControl(), normalized(GridControl()), environment(folder)):
            check_env(env)
        check_gymnasium(environment(folder))
        check_gymnasium(gymnasium.make("rl.gym:GridControl-v0").unwrapped)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_ppo_of_stable_baselines3_beats_doing_nothing() -> None:
    pytest.importorskip("stable_baselines3", reason="not installed: uv run --group sb3 pytest")
    from scripts.evaluate.control_sb3 import STEPS, pop_of, train

    assert pop_of(train(0, STEPS)) > 0.3
