"""Handshake before a call: check this rank's arguments, then agree with all ranks on one plan.

One small all_gather a call carries each rank's arguments as integers. A rank whose own check failed takes part too, so
that all ranks raise at once instead of waiting for it. From the headers each rank derives the same lengths, positions,
needs and schedules.
"""

import struct
import time
import zlib
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ringattn import ring, schedule
from ringattn._errors import ArgumentError, DTypeError, LayoutError, MismatchError, RingError, ShapeError
from ringattn.layout import Layout, local_positions, runs
from ringattn.transport import Transport

DTYPES = {mx.float32: 1, mx.bfloat16: 2, mx.float16: 3}
_FIELDS = (
    "refused",
    "batch",
    "query heads",
    "kv heads",
    "head dimension",
    "dtype",
    "mask",
    "window",
    "scale",
    "layout",
    "segments",
    "length",
)
_AGREED = _FIELDS[1:-1]
_NAMES = {
    "dtype": {code: str(dtype) for dtype, code in DTYPES.items()},
    "mask": {0: "None", 1: "'causal'"},
    "window": {0: "None"},
    "segments": {0: "None", 1: "[T]", 2: "[B, T]"},
}
_NO_SEGMENTS = (0, 0, 0, 0)


@dataclass(frozen=True)
class Call:
    """One rank's checked arguments, without the arrays."""

    q_shape: tuple[int, ...]
    kv_shape: tuple[int, ...]
    dtype: mx.Dtype
    scale: float
    causal: bool
    window: int | None
    layout: Layout
    segments: np.ndarray | None


@dataclass(frozen=True)
class Plan:
    """The plan that all ranks agreed on: positions of every rank's tokens, int32 [T_r], and which rank needs which keys."""

    positions: tuple[np.ndarray, ...]
    needs: tuple[tuple[bool, ...], ...]
    call: Call

    def kv_shape(self, block: int) -> tuple[int, int, int, int]:
        """Return the shape of a block's keys, [B, Hkv, T_block, D]."""
        batch, heads, _, dim = self.call.kv_shape
        return (batch, heads, len(self.positions[block]), dim)


def check_arguments(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | None,
    window: int | None,
    segments: object,
    layout: Layout,
) -> Call:
    """Check the arguments of a call; see `ringattn.ring_attention`.

    Raises:
        ShapeError: if shapes, heads or segments break a rule.
        DTypeError: if a dtype is not supported, or if dtypes differ.
        ArgumentError: if another argument breaks a rule.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, mx.array):
            raise DTypeError(f"{name} is {type(x).__name__}; ring_attention takes mlx arrays: mx.array({name})")
        if x.ndim != 4 or 0 in x.shape:
            raise ShapeError(
                f"{name} has shape {x.shape}; the rule is [batch, heads, tokens, head dimension], none empty"
            )
    if k.shape != v.shape:
        raise ShapeError(f"k {k.shape} and v {v.shape} must have the same shape")
    if (q.shape[0], q.shape[2], q.shape[3]) != (k.shape[0], k.shape[2], k.shape[3]):
        raise ShapeError(f"q {q.shape} and k {k.shape} must agree in batch, local tokens and head dimension")
    if q.shape[1] % k.shape[1]:
        raise ShapeError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} kv heads")
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise DTypeError(f"q, k and v must have one dtype, not {q.dtype}, {k.dtype}, {v.dtype}; cast them with .astype")
    if q.dtype not in DTYPES:
        raise DTypeError(f"dtype {q.dtype} is not supported; use float32, bfloat16 or float16")
    if mask not in (None, "causal"):
        raise ArgumentError(f'mask {mask!r} is unknown; use None or "causal" (packed series: segments=)')
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ArgumentError(f"window {window!r} must be a number of tokens from 1 up, or None")
    if not np.isfinite(scale):
        raise ArgumentError(f"scale {scale} must be finite; the usual one is head_dimension ** -0.5")
    return Call(
        tuple(q.shape),
        tuple(k.shape),
        q.dtype,
        float(scale),
        mask == "causal",
        window,
        layout,
        _segments(segments, q.shape),
    )


def _segments(segments: object, q_shape: tuple[int, ...]) -> np.ndarray | None:
    if segments is None:
        return None
    ids = np.asarray(segments)
    batch, _, length, _ = q_shape
    if ids.shape not in ((length,), (batch, length)):
        raise ShapeError(
            f"segments {ids.shape} must be [tokens] or [batch, tokens] of the local part: {(length,)}, {(batch, length)}"
        )
    if ids.dtype.kind not in "iu" or ids.min() < -(2**31) or ids.max() >= 2**31:
        raise DTypeError(f"segments must be integers within int32, not {ids.dtype}")
    return np.ascontiguousarray(ids, dtype=np.int32)


def agree_on_plan(call: Call | RingError, transport: Transport, timeout: float) -> Plan:
    """Exchange the arguments of all ranks and derive the plan. Local lengths that do not follow the layout are a LayoutError.

    Args:
        call: this rank's checked arguments, or its error, which is raised here after the exchange.
        transport: reaches the other ranks.
        timeout: seconds of the wait.

    Raises:
        MismatchError: on every rank, if the ranks' arguments differ.
    """
    rank, size = transport.rank(), transport.size()
    if size == 1:
        if isinstance(call, RingError):
            raise call
        return _plan(call, [_header(call)])
    header = mx.array(_header(call), dtype=mx.int32)
    mx.eval(header)
    began = time.perf_counter()
    gathered = transport.all_gather(header, "agreeing on the call").wait(timeout)[0]
    ring.record(ring.HopTime("agree", 0, 0.0, time.perf_counter() - began, header.nbytes))
    rows = np.array(gathered).reshape(size, -1).tolist()
    if isinstance(call, RingError):
        raise call
    refused = [r for r in range(size) if rows[r][0]]
    if refused:
        raise MismatchError(f"rank {rank} did not start: rank {refused[0]} refused its arguments; see the error there")
    for index, field in enumerate(_AGREED, start=1):
        values = [row[index] for row in rows]
        if len(set(values)) > 1:
            raise MismatchError(f"{field} must be the same on every rank, but is {_by_rank(field, values)}")
    return _plan(call, rows)


def _by_rank(field: str, values: list[int]) -> str:
    if field in ("scale", "layout"):
        groups = [[r for r, v in enumerate(values) if v == value] for value in dict.fromkeys(values)]
        return " against ".join(f"one value on ranks {g}" for g in groups)
    return ", ".join(f"{_NAMES.get(field, {}).get(v, v)} on rank {r}" for r, v in enumerate(values))


def _header(call: Call | RingError) -> list[int]:
    if isinstance(call, RingError):
        return [1] + [0] * (len(_FIELDS) - 1 + len(_NO_SEGMENTS))
    batch, q_heads, length, dim = call.q_shape
    layout = zlib.crc32(repr(call.layout).encode()) >> 1
    (scale,) = struct.unpack("<i", struct.pack("<f", call.scale))
    ids = call.segments
    fields = [0, batch, q_heads, call.kv_shape[1], dim, DTYPES[call.dtype], int(call.causal), call.window or 0, scale]
    return [*fields, layout, 0 if ids is None else ids.ndim, length, *_segment_bounds(ids, length)]


def _segment_bounds(ids: np.ndarray | None, length: int) -> tuple[int, ...]:
    """Return the lowest and highest id in each half of the local tokens, which are zigzag's two chunks."""
    if ids is None:
        return _NO_SEGMENTS
    cut = length - length // 2
    halves = ids[..., :cut], ids[..., cut:] if cut < length else ids
    return tuple(int(bound) for half in halves for bound in (half.min(), half.max()))


def _plan(call: Call, rows: list[list[int]]) -> Plan:
    size = len(rows)
    at = _FIELDS.index("length")
    held = [row[at] for row in rows]
    total = sum(held)
    table = runs(call.layout, total, size)
    wanted = [sum(map(len, of_rank)) for of_rank in table]
    if held != wanted:
        raise LayoutError(
            f"{call.layout.kind} over {size} ranks gives {total} tokens as {wanted}, but the ranks hold {held}; "
            "cut the sequence with ringattn.shard"
        )
    spans = [
        _spans(of_rank, row[at + 1 :] if call.segments is not None else None)
        for of_rank, row in zip(table, rows, strict=True)
    ]
    needs = schedule.needs_of(spans, causal=call.causal, window=call.window)
    return Plan(tuple(local_positions(call.layout, total, size, r) for r in range(size)), needs, call)


def _spans(of_rank: tuple[range, ...], bounds: list[int] | None) -> list[schedule.Span]:
    if bounds is None:
        return [schedule.Span(run[0], run[-1]) for run in of_rank]
    if len(of_rank) == 2:
        pairs = [(bounds[0], bounds[1]), (bounds[2], bounds[3])]
    else:
        pairs = [(min(bounds[0], bounds[2]), max(bounds[1], bounds[3]))]
    return [schedule.Span(run[0], run[-1], pair) for run, pair in zip(of_rank, pairs, strict=True)]
