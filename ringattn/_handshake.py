"""Handshake before a call: check this rank's arguments, then agree with all ranks on one plan.

One small all_gather a call carries each rank's arguments as integers. A rank whose own check failed takes part too, so
that all ranks raise at once instead of waiting for it. From the headers each rank derives the same lengths, positions,
needs and schedules.
"""

import math
import struct
import time
from dataclasses import dataclass
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn import ring, schedule
from ringattn._call_header import SIZE, Kind, as_integer, check_agreed, exchange, layout_code
from ringattn._errors import ArgumentError, DTypeError, LayoutError, ShapeError
from ringattn._token_rules import BOUNDS, TokenRules, check_token_rules, spans
from ringattn.layout import Layout, as_layout, local_positions, runs
from ringattn.transport import Transport

DTYPES = {mx.float32: 1, mx.bfloat16: 2, mx.float16: 3}
_FIELDS = (
    "batch",
    "query heads",
    "kv heads",
    "head dimension",
    "value dimension",
    "dtype",
    "mask",
    "window",
    "scale",
    "softcap",
    "sinks",
    "layout",
    "segments",
    "key_segments",
    "positions",
    "length",
    "key length",
)
_AGREED = _FIELDS[:-2]
_NAMES: dict[str, dict[int, str]] = {
    "dtype": {code: str(dtype) for dtype, code in DTYPES.items()},
    "mask": {0: "None", 1: "'causal'"},
    "window": {0: "None"},
    "sinks": {0: "None", 1: "[Hq]"},
    "segments": {0: "None", 1: "[T]", 2: "[B, T]"},
    "key_segments": {0: "None", 1: "[T]", 2: "[B, T]"},
    "positions": {0: "None", 1: "[T]"},
    "scale": {},
    "softcap": {},
    "layout": {},
}


@dataclass(frozen=True)
class Options:
    """The arguments of a call beside q, k and v, as given; see `ringattn.ring_attention`."""

    scale: object
    mask: object = None
    window: object = None
    segments: object = None
    key_segments: object = None
    positions: object = None
    key_positions: object = None
    sinks: mx.array | None = None
    softcap: float | None = None
    layout: str | Layout = "zigzag"
    tag: object = None


@dataclass(frozen=True)
class Call:
    """One rank's checked arguments, without the arrays."""

    q_shape: tuple[int, ...]
    k_shape: tuple[int, ...]
    v_dim: int
    dtype: mx.Dtype
    scale: float
    softcap: float | None
    causal: bool
    window: int | None
    layout: Layout
    rules: TokenRules
    sinks: bool
    tag: int | None = None


@dataclass(frozen=True)
class Plan:
    """The plan that all ranks agreed on."""

    positions: np.ndarray
    """of this rank's queries, int32 [Tq]"""
    key_positions: tuple[np.ndarray, ...]
    """of each rank's keys, int32 [Tk]; where the call gives positions, those travel with the keys and these are not used"""
    needs: tuple[tuple[bool, ...], ...]
    """which rank needs which rank's keys"""
    call: Call

    def kv_shapes(self, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of a block's keys and values, [B, Hkv, T_block, D] and [B, Hkv, T_block, Dv]."""
        batch, heads, _, dim = self.call.k_shape
        rows = (batch, heads, len(self.key_positions[block]))
        return (*rows, dim), (*rows, self.call.v_dim)


def check_arguments(q: mx.array, k: mx.array, v: mx.array, options: Options) -> Call:
    """Check the arguments of a call; see `ringattn.ring_attention`.

    Raises:
        ShapeError: if shapes, heads, segments, positions or sinks break a rule.
        DTypeError: if a dtype is not supported, or if dtypes differ.
        ArgumentError: if another argument breaks a rule.
    """
    _check_tensors(q, k, v)
    window, softcap, tag = options.window, options.softcap, options.tag
    if softcap is not None and not (isinstance(softcap, Real) and 1e-30 < softcap < 1e30):
        raise ArgumentError(f"softcap {softcap!r} must be a number from 1e-30 to 1e30, or None")
    _check_sinks(options.sinks, q.shape[1])
    return Call(
        q_shape=tuple(q.shape),
        k_shape=tuple(k.shape),
        v_dim=v.shape[3],
        dtype=q.dtype,
        scale=_scale(options.scale),
        softcap=None if softcap is None else float(softcap),
        causal=_causal(options.mask),
        window=None
        if window is None
        else as_integer(window, "window", "a number of tokens from 1 up, or None", lowest=1),
        layout=as_layout(options.layout),
        rules=check_token_rules(
            q.shape[0],
            (q.shape[2], k.shape[2]),
            segments=options.segments,
            key_segments=options.key_segments,
            positions=options.positions,
            key_positions=options.key_positions,
        ),
        sinks=options.sinks is not None,
        tag=None if tag is None else as_integer(tag, "tag", "a number from 0 up, or None"),
    )


def _causal(mask: object) -> bool:
    if mask is not None and not isinstance(mask, str):
        raise ArgumentError(
            f"mask is {type(mask).__name__}: an array of [tokens, tokens] is what the ring avoids, and no rank has the whole; "
            'use mask="causal", window= for a sliding window, segments= for packed series'
        )
    if mask not in (None, "causal"):
        raise ArgumentError(
            f'mask {mask!r} is unknown; use None or "causal" (sliding: window=, packed series: segments=)'
        )
    return mask == "causal"


def _scale(scale: Any) -> float:
    try:
        number = float(scale)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentError(f"scale {scale!r} must be a finite number; the usual one is head_dimension ** -0.5")
    return number


def _check_tensors(q: mx.array, k: mx.array, v: mx.array) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, mx.array):
            raise DTypeError(f"{name} is {type(x).__name__}; ring_attention takes mlx arrays: mx.array({name})")
        if x.ndim != 4 or 0 in (*x.shape[:2], x.shape[3]):
            raise ShapeError(
                f"{name} has shape {x.shape}; the rule is [batch, heads, tokens, head dimension], none but tokens empty"
            )
    if k.shape[:3] != v.shape[:3]:
        raise ShapeError(f"k {k.shape} and v {v.shape} must agree in batch, heads and local tokens")
    if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ShapeError(f"q {q.shape} and k {k.shape} must agree in batch and head dimension")
    if q.shape[1] % k.shape[1]:
        raise ShapeError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} kv heads")
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise DTypeError(f"q, k and v must have one dtype, not {q.dtype}, {k.dtype}, {v.dtype}; cast them with .astype")
    if q.dtype not in DTYPES:
        raise DTypeError(f"dtype {q.dtype} is not supported; use float32, bfloat16 or float16")


def _check_sinks(sinks: mx.array | None, q_heads: int) -> None:
    if sinks is None:
        return
    if not isinstance(sinks, mx.array) or sinks.dtype not in DTYPES:
        kind = sinks.dtype if isinstance(sinks, mx.array) else type(sinks).__name__
        raise DTypeError(f"sinks must be an mlx array of float32, bfloat16 or float16, not {kind}")
    if sinks.shape != (q_heads,):
        raise ShapeError(f"sinks {sinks.shape} must be one logit a query head: {(q_heads,)}")


def agree_on_plan(call: Call, transport: Transport, timeout: float) -> Plan:
    """Exchange the arguments of all ranks and derive the plan. Local lengths that do not follow the layout are a LayoutError.

    Args:
        call: this rank's checked arguments.
        transport: reaches the other ranks.
        timeout: seconds of the wait. MismatchError on every rank, if the ranks' arguments differ or one refused its own.
    """
    began = time.perf_counter()
    rows = exchange(Kind.ATTENTION, call.tag, _fields(call), transport, timeout)
    if transport.size() > 1:
        ring.record(ring.HopTime("agree", 0, 0.0, time.perf_counter() - began, 4 * SIZE))
    check_agreed(rows, _AGREED, _NAMES)
    return _plan(call, rows, transport.rank())


def _fields(call: Call) -> list[int]:
    batch, q_heads, length, dim = call.q_shape
    fields = {
        "batch": batch,
        "query heads": q_heads,
        "kv heads": call.k_shape[1],
        "head dimension": dim,
        "value dimension": call.v_dim,
        "dtype": DTYPES[call.dtype],
        "mask": int(call.causal),
        "window": call.window or 0,
        "scale": _bits(call.scale),
        "softcap": _bits(call.softcap or 0.0),
        "sinks": int(call.sinks),
        "layout": layout_code(call.layout),
        **dict(zip(("segments", "key_segments", "positions"), call.rules.kinds(), strict=True)),
        "length": length,
        "key length": call.k_shape[2],
    }
    return [*(fields[name] for name in _FIELDS), *call.rules.bounds()]


def _bits(x: float) -> int:
    """Return the bits of a float32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", x))
    return bits


def _plan(call: Call, rows: list[list[int]], rank: int) -> Plan:
    """Derive the plan from all ranks' headers."""
    at = _FIELDS.index("length")
    held, keys_held = [row[at] for row in rows], [row[at + 1] for row in rows]
    bounds = [row[at + 2 : at + 2 + BOUNDS] for row in rows]
    q_segments, k_segments = (
        [row[i : i + 4] if call.rules.segments is not None else None for row in bounds] for i in (0, 4)
    )
    if call.rules.positions is not None:
        q_runs, k_runs = (
            [[(row[i], row[i + 1])] if length else [] for row, length in zip(bounds, lengths, strict=True)]
            for i, lengths in ((8, held), (10, keys_held))
        )
        positions, key_positions = call.rules.positions, _places(keys_held)
    elif held == keys_held:
        _check_layout(call.layout, held)
        total, size = sum(held), len(rows)
        q_runs = k_runs = [[(run[0], run[-1]) for run in of_rank] for of_rank in runs(call.layout, total, size)]
        key_positions = tuple(local_positions(call.layout, total, size, r) for r in range(size))
        positions = key_positions[rank]
    else:
        _check_unordered(call, held, keys_held)
        q_runs, k_runs = ([[(0, 0)] if length else [] for length in lengths] for lengths in (held, keys_held))
        positions, key_positions = _places(held)[rank], _places(keys_held)
    needs = schedule.needs_of(
        [spans(*of_rank) for of_rank in zip(q_runs, q_segments, strict=True)],
        [spans(*of_rank) for of_rank in zip(k_runs, k_segments, strict=True)],
        causal=call.causal,
        window=call.window,
    )
    return Plan(positions, key_positions, needs, call)


def _places(lengths: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(length, dtype=np.int32) for length in lengths)


def _check_layout(layout: Layout, held: list[int]) -> None:
    wanted = [sum(map(len, of_rank)) for of_rank in runs(layout, sum(held), len(held))]
    if held != wanted:
        raise LayoutError(
            f"{layout.kind} over {len(held)} ranks gives {sum(held)} tokens as {wanted}, but the ranks hold {held}; "
            "cut the sequence with ringattn.shard, or give positions= and key_positions="
        )


def _check_unordered(call: Call, held: list[int], keys_held: list[int]) -> None:
    """Without positions, queries and keys of unlike number have no order, so that no mask may compare them."""
    if call.causal or call.window is not None:
        raise ShapeError(
            f"the ranks hold {held} queries and {keys_held} keys: with mask='causal' or window= that needs positions= and "
            "key_positions=, since no layout says where they are"
        )
