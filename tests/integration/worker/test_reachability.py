"""A worker that no coordinator answers says why while it waits, and when it gives up."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from pathlib import Path

import pytest

from coordinator.wire.exit_codes import ExitCode
from ringattn.launch import free_ports
from worker.agent import agent
from worker.agent.reachability import explain_silence


def test_silent_worker_says_why_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent, "SILENCE_WARNING_S", 0.1)
    (port,) = free_ports(1)
    endpoint = f"tcp://127.0.0.1:{port}"
    with caplog.at_level(logging.WARNING):
        config = agent.WorkerConfig(endpoint, tmp_path, make_handlers=dict, no_coordinator_timeout_s=0.6)
        assert agent.Agent(config).run() == ExitCode.INCOMPLETE
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"no coordinator answers at {endpoint} yet (Connection refused); still trying"]
    assert f"no coordinator answers at {endpoint} (Connection refused): check" in caplog.records[-1].getMessage()


def test_refused_local_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert explain_silence("tcp://10.0.0.1:5555") == os.strerror(errno.EHOSTUNREACH)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Privacy & Security → Local Network" in explain_silence("tcp://10.0.0.1:5555")


def test_open_port_and_malformed_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert explain_silence(f"tcp://127.0.0.1:{server.getsockname()[1]}") == "the port accepts connections"
    assert "invalid literal" in explain_silence("tcp://127.0.0.1:x")
