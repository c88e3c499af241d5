"""Joining the ring: what a rank says that did not reach a neighbour, or was not reached by one."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import mlx.core as mx
import pytest

from ringattn import LaunchError, PeerStalled, process_group, transport
from ringattn.launch import free_ports
from tests.support.namespaces import missing, without_route_to
from tests.support.program import ROOT

WAIT_S = 0.3


def stalled(rank: int, ports: list[int]) -> str:
    """Return the error of a rank of a ring on loopback whose other ranks never start."""
    nodes = [("127.0.0.1", port) for port in ports]
    with pytest.raises(PeerStalled) as caught:
        process_group._rendezvous_barrier(rank, nodes, time.monotonic() + WAIT_S, WAIT_S)
    return str(caught.value)


def failing(number: int) -> Callable[..., socket.socket]:
    def connect(*_: object, **__: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    return connect


def test_last_socket_error_is_kept() -> None:
    words = stalled(0, free_ports(2))
    assert "rank 0 can't reach rank 1 at ('127.0.0.1'" in words and "Connection refused" in words


def test_left_neighbour_that_does_not_connect_is_named() -> None:
    own, right = free_ports(2)
    with socket.create_server(("127.0.0.1", right)):
        words = stalled(1, [right, own])
    assert f"rank 0 did not connect to ('127.0.0.1', {own})" in words


@pytest.mark.parametrize(
    ("system", "number", "named"),
    [
        ("darwin", errno.EHOSTUNREACH, True),
        ("linux", errno.EHOSTUNREACH, False),
        ("darwin", errno.ECONNREFUSED, False),
    ],
)
def test_local_network_privacy_is_named_on_macos(
    system: str, number: int, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(socket, "create_connection", failing(number))
    words = stalled(0, free_ports(2))
    assert os.strerror(number) in words
    assert ("Privacy & Security → Local Network" in words) is named


def test_kernel_that_has_no_route_is_quoted() -> None:
    """The errno of the real kernel, as macOS's privacy gives it; only the system's name is changed."""
    if reason := missing():
        pytest.skip(reason)
    program = (
        "import sys, time; sys.platform = 'darwin'; from ringattn import process_group as g; "
        f"g._rendezvous_barrier(0, [('127.0.0.1', 40000), ('10.99.0.1', 40000)], time.monotonic() + {WAIT_S}, {WAIT_S})"
    )
    command = without_route_to("10.99.0.0/16", [sys.executable, "-c", program])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=150)
    assert "rank 0 can't reach rank 1 at ('10.99.0.1', 40000): No route to host; macOS 15" in done.stderr


def test_jaccl_is_refused_before_mlx_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables of `mlx.launch --backend jaccl`; a group that another part of the program made is refused too."""
    monkeypatch.setattr(process_group, "_joined", None)
    monkeypatch.setattr(transport, "_global_transport", None)
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    monkeypatch.setattr(mx.distributed, "init", lambda **_: pytest.fail("mlx was asked to join"))
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_JACCL_COORDINATOR", "10.0.0.1:32323")
    monkeypatch.setenv("MLX_IBV_DEVICES", "/tmp/devices.json")
    for join in (process_group.init, lambda: transport.transport_of(None)):
        with pytest.raises(LaunchError, match=r"JACCL .* no deadline.*--backend ring"):
            join()


@pytest.mark.parametrize(
    ("value", "size", "warned"), [("1", 2, True), ("1", 1, False), ("0", 2, False), ("", 2, False)]
)
def test_variable_that_locks_gpus_is_warned_about(
    value: str, size: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "_joined", None)
    monkeypatch.setattr(process_group, "_ring_of_environment", lambda: (0, [("127.0.0.1", 1)] * size))
    monkeypatch.setattr(process_group, "_rendezvous_barrier", lambda *_: None)
    monkeypatch.setattr(mx.distributed, "init", lambda **_: SimpleNamespace(size=lambda: size))
    monkeypatch.setenv("MLX_METAL_FAST_SYNCH", value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        process_group.init()
    assert [str(one.message) for one in caught] == (
        [
            "ringattn: MLX_METAL_FAST_SYNCH=1 can lock a Mac's GPU until it is restarted (mlx issues 3142, 3830); unset it on every host"
        ]
        if warned
        else []
    )
