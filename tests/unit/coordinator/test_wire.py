"""The wire format: valid messages round-trip, everything else is rejected."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduling.records import Arrays
from coordinator.wire import codec, messages, payloads
from coordinator.wire.codec import decode, encode
from coordinator.wire.messages import (
    BadMessage,
    FileChunk,
    Heartbeat,
    Lease,
    PermitGrant,
    Register,
    RegisterAck,
    Result,
)

NAMES = st.text(min_size=1, max_size=20)
PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PROOFS = st.dictionaries(st.text(max_size=8), PLAIN, max_size=5)


@given(worker=NAMES, task=NAMES, attempt=st.integers(1, 1 << 31), proof=PROOFS)
def test_result_round_trips(worker: str, task: str, attempt: int, proof: dict[str, Any]) -> None:
    message = Result(worker, task, attempt, proof, 1.5)
    assert decode(encode(message), messages.ToCoordinator) == message


@pytest.mark.parametrize(
    "message", [RegisterAck(1.0, 10.0, True), Lease("t", 1, "noop", {"a": [1]}, 60.0), PermitGrant("b", (0.0, 1.5))]
)
def test_coordinator_messages_round_trip(message: messages.Message) -> None:
    assert decode(encode(message), messages.ToWorker) == message


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_is_rejected(frame: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(frame, messages.ToCoordinator)


GOOD = {"t": "Result", "worker": "w", "task": "t", "attempt": 1, "proof": {}, "seconds": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 0}, {"attempt": "1"}, {"attempt": 1.5}, {"worker": ""}, {"worker": "x" * 300}, {"proof": []}, {"extra": 1},
        {"t": "Lease"}, {"t": "Nope"}, {"proof": {"x": b"bytes"}}, {"proof": {1: 2}}, {"proof": {"x": msgpack.ExtType(5, b"x")}},
        {"seconds": None}, {"proof": {"x": msgpack.Timestamp(0, 1)}},
    ],
)  # fmt: skip
def test_wrong_types_and_sizes_are_rejected(change: dict[str, Any]) -> None:
    assert decode(msgpack.packb(GOOD), messages.ToCoordinator) == Result("w", "t", 1, {}, 1.0)
    with pytest.raises(BadMessage):
        decode(msgpack.packb(GOOD | change), messages.ToCoordinator)


def test_deep_nesting_is_rejected() -> None:
    for depth in (200, 1_000, 100_000):
        frame = msgpack.packb(GOOD)[:-1].replace(b"\xa5proof\x80", b"\xa5proof\x81\xa1x" + b"\x91" * depth + b"\x90")
        with pytest.raises(BadMessage):
            decode(frame, messages.ToCoordinator)


def test_items_of_a_message_are_bounded() -> None:
    """4 MiB hold 4 million items: 3.5 s to decode as lists in a list, 12 s to search as maps for files."""
    room = messages.MAX_ITEMS - 12  # the message's own map and empty list of arrays, the output's map, the list itself
    pages = Result("w", "t", 1, {"a": [1] * room}, 0.5)
    assert decode(encode(pages), messages.ToCoordinator) == pages
    items: tuple[Any, ...] = (1, [], {}, {"path": "p", "bytes": 1, "sha256": "0"})
    for item in items:
        long = Result("w", "t", 1, {"a": [item] * (room + 1)}, 0.5)
        if len(msgspec.msgpack.encode(long)) <= messages.MAX_MESSAGE:
            with pytest.raises(BadMessage, match=r"more than 131072|exceeds max"):
                decode(encode(long), messages.ToCoordinator)
    spread = Result("w", "t", 1, {"a": [[1] * 100] * 2_000}, 0.5)
    with pytest.raises(BadMessage, match="more than 131072"):
        decode(encode(spread), messages.ToCoordinator)


def test_oversized_message_is_rejected_by_both_sides() -> None:
    large = Result("w", "t", 1, {"x": "y" * messages.MAX_MESSAGE}, 1.0)
    with pytest.raises(BadMessage, match="over the limit"):
        encode(large)
    with pytest.raises(BadMessage, match="over the limit"):
        decode(b"x" * (messages.MAX_MESSAGE + 1), messages.ToCoordinator)


def test_every_worker_message_is_bounded() -> None:
    bad = [
        Register("w", "h", 1, ("k",) * 65, 1, "i", "v", "p"),
        Register("w", "h", 1, ("k",), 0, "i", "v", "p"),
        Heartbeat("w", (("t", 0),)),
        Heartbeat("w", (("t", 1),) * (messages.MAX_CAPACITY + 1)),
        messages.PermitRequest("w", "b", messages.MAX_PERMITS + 1),
        messages.ThrottleReport("w", "b", "429", float("nan")),
        messages.ThrottleReport("w", "b", "429", -1.0),
        Heartbeat("w", (), rows=1 << 62),
        Heartbeat("w", (), requests=10**12 + 1),
        Heartbeat("w", (), rss=(1 << 44) + 1),
        FileChunk("w", "t", 1, "raw/a", -1, 5, "0" * 64),
        FileChunk("w", "t", 1, "raw/a", 0, messages.MAX_FILE + 1, "0" * 64),
        FileChunk("w", "t", 1, "raw/a", 0, 5, "not a hash"),
    ]
    for message in bad:
        with pytest.raises(BadMessage):
            decode(encode(message), messages.ToCoordinator)


def test_files_of_a_result_are_found_at_any_depth() -> None:
    file = {"path": "raw/a", "bytes": 1, "sha256": "x"}
    proof = {
        "pages": [{"file": file, "rows": 1}, {"file": {**file, "path": "raw/b"}}],
        "piece": {**file, "path": "pieces/c"},
        "n": 1,
    }
    assert [path for path, _, _ in codec.files_in(proof)] == ["raw/a", "raw/b", "pieces/c"]


WORD = {"t": "Progress", "worker": "w", "task": "t", "attempt": 1, "step": 3, "phase": "step", "beats": 4, "saved": 2}


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"phase": "dance"}, {"beats": 1 << 63}, {"saved": "2"}, {"stopped": 1}, {"loss": 0.1}]
)
def test_malformed_progress_is_rejected(change: dict[str, Any]) -> None:
    assert decode(msgpack.packb(WORD), messages.ToCoordinator).step == 3
    with pytest.raises(BadMessage):
        decode(msgpack.packb({**WORD, **change}), messages.ToCoordinator)


@pytest.mark.parametrize("address", ["10.0.0.1:20001", "[fe80::1%en0]:20001", "m2-0.local:32323"])
def test_ring_address_is_accepted(address: str) -> None:
    assert msgspec.convert({"address": address, "blas": "x"}, payloads.JoinReply).address == address


@pytest.mark.parametrize("address", ["", "10.0.0.1", "10.0.0.1:", "a b:1", "x:123456", "x:1:2"])
def test_malformed_ring_address_is_rejected(address: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"address": address, "blas": "x"}, payloads.JoinReply)


WANTED = (("actions", "float32", (48, 4, 2)), ("cost", "float32", (48, 2)))
GOOD_ARRAYS = tuple(messages.Array(*one) for one in WANTED)
GOOD_SIZES = (48 * 4 * 2 * 4, 48 * 2 * 4)


def test_wanted_frames_are_accepted() -> None:
    codec.validate_frames(GOOD_ARRAYS, GOOD_SIZES, WANTED)
    codec.validate_frames((), (), ())


@pytest.mark.parametrize(
    ("arrays", "sizes", "why"),
    [
        (GOOD_ARRAYS, GOOD_SIZES[:1], "1 frames for 2 arrays"),
        (GOOD_ARRAYS[:1], GOOD_SIZES[:1], "in place of"),
        ((), (), "in place of"),
        (GOOD_ARRAYS[::-1], GOOD_SIZES[::-1], "in place of"),
        ((messages.Array("actions", "object", (48, 4, 2)), GOOD_ARRAYS[1]), GOOD_SIZES, "is object"),
        ((messages.Array("actions", "float64", (48, 4, 2)), GOOD_ARRAYS[1]), GOOD_SIZES, "not 3072"),
        ((messages.Array("actions", "float32", (48, 8, 1)), GOOD_ARRAYS[1]), GOOD_SIZES, "in place of"),
        (GOOD_ARRAYS, (GOOD_SIZES[0] - 4, GOOD_SIZES[1]), "not 1536"),
        ((messages.Array("x", "float32", (1 << 40, 1 << 40)),), (messages.MAX_ARRAY,), "not"),
        ((messages.Array("x", "float32", (1 << 20, 2)),), (1 << 23,), "at most"),
    ],
)
def test_frames_of_another_dtype_shape_or_size_are_rejected(
    arrays: tuple[messages.Array, ...], sizes: tuple[int, ...], why: str
) -> None:
    with pytest.raises(BadMessage, match=why):
        codec.validate_frames(arrays, sizes, WANTED)


def is_valid(arrays: list[messages.Array], sizes: list[int], wanted: Arrays) -> bool:
    try:
        codec.validate_frames(tuple(arrays), tuple(sizes), wanted)
    except BadMessage:
        return False
    return True


@given(
    st.lists(
        st.builds(
            messages.Array,
            NAMES,
            st.sampled_from(["float32", "float64", "int64", "O"]),
            st.lists(st.integers(0, 2**62), max_size=8).map(tuple),
        ),
        max_size=4,
    ),
    st.lists(st.integers(0, 1 << 24), max_size=4),
)
def test_only_wanted_frames_are_accepted(arrays: list[messages.Array], sizes: list[int]) -> None:
    wanted = tuple((one.name, one.dtype, one.shape) for one in arrays)
    valid = is_valid(arrays, sizes, wanted)
    exact = len(arrays) == len(sizes) and all(
        one.dtype in messages.ITEM_BYTES
        and math.prod(one.shape) * messages.ITEM_BYTES[one.dtype] == size <= messages.MAX_ARRAY
        for one, size in zip(arrays, sizes, strict=False)
    )
    assert valid == exact
    if arrays:
        assert not is_valid(arrays, sizes, ())


def test_weights_fit_one_frame_and_come_from_the_coordinator_only() -> None:
    weights = messages.Weights(3, "a" * 64, bytes(range(256)) * 4)
    assert decode(encode(weights), messages.ToWorker) == weights
    with pytest.raises(BadMessage):
        decode(encode(weights), messages.ToCoordinator)
    with pytest.raises(BadMessage):
        encode(messages.Weights(3, "a" * 64, bytes(messages.MAX_MESSAGE)))
