"""Batches: this rank's part of the sequence of a step, as rows of a day (`worker.training.segments`), read from the token store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ingest.features import BOUND, COLUMNS, DAY, FEATURES
from ringattn.layout import Layout, local_positions
from worker.forecast.model.network import Batch
from worker.training.segments import Segment, first_hour
from worker.training.tokens import FLIP, INPUTS, TARGET, Normalisation, Period, TokenStore

NOON = 12  # hour of a day in standard time whose condition its row has: with or without daylight saving it is of the same local day


@dataclass(frozen=True)
class LocalBatch:
    """A rank's part of a packed sequence; arrays are [24, asked row]: hour of a day in standard time, day of a respondent."""

    batch: Batch
    target: mx.array  # float32; 0 where there is none
    valid: mx.array  # float32; 1 where a target counts
    total: int  # hours of the whole sequence
    columns: NDArray[np.float32]  # [24, row, (reference, scale, demand, operator)]
    hours: NDArray[np.int64]
    regions: NDArray[np.int32]


@dataclass(frozen=True)
class _Arrays:
    """What a batch is made of, to be filled run by run; zeros where nothing is known."""

    features: NDArray[np.float32]  # [24, row, feature]
    condition: NDArray[np.float32]  # [row, condition]
    memory: NDArray[np.float32]  # [24, row, feature + 1]
    memory_condition: NDArray[np.float32]  # [row, condition]
    remembers: NDArray[np.float32]  # [row]
    target: NDArray[np.float32]  # [24, row]
    valid: NDArray[np.bool_]  # [24, row]
    columns: NDArray[np.float32]  # [24, row, 4]
    hours: NDArray[np.int64]  # [24, row]

    @classmethod
    def empty(cls, rows: int) -> "_Arrays":
        features, conditions = len(FEATURES), len(INPUTS) - len(FEATURES)
        return cls(
            np.zeros((DAY, rows, features), np.float32),
            np.zeros((rows, conditions), np.float32),
            np.zeros((DAY, rows, features + 1), np.float32),
            np.zeros((rows, conditions), np.float32),
            np.zeros(rows, np.float32),
            np.zeros((DAY, rows), np.float32),
            np.zeros((DAY, rows), bool),
            np.zeros((DAY, rows, len(COLUMNS) - 1), np.float32),
            np.zeros((DAY, rows), np.int64),
        )


def build_local_batch(
    store: TokenStore,
    segments: Sequence[Segment],
    norm: Normalisation,
    *,
    layout: Layout,
    size: int,
    rank: int,
    scored: Period,
    signs: Sequence[float] | None = None,
    only_scored: bool = False,
    region: int | None = None,
) -> LocalBatch:
    """Build rank `rank`'s part of the sequence that packs `segments`.

    Args:
        store: the tokens.
        segments: what the sequence consists of.
        norm: normalisation of the inputs.
        layout: layout of the sequence's rows over the ranks.
        size: number of ranks.
        rank: this rank.
        scored: hours whose targets count, as far as they are in a piece.
        signs: one a segment, 1 or -1; -1 flips the sign of the errors. None flips none.
        only_scored: ask only for rows with a target that counts; the others are remembered and not forecast.
        region: ask only for rows of this respondent; None: of all.
    """
    starts = np.cumsum([0, *(segment.rows for segment in segments)])
    positions = local_positions(layout, int(starts[-1]), size, rank).astype(np.int64)
    owner = np.searchsorted(starts, positions, side="right") - 1
    members = np.array([len(segment.pieces) for segment in segments])[owner]
    within = positions - starts[owner]
    days, number = within // members, within % members
    arrays, regions = _Arrays.empty(len(positions)), np.zeros(len(positions), np.int32)
    for index, segment in enumerate(segments):
        sign = 1.0 if signs is None else signs[index]
        for member, piece in enumerate(segment.pieces):
            mine = np.flatnonzero((owner == index) & (number == member))
            regions[mine] = piece.region
            for at in _runs(mine, days[mine]):
                _fill(arrays, at, store, segment, member, int(days[at.start]), norm, sign)
    spans = np.array([[piece.first, piece.first + piece.hours - 1] for s in segments for piece in s.pieces])
    piece_of = np.cumsum([0, *(len(segment.pieces) for segment in segments)])[owner] + number
    first, last = spans[piece_of].T
    arrays.valid[...] &= (arrays.hours >= np.maximum(first, scored.first)) & (
        arrays.hours <= np.minimum(last, scored.last)
    )
    arrays.target[~arrays.valid] = 0
    wanted = np.ones(len(positions), bool) if region is None else regions == region
    if only_scored:
        wanted &= arrays.valid.any(axis=0)
    asked = np.flatnonzero(wanted)
    asked = asked if len(asked) else np.zeros(1, np.int64)  # a rank's part may be context alone
    chosen = slice(None) if len(asked) == len(positions) else asked
    batch = Batch(
        mx.array(arrays.features[:, chosen]),
        mx.array(arrays.condition),
        mx.array(arrays.memory),
        mx.array(arrays.memory_condition),
        mx.array(arrays.remembers),
        mx.array(regions),
        mx.array(days.astype(np.float32)),
        mx.array(owner.astype(np.int32)),
        mx.array(positions.astype(np.int32)),
        None if isinstance(chosen, slice) else mx.array(asked.astype(np.int32)),
        int(starts[-1]),
        max(len(segment.pieces) for segment in segments),
        layout,
    )
    hours = arrays.hours[:, chosen]
    return LocalBatch(
        batch,
        mx.array(arrays.target[:, chosen]),
        mx.array(arrays.valid[:, chosen].astype(np.float32)),
        int(starts[-1]) * DAY,
        arrays.columns[:, chosen],
        hours,
        np.broadcast_to(regions[chosen], hours.shape),
    )


def _runs(at: NDArray[np.int64], days: NDArray[np.int64]) -> Iterator[slice]:
    """Return where rows of one respondent lie in the local order, as slices of consecutive days."""
    step = int(at[1] - at[0]) if len(at) > 1 else 1
    cuts = np.flatnonzero((np.diff(days) != 1) | (np.diff(at) != step)) + 1
    for part in np.split(at, cuts):
        if len(part):
            yield slice(int(part[0]), int(part[-1]) + 1, step)


def _fill(
    arrays: _Arrays,
    at: slice,
    store: TokenStore,
    segment: Segment,
    member: int,
    day: int,
    norm: Normalisation,
    sign: float,
) -> None:
    """Fill the rows `at` with consecutive days of a member, from the segment's day `day` on, and with what they remember."""
    count, lag, features = len(range(at.start, at.stop, at.step)), segment.memory_days, len(FEATURES)
    start = first_hour(segment.first_day + day - lag, segment.offsets[member])
    region = segment.pieces[member].region
    rows = store.rows(region, start, (count + lag) * DAY).reshape(count + lag, DAY, -1)
    now, past = rows[lag:].swapaxes(0, 1), rows[:count].swapaxes(0, 1)  # [24, row, column]
    factor = np.where(FLIP < 0, np.float32(sign), np.float32(1)) / norm.deviation
    for there, given in ((arrays.features, now), (arrays.memory, past)):
        out = there[:, at, :features]
        np.subtract(given[:, :, :features], norm.mean[:features], out=out)
        out *= factor[:features]
    for known, given in ((arrays.condition, now), (arrays.memory_condition, past)):
        known[at] = (given[NOON, :, features:TARGET] - norm.mean[features:]) * factor[features:]
    outcome = past[:, :, TARGET] * np.float32(sign)
    arrays.memory[:, at, features] = np.nan_to_num(np.clip(outcome, -BOUND, BOUND))
    arrays.remembers[at] = np.isfinite(outcome).any(axis=0)
    if np.isnan(rows[:, :, 0]).any():  # hours that the store does not have
        for filled in (arrays.features[:, at], arrays.memory[:, at], arrays.condition[at], arrays.memory_condition[at]):
            np.nan_to_num(filled, copy=False)
    arrays.target[:, at] = now[:, :, TARGET] * np.float32(sign)
    arrays.valid[:, at] = np.isfinite(arrays.target[:, at])
    arrays.columns[:, at] = now[:, :, TARGET + 1 :]
    arrays.hours[:, at] = (start + lag * DAY + np.arange(count * DAY)).reshape(count, DAY).T
