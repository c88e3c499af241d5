"""Joining the ring: what a rank says that did not reach a neighbour, or was not reached by one."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable

import pytest

from ringattn import PeerStalled, process_group
from ringattn.launch import free_ports

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
