"""Jobs and their audit: each kind gives the arrays that it states and gives them again; samples and differences; files of arrays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rl.arrays import mapped, pack, unpack
from rl.distributed.audit import EVERY, Sampler, difference, replay
from rl.distributed.jobs import (
    AnyJob,
    Evaluate,
    EvaluatePerturbations,
    GradientSteps,
    MakeLabels,
    Rollout,
    shapes,
)
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import load, path_of, to_bytes
from rl.env.forecasts import oracle
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import reference_costs
from rl.planning.mpc import known_loads, point_forecast
from rl.policy import Mlp, flatten, init_mlp, normalisation, unflatten

GRID = Grid()
SHA = "5" * 64
NOTHING = "b" * 64


@pytest.fixture(scope="module")
def data() -> Dataset:
    made, _ = synthetic(8760)
    return build_dataset([made], [oracle(made, 36)], "2017-01-02T00", "2017-12-01T00")


@pytest.fixture(scope="module")
def runner(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> JobRunner:
    folder = tmp_path_factory.mktemp("control")
    sha256, content = to_bytes(data)
    path_of(folder, sha256).parent.mkdir()
    path_of(folder, sha256).write_bytes(content)
    env = VectorGridEnv(GRID, data, 256, 24)
    mean, scale = normalisation(env.reset(np.random.default_rng(0).choice(data.starts(24), 256)))
    policy = init_mlp(env.observation_names, mean, scale, env.num_actions, 16, np.random.default_rng(0))
    layers = (*policy.layers[:-1], (policy.layers[-1][0] * 20, policy.layers[-1][1]))
    loud = Mlp(policy.observation_names, mean, scale, layers)
    return JobRunner(folder, {SHA: loud, NOTHING: unflatten(loud, np.zeros_like(flatten(loud)))}.__getitem__)


def jobs_of(data: Dataset) -> list[AnyJob]:
    sha256, _ = to_bytes(data)
    features = len(VectorGridEnv(GRID, data, 1, 1).observation_names)
    rows = (100, 900, 4000)
    size = features * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    return [
        MakeLabels(sha256, 3, 2, 30, features),
        Rollout(sha256, SHA, 4, 5, 48, (0.1, 0.1, 0.2, 0.05)),
        GradientSteps(sha256, SHA, NOTHING, NOTHING, size, 6, 1, 0, 3, 9, 8, 24, 1e-3, (2.0,)),
        EvaluatePerturbations(sha256, SHA, 5, (7, 8, 9), 0.05, 4, 24),
        *(Evaluate(sha256, name, rows, 48) for name in (SHA, "nothing", "optimum", "mpc", "mpc perfect")),
    ]


def test_every_kind_gives_what_it_states_and_gives_it_again(runner: JobRunner, data: Dataset) -> None:
    for job in jobs_of(data):
        found = runner.run(job)
        stated = {name: (dtype, shape) for name, dtype, shape in shapes(job, len(GRID.stores) + 1)}
        assert {name: (str(x.dtype), x.shape) for name, x in found.items()} == stated
        again = runner.run(msgspec.convert(msgspec.to_builtins(job), AnyJob))
        assert all(np.array_equal(found[name], again[name]) for name in found)
        assert not difference(found, again)
        last = list(found)[-1]
        assert "numbers differ" in difference({**found, last: found[last] * 1.01 + 0.01}, again)


def test_costs_of_baselines_are_those_of_the_yardstick(runner: JobRunner, data: Dataset) -> None:
    sha256, _ = to_bytes(data)
    rows = (100, 900, 4000)
    costs = {
        name: runner.run(Evaluate(sha256, name, rows, 60))["cost"] for name in ("nothing", "optimum", "mpc perfect")
    }
    scale = reference_costs(GRID, data, np.array(rows), 60)
    assert_allclose(costs["nothing"], scale.idle)
    assert_allclose(costs["optimum"], scale.optimum)
    assert scale.pop(costs["mpc perfect"]) > 0.95


def test_a_replay_has_the_observations_and_refuses_other_costs(runner: JobRunner, data: Dataset) -> None:
    job = jobs_of(data)[1]
    assert isinstance(job, Rollout)
    result = runner.run(job)
    seen, cost = replay(runner, job, result)
    assert_allclose(cost, result["cost"], rtol=1e-6)
    assert_array_equal(
        seen[0, :, 6], data.features[runner.draw_starts(job)[0], 1]
    )  # charge × 3, residual, left, load -1, load -2
    with pytest.raises(DataError, match="not those of its actions"):
        replay(runner, job, {**result, "actions": result["actions"] * 1.01})


def test_forecasts_that_planners_use(data: Dataset) -> None:
    made, _ = synthetic(8760)
    # The table's forecast is the oracle, which knows hours beyond the table's end.
    assert_allclose(point_forecast(data)[:-36], known_loads(data, 36)[:-36], atol=1e-6)
    several = np.concatenate([oracle(made, 4), np.ones((len(made.load), 4, 1), np.float32)], axis=2)
    more = build_dataset([made], [several], "2017-01-02T00", "2017-12-01T00", GRID)
    assert_allclose(point_forecast(more)[:-4], known_loads(more, 4)[:-4], atol=1e-6)
    with pytest.raises(DataError, match="no forecast"):
        point_forecast(build_dataset([made], [None], "2017-01-02T00", "2017-12-01T00"))


@given(st.text(min_size=1), st.integers(0, 200))
def test_a_worker_that_goes_wrong_is_caught_within_the_stated_number(worker: str, honest: int) -> None:
    sampler = Sampler()
    picked = [sampler.pick(worker, "rollout") for _ in range(honest + 2 * EVERY)]
    assert picked[0]
    assert any(picked[honest : honest + 2 * EVERY - 1])
    assert sum(picked) <= 2 + len(picked) / EVERY + 1
    assert sampler.pick(worker, "labels")  # the first of another kind


def test_a_table_comes_back_and_another_file_is_refused(data: Dataset, runner: JobRunner, tmp_path: Path) -> None:
    sha256, content = to_bytes(data)
    again = load(runner.folder, sha256)
    assert_array_equal(again.features, data.features)
    assert (again.feature_names, again.spans, again.regions) == (data.feature_names, data.spans, data.regions)
    path = path_of(tmp_path, sha256)
    path.parent.mkdir()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match="not what its name says"):
        load(tmp_path, sha256)
    with pytest.raises(DataError, match="not named by a sha256"):
        load(tmp_path, "../" + sha256[3:])


NAMES = st.text(max_size=5)
ARRAYS = st.dictionaries(
    NAMES,
    st.builds(
        lambda dtype, shape: np.arange(int(np.prod(shape))).reshape(shape).astype(dtype),
        st.sampled_from(["bool", "float32", "float64", "int64"]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=4,
)


@given(st.dictionaries(NAMES, st.integers() | st.text(max_size=4), max_size=3), ARRAYS)
def test_packed_arrays_come_back(meta: dict, arrays: dict) -> None:
    found, again = unpack(pack(meta, arrays))
    assert found == meta and list(again) == list(arrays)
    assert all(np.array_equal(again[n], arrays[n]) and again[n].dtype == arrays[n].dtype for n in arrays)


@given(st.binary(max_size=300), st.integers(0, 400), ARRAYS)
def test_what_pack_has_not_made_is_refused_and_never_read_beyond(noise: bytes, cut: int, arrays: dict) -> None:
    whole = pack({}, arrays)
    for content in (noise, whole[:cut], whole + noise[:1]):
        if content != whole:
            with pytest.raises(DataError):
                unpack(content)


def test_an_object_array_is_never_packed_and_no_file_is_no_arrays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is object"):
        pack({}, {"x": np.array([None])})
    with pytest.raises(DataError):
        mapped(tmp_path / "none")
