"""Batches: the pieces of series that a step sees, and this rank's part of the packed sequence.

The pieces of a step are a function of (seed, step): a run that resumes from a checkpoint needs no other state, and ranks draw the
same pieces without a message.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ingest.errors import UsageError
from ingest.features import BOUND, COLUMNS, FEATURES, MEMORY_LAG
from ringattn.layout import Layout, local_positions
from worker.forecast.model.network import Batch
from worker.training.tokens import FLIP, TARGET, Normalisation, Period, Piece, TokenStore


@dataclass(frozen=True)
class LocalBatch:
    """A rank's part of a packed sequence; arrays are [T_local]."""

    batch: Batch
    target: mx.array  # float32; 0 where there is none
    valid: mx.array  # float32; 1 where a target counts
    total: int  # hours of the whole sequence
    columns: NDArray[np.float32]  # [T_local, (reference, scale, demand, operator)]
    hours: NDArray[np.int64]
    regions: NDArray[np.int32]


def build_local_batch(
    store: TokenStore,
    pieces: Sequence[Piece],
    norm: Normalisation,
    *,
    layout: Layout,
    size: int,
    rank: int,
    scored: Period,
    signs: Sequence[float] | None = None,
) -> LocalBatch:
    """Build rank `rank`'s part of the sequence that packs `pieces`.

    Args:
        store: the tokens.
        pieces: segments of the sequence.
        norm: normalisation of the inputs.
        layout: layout of the sequence over the ranks.
        size: number of ranks.
        rank: this rank.
        scored: hours whose targets count.
        signs: one a piece, 1 or -1; -1 flips the sign of the errors. None flips none.
    """
    lengths = np.array([piece.hours for piece in pieces])
    starts = np.cumsum([0, *lengths])
    positions = local_positions(layout, int(starts[-1]), size, rank).astype(np.int64)
    owner = np.searchsorted(starts, positions, side="right") - 1
    within = positions - starts[owner]
    rows, past = _read_rows(store, pieces, owner, within)
    sign = np.array([1.0] * len(pieces) if signs is None else signs, np.float32)[owner]
    inputs = _normalise(rows, norm, sign)
    outcome = np.clip(past[:, TARGET:], -BOUND, BOUND) * sign[:, None]
    memory = np.nan_to_num(np.concatenate([_normalise(past, norm, sign), outcome], axis=1)).astype(np.float32)
    hours = np.array([piece.first for piece in pieces])[owner] + within
    regions = np.array([piece.region for piece in pieces], np.int32)[owner]
    target = rows[:, TARGET] * sign
    valid = np.isfinite(target) & (hours >= scored.first) & (hours <= scored.last)
    days = np.cumsum([0, *(lengths // 24 + 1)])
    batch = Batch(
        mx.array(inputs[:, : len(FEATURES)]),
        mx.array(inputs[:, len(FEATURES) :]),
        mx.array(memory),
        mx.array(regions),
        mx.array(within.astype(np.float32)),
        mx.array(owner.astype(np.int32)),
        mx.array((days[owner] + within // 24).astype(np.int32)),
        int(days[-1]),
        layout,
    )
    return LocalBatch(
        batch,
        mx.array(np.where(valid, target, 0.0).astype(np.float32)),
        mx.array(valid.astype(np.float32)),
        int(starts[-1]),
        rows[:, TARGET + 1 :],
        hours,
        regions,
    )


def _read_rows(
    store: TokenStore, pieces: Sequence[Piece], owner: NDArray[np.int64], within: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read the rows of local tokens and of the hours that they remember.

    Args:
        store: the tokens.
        pieces: segments of the sequence.
        owner: [T_local] index of each token's piece.
        within: [T_local] hours from the start of the piece.

    Returns:
        Rows [T_local, TARGET + COLUMNS]; inputs and target [T_local, TARGET + 1] of the hour MEMORY_LAG before, NaN where that is
        outside the piece.
    """
    rows = np.empty((len(owner), TARGET + len(COLUMNS)), np.float32)
    past = np.empty((len(owner), TARGET + 1), np.float32)
    for i, piece in enumerate(pieces):
        mine = owner == i
        if not mine.any():
            continue
        inside = within[mine]
        before = np.maximum(inside - MEMORY_LAG, 0)
        if inside[-1] - inside[0] + 1 == len(inside):  # one run: slices read the memory map without a copy
            rows[mine] = store.rows(piece, slice(inside[0], inside[-1] + 1))
            remembered = store.rows(piece, slice(before[0], before[-1] + 1))[before - before[0]]
        else:
            rows[mine] = store.rows(piece, inside)
            remembered = store.rows(piece, before)
        past[mine] = np.where((inside >= MEMORY_LAG)[:, None], remembered[:, : TARGET + 1], np.nan)
    return rows, past


def _normalise(rows: NDArray[np.float32], norm: Normalisation, sign: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inputs [T, TARGET] of rows, normalised, and with the sign of errors flipped where `sign` [T] is -1."""
    flip = np.where(FLIP < 0, sign[:, None], np.float32(1.0))
    return (rows[:, :TARGET] - norm.mean) / norm.deviation * flip


def draw_pieces(store: TokenStore, period: Period, hours: int, count: int, seed: int, step: int) -> list[Piece]:
    """Draw the pieces of a step; the same for the same (seed, step).

    Args:
        store: the tokens.
        period: hours to draw from.
        hours: length of a piece at most.
        count: number of pieces. Respondents are drawn equally often.
        seed: The run's seed.
        step: Number of the step in the run.

    Returns:
        Pieces inside `period`, each with at least one hour that has a target.

    Raises:
        UsageError: if a respondent has no such hour.
    """
    draw = np.random.default_rng((seed, step))
    regions = np.concatenate(
        [draw.permutation(len(store.respondents)) for _ in range(-(-count // len(store.respondents)))]
    )[:count]
    pieces = []
    for region in regions:
        available = store.period(int(region))
        first, last = max(available.first, period.first), min(available.last, period.last)
        targets = store.targets(int(region), period)
        if not len(targets):
            raise UsageError(
                f"{store.respondents[region]} has no hour of both demand and forecast in {period}: extract it, "
                "or name other periods"
            )
        length = min(hours, last - first + 1)
        start = int(draw.choice(targets)) - int(draw.integers(length))
        pieces.append(Piece(int(region), min(max(start, first), last - length + 1), length))
    return pieces


def draw_sign_flips(count: int, rate: float, seed: int, step: int) -> list[float]:
    """Draw a sign for each of `count` pieces: -1 with probability `rate`, else 1.

    A series with the sign of its errors flipped is as good an example (data augmentation).
    """
    draw = np.random.default_rng((seed, step, 1))
    return [-1.0 if x < rate else 1.0 for x in draw.random(count)]
