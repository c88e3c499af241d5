"""Encode, decode and validate the frames of messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import msgspec

from coordinator.wire.messages import (
    ITEM_BYTES,
    MAX_ARRAY,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_MESSAGE,
    MAX_REASON,
    MAX_WEIGHTS,
    Array,
    BadMessage,
    Message,
    ToCoordinator,
    ToWorker,
)


def encode(message: Message) -> bytes:
    """Encode a message as one msgpack frame.

    Raises:
        BadMessage: The frame is larger than `MAX_MESSAGE`.
    """
    frame = msgspec.msgpack.encode(message)
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"{type(message).__name__} of {len(frame)} bytes is over the limit of {MAX_MESSAGE}")
    return frame


def decode(frame: bytes, kind: Any) -> Any:
    """Decode a frame as a message of the union `kind` (`ToCoordinator` or `ToWorker`).

    Raises:
        BadMessage: The frame is not such a message.
    """
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"frame of {len(frame)} bytes is over the limit of {MAX_MESSAGE}")
    bounds: dict[str, Any] = {}
    if kind is ToCoordinator and len(frame) > MAX_ITEMS:  # each item takes a byte or more
        count_list, count_map = _item_counters()
        bounds = {"max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS}
        bounds |= {"list_hook": count_list, "object_hook": count_map}
    try:
        longest = MAX_WEIGHTS if kind is ToWorker else 0  # only the coordinator sends bytes inside a message
        plain = msgpack.unpackb(frame, raw=False, strict_map_key=True, max_bin_len=longest, max_ext_len=0, **bounds)
        return msgspec.convert(plain, type=kind)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadMessage(str(error) or type(error).__name__) from error


def _item_counters() -> tuple[Callable[[list[Any]], list[Any]], Callable[[dict[Any, Any]], dict[Any, Any]]]:
    """Return functions that receive each list and map of a message, and raise BadMessage after `MAX_ITEMS` of their items."""
    items = 0

    def count(more: int) -> None:
        nonlocal items
        items += more
        if items > MAX_ITEMS:
            raise BadMessage(f"more than {MAX_ITEMS} items in one message")

    def count_list(value: list[Any]) -> list[Any]:
        count(1 + len(value))
        return value

    def count_map(value: dict[Any, Any]) -> dict[Any, Any]:
        count(1 + len(value))
        return value

    return count_list, count_map


def validate_frames(
    described: tuple[Array, ...], sizes: tuple[int, ...], wanted: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> None:
    """Check the raw frames of a result.

    Args:
        described: The arrays that the result describes.
        sizes: Bytes of its raw frames.
        wanted: The arrays that its task wants, in this order: (name, dtype, shape).

    Raises:
        BadMessage: The frames are not the described arrays, or these are not the wanted ones.
    """
    if len(sizes) != len(described):
        raise BadMessage(f"{len(sizes)} frames for {len(described)} arrays")
    for array, size in zip(described, sizes, strict=True):
        if array.dtype not in ITEM_BYTES:
            raise BadMessage(f"array {array.name} is {array.dtype}; the supported types are {', '.join(ITEM_BYTES)}")
        whole = math.prod(array.shape) * ITEM_BYTES[array.dtype]
        if size != whole or size > MAX_ARRAY:
            raise BadMessage(
                f"array {array.name} of {array.shape} {array.dtype} has {size} bytes, not {whole} (at most {MAX_ARRAY})"
            )
    found = tuple((array.name, array.dtype, array.shape) for array in described)
    if found != wanted:
        raise BadMessage(f"arrays {found} in place of {wanted}"[:MAX_REASON])


def files_in(output: Any) -> Iterator[tuple[str, int, str]]:
    """Yield (path, bytes, sha256) of every file that a result names, in its order: each map of exactly these keys.

    Raises:
        BadMessage: The journal could not store the value: it is nested deeper than `MAX_DEPTH`, or holds bytes, a number that is
            not finite, a key that is not text, or a malformed file.
    """
    waiting = [(output, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise BadMessage(f"a result is nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            if value.keys() == {"path", "bytes", "sha256"}:
                path, size, sha256 = value["path"], value["bytes"], value["sha256"]
                if not (isinstance(path, str) and type(size) is int and isinstance(sha256, str)):
                    raise BadMessage("a result names a malformed file")
                yield path, size, sha256
            elif not all(isinstance(key, str) for key in value):
                raise BadMessage("a result has a key that is not text")
            else:
                waiting += [(inner, depth + 1) for inner in reversed(value.values())]
        elif isinstance(value, list | tuple):
            waiting += [(inner, depth + 1) for inner in reversed(value)]
        elif isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
            raise BadMessage("a result has a value that JSON cannot hold")
