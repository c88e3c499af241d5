"""Configuration of a control training: overrides, invalid settings, and which request a result belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.stages import run_folder
from coordinator.stages.rollouts import artifacts
from coordinator.stages.rollouts.artifacts import ControlResult
from ingest.errors import UsageError, VerificationError
from ingest.files import file_sha256
from worker.control.config import ControlConfig, read_config


def test_file_overrides_defaults(tmp_path: Path) -> None:
    assert read_config(None) == ControlConfig()
    path = tmp_path / "control.toml"
    path.write_text('algorithm = "evolve"\nevery = 2\n[vtrace]\nstaleness = 0\nnoise = 1\n')
    found = read_config(path)
    assert (found.algorithm, found.every, found.vtrace.staleness, found.vtrace.noise) == ("evolve", 2, 0, 1)
    assert found.clone == ControlConfig().clone and found.publication == ""


def test_keys_of_earlier_versions_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "control.toml"
    path.write_text("[vtrace]\ntrace = 0.5\nclip = 0.1\nminibatch = 9\nepisodes = 3\nhours = 24\n[clone]\nbatch = 7\n")
    found = read_config(path)
    assert (found.vtrace.gae_lambda, found.vtrace.clip_coef, found.vtrace.minibatch_size) == (0.5, 0.1, 9)
    assert (found.vtrace.num_envs, found.vtrace.episode_hours, found.clone.batch_size) == (3, 24, 7)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("every = ", "control-config"),
        ("evry = 2", "unknown setting 'evry'.*did you mean 'every'"),
        ("vtrace = 3", r"\[vtrace\]"),
        ("[vtrace]\nsteps = 3", r"\[vtrace\]: unknown setting 'steps'"),
        ("every = 0", "above 0"),
        ('every = "4"', "expected an integer"),
        ("[vtrace]\nlearning_rate = true", "expected a number"),
        ('algorithm = "magic"', "choose pathwise or vtrace or evolve"),
        ('baselines = "mpc,magic"', "choose from"),
        ('publication = "soon"', "publication 'soon' is unknown"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "control.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        read_config(path)


def result(run: Path, **changes: object) -> None:
    (run / "policy.npz").write_bytes(b"weights")
    plain = {
        "algorithm": "vtrace",
        "version": 3,
        "validation_pop": 0.8,
        "test_pop": {"PACW": {"policy": 0.7, "mpc": None}},
        "policy": "policy.npz",
        "sha256": file_sha256(run / "policy.npz"),
        "report": "report.md",
        "known": "nothing",
        "audits": 4,
    }
    (run / "result.json").write_text(json.dumps(plain | changes))


def test_result_counts_for_its_request_while_complete(tmp_path: Path) -> None:
    assert run_folder.completed_result(tmp_path, ControlResult, "a") is None
    with pytest.raises(VerificationError, match=r"result\.json"):
        run_folder.mark_complete(tmp_path, ControlResult, "a")
    result(tmp_path)
    accepted = run_folder.mark_complete(tmp_path, ControlResult, "a")
    assert run_folder.completed_result(tmp_path, ControlResult, "a") == accepted
    assert run_folder.completed_result(tmp_path, ControlResult, "b") is None
    (tmp_path / "policy.npz").write_bytes(b"other weights")
    assert run_folder.completed_result(tmp_path, ControlResult, "a") is None
    with pytest.raises(VerificationError, match="sha256 differs"):
        run_folder.mark_complete(tmp_path, ControlResult, "a")
    result(tmp_path, version="three")
    with pytest.raises(VerificationError, match="version"):
        run_folder.read_result(tmp_path, ControlResult)


def test_forecaster_and_configuration_identify_request(tmp_path: Path) -> None:
    asked = {
        artifacts.request_digest(tmp_path, b"", ""),
        artifacts.request_digest(tmp_path, b"x", ""),
        artifacts.request_digest(tmp_path, b"", "f" * 64),
    }
    assert len(asked) == 3
    assert artifacts.forecaster_digest(tmp_path) == ""
