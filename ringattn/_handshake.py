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
from ringattn._token_rules import BOUNDS, TokenRules, check_token_rules, spans
from ringattn.layout import Layout, as_layout, local_positions, runs
from ringattn.transport import Transport

DTYPES = {mx.float32: 1, mx.bfloat16: 2, mx.float16: 3}
_FIELDS = (
    "refused",
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
_AGREED = _FIELDS[1:-2]
_NAMES = {
    "dtype": {code: str(dtype) for dtype, code in DTYPES.items()},
    "mask": {0: "None", 1: "'causal'"},
    "window": {0: "None"},
    "sinks": {0: "None", 1: "[Hq]"},
    "segments": {0: "None", 1: "[T]", 2: "[B, T]"},
    "key_segments": {0: "None", 1: "[T]", 2: "[B, T]"},
    "positions": {0: "None", 1: "[T]"},
}


@dataclass(frozen=True)
class Options:
    """The arguments of a call beside q, k and v, as given; see `ringattn.ring_attention`."""

    scale: float
    mask: str | None = None
    window: int | None = None
    segments: object = None
    key_segments: object = None
    positions: object = None
    key_positions: object = None
    sinks: mx.array | None = None
    softcap: float | None = None
    layout: str | Layout = "zigzag"


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
    mask, window, scale, softcap = options.mask, options.window, options.scale, options.softcap
    if mask not in (None, "causal"):
        raise ArgumentError(f'mask {mask!r} is unknown; use None or "causal" (packed series: segments=)')
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ArgumentError(f"window {window!r} must be a number of tokens from 1 up, or None")
    if not np.isfinite(scale):
        raise ArgumentError(f"scale {scale} must be finite; the usual one is head_dimension ** -0.5")
    if softcap is not None and not (isinstance(softcap, int | float) and 0 < softcap < np.inf):
        raise ArgumentError(f"softcap {softcap!r} must be a finite number above 0, or None")
    _check_sinks(options.sinks, q.shape[1])
    return Call(
        q_shape=tuple(q.shape),
        k_shape=tuple(k.shape),
        v_dim=v.shape[3],
        dtype=q.dtype,
        scale=float(scale),
        softcap=None if softcap is None else float(softcap),
        causal=mask == "causal",
        window=window,
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
    )


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
        return _plan(call, [_header(call)], rank)
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
    return _plan(call, rows, rank)


def _by_rank(field: str, values: list[int]) -> str:
    if field in ("scale", "softcap", "layout"):
        groups = [[r for r, v in enumerate(values) if v == value] for value in dict.fromkeys(values)]
        return " against ".join(f"one value on ranks {g}" for g in groups)
    return ", ".join(f"{_NAMES.get(field, {}).get(v, v)} on rank {r}" for r, v in enumerate(values))


def _header(call: Call | RingError) -> list[int]:
    if isinstance(call, RingError):
        return [1] + [0] * (len(_FIELDS) - 1 + BOUNDS)
    batch, q_heads, length, dim = call.q_shape
    fields = {
        "refused": 0,
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
        "layout": zlib.crc32(repr(call.layout).encode()) >> 1,
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
    bounds = [row[at + 2 :] for row in rows]
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
