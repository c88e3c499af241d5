"""Encode, decode and validate the frames of messages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import isfinite
from typing import Any

import msgpack
import msgspec

from coordinator.wire.messages import (
    ITEM_BYTES,
    MAX_ARRAY,
    MAX_DEPTH,
    MAX_MESSAGE,
    MAX_REASON,
    MAX_WEIGHTS,
    Array,
    BadMessage,
    Message,
    ToWorker,
)


def encode(message: Message) -> bytes:
    """Message → one msgpack frame. BadMessage when it is over `MAX_MESSAGE`."""
    frame = msgspec.msgpack.encode(message)
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"{type(message).__name__} of {len(frame)} bytes is over the limit of {MAX_MESSAGE}")
    return frame


def decode(frame: bytes, kind: Any) -> Any:
    """One frame → a message of the union `kind` (`ToCoordinator` or `ToWorker`). BadMessage for anything else."""
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"frame of {len(frame)} bytes is over the limit of {MAX_MESSAGE}")
    try:
        longest = MAX_WEIGHTS if kind is ToWorker else 0  # only the coordinator sends bytes inside a message
        plain = msgpack.unpackb(frame, raw=False, strict_map_key=True, max_bin_len=longest, max_ext_len=0)
        return msgspec.convert(plain, type=kind)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadMessage(str(error) or type(error).__name__) from error


def validate_frames(
    described: tuple[Array, ...], sizes: tuple[int, ...], wanted: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> str:
    """Why arrays are not those that a task wants, each as (name, dtype, shape) in this order; "" where they are.

    `sizes`: bytes of the raw frames.
    """
    if len(sizes) != len(described):
        return f"{len(sizes)} frames for {len(described)} arrays"
    for array, size in zip(described, sizes, strict=True):
        if array.dtype not in ITEM_BYTES:
            return f"array {array.name} is {array.dtype}: there are {', '.join(ITEM_BYTES)}"
        whole = math.prod(array.shape) * ITEM_BYTES[array.dtype]
        if size != whole or size > MAX_ARRAY:
            return (
                f"array {array.name} of {array.shape} {array.dtype} has {size} bytes, not {whole} (at most {MAX_ARRAY})"
            )
    found = tuple((array.name, array.dtype, array.shape) for array in described)
    return "" if found == wanted else f"arrays {found} in place of {wanted}"[:MAX_REASON]


def files_in(proof: Any) -> Iterator[tuple[str, int, str]]:
    """(path, bytes, sha256) of every file that a proof names, in its order: each map of just these three.

    BadMessage for what no journal could give back: nested deeper than `MAX_DEPTH`, bytes, numbers that are none, a file that is none.
    """
    waiting = [(proof, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise BadMessage(f"a proof nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            if value.keys() == {"path", "bytes", "sha256"}:
                path, size, sha256 = value["path"], value["bytes"], value["sha256"]
                if not (isinstance(path, str) and type(size) is int and isinstance(sha256, str)):
                    raise BadMessage("a proof names a file that is none")
                yield path, size, sha256
            elif not all(isinstance(key, str) for key in value):
                raise BadMessage("a proof with a name that is no text")
            else:
                waiting += [(inner, depth + 1) for inner in reversed(value.values())]
        elif isinstance(value, list | tuple):
            waiting += [(inner, depth + 1) for inner in reversed(value)]
        elif isinstance(value, bytes) or (isinstance(value, float) and not isfinite(value)):
            raise BadMessage("a proof with a value that JSON has not")
