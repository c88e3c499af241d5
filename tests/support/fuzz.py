"""Invalid frames: real messages, mutated, truncated, spliced and filled with odd values, and noise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgpack

from coordinator.wire import codec
from coordinator.wire import messages as protocol
from coordinator.wire.messages import (
    Deregister,
    FileChunk,
    Heartbeat,
    PermitRequest,
    Progress,
    Register,
    Result,
    StatusRequest,
    ThrottleReport,
)

NAME = "enemy"
TASKS = ("a", "b", "none", "raw/" + "x" * 240, "é" * 120)
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**64 - 1, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "\0", "x" * 300, b"",
    b"\xff" * 9, [], {}, [[]], {"": {}}, {"path": 1, "bytes": "x", "sha256": None}, [1] * 70, msgpack.ExtType(1, b""),
)  # fmt: skip
FILE = {"path": "raw/" + "a" * 300, "bytes": 3, "sha256": "0" * 64}


def messages(draw: random.Random) -> protocol.Message:
    """Return a valid message of `NAME` with random values."""
    task, attempt = draw.choice(TASKS), draw.randint(1, 3)
    output = draw.choice(
        ({}, {"x": 1}, FILE, {"pages": [FILE, {**FILE, "path": "raw/../b"}]}, nested(draw.randint(1, 90)))
    )
    return draw.choice(
        (
            Register(NAME, "h", 1, ("noop", task), draw.randint(1, 1024), "elsewhere", "0", "3", draw.randint(0, 3)),
            Heartbeat(NAME, ((task, attempt),) * draw.randint(0, 3), draw.getrandbits(40)),
            Result(NAME, task, attempt, output, draw.random() * 1e9),
            protocol.Failure(NAME, task, attempt, "Crash", "m" * draw.randint(0, 99), draw.random() < 0.01),
            Progress(NAME, task, attempt, 1, "step", 1, 1),
            PermitRequest(NAME, "source", draw.randint(1, 64)),
            ThrottleReport(NAME, "none", "429", draw.random()),
            FileChunk(NAME, task, attempt, draw.choice(("raw/x", "../x", "raw/" + "é" * 250)), 0, 5, "0" * 64),
            Deregister(NAME),
            StatusRequest(),
        )
    )


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


def frames(draw: random.Random) -> Iterator[bytes]:
    """Yield frames for ever: from a corpus of 400 valid ones, one in eight as it is, the others damaged."""
    corpus = [codec.encode(messages(draw)) for _ in range(400)]
    while True:
        frame = draw.choice(corpus)
        how = draw.randrange(8)
        if how == 0:
            yield frame
        elif how == 1:
            yield frame[: draw.randrange(len(frame))]
        elif how == 2:
            other = draw.choice(corpus)
            yield frame[: draw.randrange(len(frame))] + other[draw.randrange(len(other)) :]
        elif how == 3:
            at = draw.randrange(len(frame))
            yield frame[:at] + draw.randbytes(draw.randint(1, 9)) + frame[at:]
        elif how == 4:
            yield draw.randbytes(draw.randint(0, 80))
        elif how == 5:
            fields = msgpack.unpackb(frame, strict_map_key=False)
            fields[draw.choice(list(fields))] = draw.choice(ODD)
            yield msgpack.packb(fields)
        else:
            damaged = bytearray(frame)
            for _ in range(draw.randint(1, 4)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            yield bytes(damaged)
