"""The learner's process: its messages, its exit, and a learner that ends its output but does not exit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator.stages.rollouts import learner_process
from coordinator.stages.rollouts.learner_process import LearnerProcess
from rl.distributed.protocol import JobResult, Log
from tests.support.waiting import until

ECHO = """
import sys
from rl.distributed.protocol import Log, ToLearner, receive, send
result, frames = receive(sys.stdin.buffer, ToLearner)
send(sys.stdout.buffer, Log(result.worker), frames)
sys.exit(3)
"""
MUTE = "import os, time; os.close(1); time.sleep(600)"
NOISE = "import sys, time; sys.stdout.buffer.write(b'\\x04\\0\\0\\0what'); sys.stdout.flush(); time.sleep(600)"


def start(folder: Path, program: str) -> tuple[LearnerProcess, list[tuple[Any, tuple[bytes, ...]]]]:
    received: list[tuple[Any, tuple[bytes, ...]]] = []
    command = (sys.executable, "-c", program)
    process = LearnerProcess(command, folder / "logs" / "learner.log", lambda _, *message: received.append(message))
    return process, received


def test_frames_pass_unchanged_and_the_exit_has_its_reason(tmp_path: Path) -> None:
    process, received = start(tmp_path, ECHO)
    process.send_result(JobResult(1, "w", 0.5, {}), (b"one", b"", b"\0" * 100_000))
    until(lambda: received and received[-1][0] is None, "the learner's exit")
    assert received == [(Log("w"), (b"one", b"", b"\0" * 100_000)), (None, ())]
    assert process.exit_reason == "exit code 3"


@pytest.mark.parametrize("program", [MUTE, NOISE])
def test_learner_without_usable_output_is_killed(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_process, "EXIT_S", 0.1)
    process, received = start(tmp_path, program)
    until(lambda: received, "the learner's exit")
    assert received == [(None, ())] and process.exit_reason.startswith("signal 9")
