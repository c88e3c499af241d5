"""Jobs and their audit: each kind returns the arrays that `shapes` lists, reproducibly; samples and differences; array files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from rl import arrays as array_file
from rl.distributed.audit import EVERY, AuditSampler, difference, replay
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
from rl.env.dataset import build_dataset
from rl.env.dataset_file import load, path_of, to_bytes
from rl.env.forecasts import oracle
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import reference_costs
from rl.planning.mpc import known_loads, point_forecast
from rl.policy import flatten, unflatten
from tests.support.grid_control import GRID, untrained, write_dataset, year

DATA = year(36)
POLICY = "5" * 64
ZEROS = "b" * 64
ROWS = (100, 900, 4000)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A control folder, and the sha256 of the dataset in it."""
    folder = tmp_path_factory.mktemp("control")
    return folder, write_dataset(folder, DATA)


@pytest.fixture(scope="module")
def runner(dataset: tuple[Path, str]) -> JobRunner:
    policy = untrained(DATA, 16)
    loud = policy.with_layers((*policy.layers[:-1], (policy.layers[-1][0] * 20, policy.layers[-1][1])))
    return JobRunner(dataset[0], {POLICY: loud, ZEROS: unflatten(loud, np.zeros_like(flatten(loud)))}.__getitem__)


def jobs_of(sha256: str) -> Iterator[AnyJob]:
    features = len(VectorGridEnv(GRID, DATA, 1, 1).observation_names)
    size = features * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    yield MakeLabels(sha256, 3, 2, 30, features)
    yield Rollout(sha256, POLICY, 4, 5, 48, (0.1, 0.1, 0.2, 0.05))
    yield GradientSteps(sha256, POLICY, ZEROS, ZEROS, size, 6, 1, 0, 3, 9, 8, 24, 1e-3, (2.0,))
    yield EvaluatePerturbations(sha256, POLICY, 5, (7, 8, 9), 0.05, 4, 24)
    for name in (POLICY, "nothing", "optimum", "mpc", "mpc perfect"):
        yield Evaluate(sha256, name, ROWS, 24)


def test_each_job_returns_the_listed_shapes_reproducibly(runner: JobRunner, dataset: tuple[Path, str]) -> None:
    for job in jobs_of(dataset[1]):
        found = runner.run(job)
        listed = {name: (dtype, shape) for name, dtype, shape in shapes(job, len(GRID.stores) + 1)}
        assert {name: (str(x.dtype), x.shape) for name, x in found.items()} == listed
        again = runner.run(msgspec.convert(msgspec.to_builtins(job), AnyJob))
        assert all(np.array_equal(found[name], again[name]) for name in found)
        assert not difference(found, again)
        last = list(found)[-1]
        assert "numbers differ" in difference({**found, last: found[last] * 1.01 + 0.01}, again)


def test_baseline_costs_equal_the_reference_costs(runner: JobRunner, dataset: tuple[Path, str]) -> None:
    names = ("nothing", "optimum", "mpc perfect")
    costs = {name: runner.run(Evaluate(dataset[1], name, ROWS, 60))["cost"] for name in names}
    scale = reference_costs(GRID, DATA, np.array(ROWS), 60)
    assert_allclose(costs["nothing"], scale.idle)
    assert_allclose(costs["optimum"], scale.optimum)
    assert scale.pop(costs["mpc perfect"]) > 0.95


def test_replay_returns_observations_and_refuses_other_costs(runner: JobRunner, dataset: tuple[Path, str]) -> None:
    job = Rollout(dataset[1], POLICY, 4, 5, 48, (0.1, 0.1, 0.2, 0.05))
    result = runner.run(job)
    seen, cost = replay(runner, job, result)
    assert_allclose(cost, result["cost"], rtol=1e-6)
    # Features: charge of 3 stores, residual load, hours left, load -1, load -2.
    assert_array_equal(seen[0, :, 6], DATA.features[runner.draw_starts(job)[0], 1])
    with pytest.raises(DataError, match="differ from a replay of its actions"):
        replay(runner, job, {**result, "actions": result["actions"] * 1.01})


def test_forecasts_of_the_planning_baselines() -> None:
    region, _ = synthetic(8760)
    # The dataset's forecast is the oracle, which knows hours beyond the dataset's end.
    assert_allclose(point_forecast(DATA)[:-36], known_loads(DATA, 36)[:-36], atol=1e-6)
    several = np.concatenate([oracle(region, 4), np.ones((len(region.load), 4, 1), np.float32)], axis=2)
    more = build_dataset([region], [several], "2017-01-02T00", "2017-12-01T00", GRID)
    assert_allclose(point_forecast(more)[:-4], known_loads(more, 4)[:-4], atol=1e-6)
    with pytest.raises(DataError, match="no forecast"):
        point_forecast(build_dataset([region], [None], "2017-01-02T00", "2017-12-01T00"))


@given(st.text(min_size=1), st.integers(0, 200))
def test_faulty_worker_is_audited_within_the_stated_number(worker: str, honest: int) -> None:
    sampler = AuditSampler()
    picked = [sampler.pick(worker, "rollout") for _ in range(honest + 2 * EVERY)]
    assert picked[0]
    assert any(picked[honest : honest + 2 * EVERY - 1])
    assert sum(picked) <= 2 + len(picked) / EVERY + 1
    assert sampler.pick(worker, "labels")  # the first of another kind


def test_dataset_file_round_trips_and_others_are_refused(dataset: tuple[Path, str], tmp_path: Path) -> None:
    folder, sha256 = dataset
    again = load(folder, sha256)
    assert_array_equal(again.features, DATA.features)
    assert_array_equal(again.previous_load, DATA.previous_load)
    assert (again.feature_names, again.spans, again.regions) == (DATA.feature_names, DATA.spans, DATA.regions)
    path = path_of(tmp_path, sha256)
    path.parent.mkdir()
    path.write_bytes(to_bytes(DATA)[1][:-1] + b"x")
    with pytest.raises(DataError, match="another sha256"):
        load(tmp_path, sha256)
    with pytest.raises(DataError, match="not a sha256"):
        load(tmp_path, "../" + sha256[3:])


NAMES = st.text(max_size=5)
ARRAYS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.builds(
        lambda dtype, shape: np.arange(int(np.prod(shape))).reshape(shape).astype(dtype).T,
        st.sampled_from(sorted(array_file.DTYPES.values())),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder) / "arrays"


@settings(deadline=None)  # writes files
@given(st.dictionaries(NAMES, st.integers() | st.text(max_size=4), max_size=3), ARRAYS)
def test_array_file_round_trips(scratch: Path, meta: dict, arrays: dict) -> None:
    content = array_file.to_bytes(meta, arrays)
    scratch.write_bytes(content)
    found, again = array_file.load(scratch)
    assert found == meta and set(again) == set(arrays)
    assert all(np.array_equal(again[n], arrays[n]) and again[n].dtype == arrays[n].dtype for n in arrays)
    assert array_file.to_bytes(meta, dict(reversed(arrays.items()))) == content


@settings(deadline=None)  # writes files
@given(st.binary(max_size=300), st.integers(0, 400), ARRAYS)
def test_damaged_array_file_is_refused(scratch: Path, noise: bytes, cut: int, arrays: dict) -> None:
    whole = array_file.to_bytes({}, arrays)
    for content in (noise, whole[:cut], whole + noise[:1]):
        if content != whole:
            scratch.write_bytes(content)
            with pytest.raises(DataError, match="arrays: not a readable array file"):
                array_file.load(scratch)


def test_array_file_of_format_1_is_read(tmp_path: Path) -> None:
    """As the versions before safetensors wrote it: header and arrays at multiples of 64 bytes."""
    arrays: dict[str, NDArray] = {
        "b": np.arange(5, dtype=np.float32),
        "a": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 2)),
    }
    listed = [[name, str(array.dtype), array.shape] for name, array in arrays.items()]
    header = json.dumps({"meta": {"iteration": 3}, "arrays": listed}).encode()
    header += b" " * (-(8 + len(header)) % 64)
    raw = b"".join(array.tobytes() + bytes(-array.nbytes % 64) for array in arrays.values())
    path = tmp_path / "state.pack"
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    meta, again = array_file.load(path)
    assert meta == {"iteration": 3} and all(np.array_equal(again[name], arrays[name]) for name in arrays)
    path.write_bytes(path.read_bytes()[:-128])
    with pytest.raises(DataError, match="not a readable array file"):
        array_file.load(path)


def test_object_arrays_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is object"):
        array_file.to_bytes({}, {"x": np.array([None])})
    with pytest.raises(DataError, match="Remove it and run"):
        array_file.load(tmp_path / "none")
