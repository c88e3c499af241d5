"""One small data folder and one uninterrupted training on it, shared by the tests of the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import training_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series of two respondents over three winters."""
    return training_data.make(tmp_path_factory.mktemp("training-data"))


@pytest.fixture(scope="session")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of 8 steps on one rank; its heartbeat file is in the parent folder."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = training_data.train(data, run, "--steps", "8", "--heartbeat", str(run.parent / "beats"))
    assert done.returncode == 0, done.stderr
    return run
