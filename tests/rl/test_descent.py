"""The pathwise gradient in parts: their sum is the whole, training earns more, a restart changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rl.descent import Descent, Settings
from rl.forecasts import oracle
from rl.grid import Grid
from rl.jobs import Gradient, Player
from rl.pack import pack, unpack
from rl.policy import Mlp, to_bytes
from rl.region import synthetic
from rl.score import rollout
from rl.table import Table, table
from rl.table_file import path_of
from rl.table_file import to_bytes as table_bytes
from rl.versions import train

SMALL = Settings(episodes=24, hours=24, steps=40, width=16, jobs=3)


@pytest.fixture(scope="module")
def data() -> Table:
    made, _ = synthetic(8760)
    return table([made], [oracle(made, 6)], "2017-01-02T00", "2017-12-01T00")


@pytest.fixture(scope="module")
def folder(data: Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    made = tmp_path_factory.mktemp("control")
    sha256, content = table_bytes(data)
    path_of(made, sha256).parent.mkdir()
    path_of(made, sha256).write_bytes(content)
    return made, sha256


def descent(folder: tuple[Path, str], **changes: int) -> tuple[Descent, Player]:
    made: list[Descent] = []

    def policy_of(sha256: str) -> Mlp:
        versions = made[0].versions
        return next(policy for number, policy in versions.held.items() if versions.sha256(number) == sha256)

    player = Player(folder[0], policy_of)
    made.append(Descent(player, folder[1], Settings(**{**vars(SMALL), **changes})))
    return made[0], player


def test_parts_add_up_to_the_whole(folder: tuple[Path, str]) -> None:
    made, player = descent(folder)
    parts = [player.do(job) for job in made.jobs(0)]
    (job,) = descent(folder, jobs=1)[0].jobs(0)
    assert isinstance(job, Gradient)
    whole = player.do(job)
    for name, array in whole.items():
        assert_allclose(sum(part[name] for part in parts), array, rtol=1e-3, atol=1e-5 * np.abs(array).max())


@pytest.mark.parametrize("staleness", [0, 1])
def test_training_costs_less_than_it_started_with(folder: tuple[Path, str], data: Table, staleness: int) -> None:
    made, player = descent(folder, staleness=staleness, steps=80)
    first = made.versions.newest
    policy = train(made, player.do)
    starts = data.starts(48)[::301]
    costs = [rollout(Grid(), data, actor, starts, 48).cost.sum() for actor in (first, policy)]
    assert costs[1] < costs[0]


def test_a_restart_from_its_state_changes_no_bit(folder: tuple[Path, str]) -> None:
    whole, player = descent(folder, steps=4)
    expected = to_bytes(train(whole, player.do))
    first, player = descent(folder, steps=4)
    jobs = {0: first.jobs(0), 1: first.jobs(1)}
    first.learn(0, jobs[0], [player.do(job) for job in jobs[0]])
    jobs[2] = first.jobs(2)
    first.learn(1, jobs[1], [player.do(job) for job in jobs[1]])
    second, player = descent(folder, steps=4)
    second.restore(*unpack(pack(*first.state())))
    assert second.jobs(2) == jobs[2]
    for iteration in (2, 3):
        again = second.jobs(iteration)
        second.learn(iteration, again, [player.do(job) for job in again])
    assert to_bytes(second.versions.newest) == expected
