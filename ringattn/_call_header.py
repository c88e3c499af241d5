"""Header of a call: one small all_gather before the data, which tells every rank what the others called, or what they refused.

A header is `SIZE` int32: a magic word, the kind of the call, its tag, the class of a refusal, then the arguments, or the text
of the refusal. All kinds are of one size, so that unlike calls meet in one exchange and each rank can name them.
"""

import operator
import zlib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np

from ringattn._errors import (
    ArgumentError,
    DTypeError,
    KernelError,
    LayoutError,
    MismatchError,
    RingError,
    ShapeError,
    TransformError,
)
from ringattn.layout import Layout
from ringattn.transport import Transport

SIZE = 64  # int32; 256 bytes take as long as 4
_MAGIC = 0x5241_0002  # "RA" and the version of this layout
_PREFIX = 4  # magic, kind, tag, refusal
_NO_TAG = -1
_REFUSALS: tuple[type[RingError], ...] = (
    ArgumentError,
    ShapeError,
    DTypeError,
    LayoutError,
    KernelError,
    TransformError,
)
_INT32 = 2**31


class Kind(IntEnum):
    """What a rank called."""

    ATTENTION = 1
    UNSHARD = 2
    FORWARD = 3
    CHUNK = 4


_CALLS = {
    Kind.ATTENTION: "ring_attention",
    Kind.UNSHARD: "unshard",
    Kind.FORWARD: "a converted model",
    Kind.CHUNK: "a pass with a sharded cache",
}


def as_integer(value: Any, what: str, rule: str, *, lowest: int = 0) -> int:
    """Return an integer argument as int; numpy's integers and mlx's scalars are integers, bool is not.

    Args:
        value: the argument.
        what: its name.
        rule: what it must be, for the message.
        lowest: smallest value allowed.

    Raises:
        ArgumentError: if it is not an integer from `lowest` to int32's end.
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not lowest <= number < _INT32:
        raise ArgumentError(f"{what} {value!r} must be {rule}")
    return number


def layout_code(layout: Layout) -> int:
    """Return a number that two layouts share only if they are alike."""
    return zlib.crc32(repr(layout).encode()) >> 1


def refuse(kind: Kind, error: Exception, transport: Transport, timeout: float) -> NoReturn:
    """Tell all ranks that this one refuses its arguments, then raise the reason.

    Args:
        kind: what this rank called.
        error: why it cannot; an error that no check foresaw becomes an ArgumentError.
        transport: reaches the other ranks.
        timeout: seconds of the wait.
    """
    told = error
    if not isinstance(error, RingError):
        told = ArgumentError(f"{_CALLS[kind]} cannot use its arguments: {type(error).__name__}: {error}")
        told.__cause__ = error
    _gather(_encode_refusal(kind, told), kind, transport, timeout)
    raise told


def exchange(
    kind: Kind, tag: int | None, fields: Sequence[int], transport: Transport, timeout: float
) -> list[list[int]]:
    """Exchange the headers of all ranks.

    Args:
        kind: what this rank called.
        tag: its tag, checked, or None.
        fields: its arguments as int32.
        transport: reaches the other ranks.
        timeout: seconds of the wait.

    Returns:
        The fields of every rank, in rank order.

    Raises:
        MismatchError: on every rank, if a rank refused, or if kinds or tags differ.
    """
    assert len(fields) <= SIZE - _PREFIX
    prefix = [_MAGIC, int(kind), _NO_TAG if tag is None else tag, 0]
    rows = _gather([*prefix, *fields, *[0] * (SIZE - _PREFIX - len(fields))], kind, transport, timeout)
    for other, row in enumerate(rows):
        if row[3]:
            raise MismatchError(
                f"rank {transport.rank()} did not start: rank {other} refused its arguments "
                f"({_REFUSALS[row[3] - 1].__name__}: {_text(row)})"
            )
    _compare("the call", [row[1] for row in rows], {k.value: name for k, name in _CALLS.items()}, _OUT_OF_STEP)
    _compare("tag", [row[2] for row in rows], {_NO_TAG: "None"}, _OUT_OF_STEP)
    return [row[_PREFIX:] for row in rows]


_OUT_OF_STEP = "; a rank left out a call, or made its calls in another order: every rank must make the same calls in the same order"


def check_agreed(rows: list[list[int]], names: Sequence[str], values: Mapping[str, Mapping[int, str]]) -> None:
    """Check that the first fields have one value on all ranks.

    Args:
        rows: the fields of every rank.
        names: the names of the first fields.
        values: names of a field's values; a field without names for its values is "hashed" if it is mapped to nothing.

    Raises:
        MismatchError: naming the first field that differs, and its values.
    """
    for index, name in enumerate(names):
        _compare(name, [row[index] for row in rows], values.get(name), "")


def _compare(name: str, values: list[int], names: Mapping[int, str] | None, advice: str) -> None:
    if len(set(values)) == 1:
        return
    if names is not None and not names:
        groups = [[r for r, v in enumerate(values) if v == value] for value in dict.fromkeys(values)]
        said = " against ".join(f"one value on ranks {g}" for g in groups)
    else:
        said = ", ".join(f"{(names or {}).get(v, v)} on rank {r}" for r, v in enumerate(values))
    raise MismatchError(f"{name} must be the same on every rank, but is {said}{advice}")


def _gather(own: list[int], kind: Kind, transport: Transport, timeout: float) -> list[list[int]]:
    rank, size = transport.rank(), transport.size()
    if size == 1:
        return [own]
    # A transport of the user's may have no such methods.
    if (finish := getattr(transport, "finish_collectives", None)) is not None:
        finish(timeout)
    header = mx.array(own, dtype=mx.int32)
    mx.eval(header)
    doing = f"agreeing on {_CALLS[kind]}"
    rows = np.array(transport.all_gather(header, doing).wait(timeout)[0]).reshape(size, -1).tolist()
    if strays := [r for r in range(size) if rows[r][0] != _MAGIC]:
        _refuse_strays(strays, rank, transport, doing)
    return rows


def _encode_refusal(kind: Kind, error: Exception) -> list[int]:
    # A class of the tree follows its base, so the last that fits is the nearest.
    code = max((i for i, refused in enumerate(_REFUSALS, start=1) if isinstance(error, refused)), default=1)
    room = 4 * (SIZE - _PREFIX)
    text = np.frombuffer(str(error).encode()[:room].ljust(room, b"\0"), dtype="<i4")
    return [_MAGIC, int(kind), _NO_TAG, code, *text.tolist()]


def _text(row: list[int]) -> str:
    return np.array(row[_PREFIX:], dtype="<i4").tobytes().rstrip(b"\0").decode(errors="ignore")


def _refuse_strays(strays: list[int], rank: int, transport: Transport, doing: str) -> NoReturn:
    message = (
        f"rank {rank} received something else than the header of rank {', '.join(map(str, strays))}: a collective of the program "
        "(mx.async_eval of an all_sum on a stream of its own?) is still in flight, or a rank is in a backward pass. Evaluate "
        "collectives with mx.eval before the call, and make the same calls in the same order on every rank. The group cannot be "
        "used again: end every rank and start the ring again"
    )
    if (abandon := getattr(transport, "abandon", None)) is not None:
        abandon(doing, "something else than a header arrived")
    raise MismatchError(message)
