"""Which tokens a step sees, and this rank's part of them: pieces of series packed into one sequence, read from memory maps.

Tokens are computed once and kept under `<data>/tokens/`, named by all that they depend on; a rank then reads only the rows that its part of
the ring holds. Which pieces a step sees is a pure function of (seed, step): a run that goes on from a checkpoint needs no other state,
and no rank has to tell another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ingest import features as windows
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError
from ingest.features import BOUND, COLUMNS, CONDITION, FEATURES, MEMORY_LAG, ODD, Reference, Tokens
from ingest.loader import available
from ingest.periods import parse_period
from ringattn.layout import Layout, local_positions
from worker.forecast.model.network import Batch

INPUTS = (*FEATURES, *CONDITION)
TARGET = len(INPUTS)  # column of the target; what else there is of an hour comes behind it
FLIP = np.array([-1.0 if name in ODD else 1.0 for name in INPUTS], np.float32)


@dataclass(frozen=True)
class Piece:
    """Consecutive hours of one respondent, a segment of a packed sequence."""

    region: int  # index of the respondent
    first: int  # hour number
    hours: int


@dataclass(frozen=True)
class Period:
    """Hours `first`…`last` (hour numbers, both inclusive)."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str, option: str) -> Period:
        """Return the period that `text`, the value of `option`, names: `2015-07:2017`. UsageError for another form."""
        first, last = parse_period(text, option)
        return cls(hour_number(first), hour_number(last))

    def __str__(self) -> str:
        return f"{hour_text(self.first)} to {hour_text(self.last)}"


@dataclass(frozen=True)
class Normalisation:
    """Feature means and deviations of the training hours; `[feature]`. Features that change sign with the errors keep their zero."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


@dataclass(frozen=True)
class TokenStore:
    """Tokens of several respondents: first hour number and rows `[hour, INPUTS + COLUMNS]` of each."""

    respondents: tuple[str, ...]
    reference: Reference
    maps: tuple[tuple[int, NDArray[np.float32]], ...]

    def period(self, region: int) -> Period:
        """What there is of a respondent."""
        first, rows = self.maps[region]
        return Period(first, first + len(rows) - 1)

    def rows(self, piece: Piece, inside: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """The rows `inside` a piece, `[row, column]`; only these are read."""
        first, rows = self.maps[piece.region]
        return rows[piece.first - first : piece.first - first + piece.hours][inside]

    def targets(self, region: int, period: Period) -> NDArray[np.int64]:
        """Hour numbers of `period` that have a target."""
        first, rows = self.maps[region]
        low = max(period.first - first, 0)
        return first + low + np.flatnonzero(np.isfinite(rows[low : max(period.last + 1 - first, low), TARGET]))

    def fit(self, period: Period) -> Normalisation:
        """Normalisation by the hours of `period` that have a target. UsageError where none has."""
        count, total, square = 0, np.zeros(TARGET), np.zeros(TARGET)
        for first, rows in self.maps:
            part = rows[max(period.first - first, 0) : max(period.last + 1 - first, 0)]
            x = part[np.isfinite(part[:, TARGET]), :TARGET].astype(np.float64)
            count, total, square = count + len(x), total + x.sum(axis=0), square + (x * x).sum(axis=0)
        if not count:
            raise UsageError(f"no hour from {period} has both demand and its forecast: train on other hours")
        mean = np.where(FLIP < 0, 0.0, total / count)
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0.0))
        deviation = np.where(deviation > 1e-6, deviation, 1.0)
        return Normalisation(mean.astype(np.float32), deviation.astype(np.float32))


@dataclass(frozen=True)
class LocalBatch:
    """A rank's part of a packed sequence; arrays `[T_local]`."""

    batch: Batch
    target: mx.array  # float32; 0 where there is none
    valid: mx.array  # float32, 1 where a target counts
    total: int  # hours of the whole sequence
    columns: NDArray[np.float32]  # [T_local, reference, scale, demand, operator]
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
    """Rank `rank`'s tokens of the sequence `pieces`; targets count inside `scored`. `signs` (one a piece, 1 or -1) flips errors."""
    total = sum(piece.hours for piece in pieces)
    positions = local_positions(layout, total, size, rank).astype(np.int64)
    starts = np.cumsum([0, *(piece.hours for piece in pieces)])
    owner = np.searchsorted(starts, positions, side="right") - 1
    rows = np.empty((len(positions), TARGET + len(COLUMNS)), np.float32)
    memory = np.empty((len(positions), TARGET + 1), np.float32)
    sign = np.ones(len(positions), np.float32)
    for i, piece in enumerate(pieces):
        mine = owner == i
        if mine.any():
            inside = positions[mine] - starts[i]
            runs = inside[-1] - inside[0] + 1 == len(inside)
            rows[mine] = store.rows(piece, slice(inside[0], inside[-1] + 1) if runs else inside)
            before = np.maximum(inside - MEMORY_LAG, 0)
            past = (
                store.rows(piece, slice(before[0], before[-1] + 1))[before - before[0]]
                if runs
                else store.rows(piece, before)
            )
            known = (inside >= MEMORY_LAG)[:, None]
            memory[mine] = np.where(known, past[:, : TARGET + 1], np.nan)
            sign[mine] = 1.0 if signs is None else signs[i]
    features = (rows[:, :TARGET] - norm.mean) / norm.deviation
    features *= np.where(FLIP < 0, sign[:, None], 1.0)
    remembered = (memory[:, :TARGET] - norm.mean) / norm.deviation * np.where(FLIP < 0, sign[:, None], 1.0)
    outcome = np.clip(memory[:, TARGET:], -BOUND, BOUND) * sign[:, None]
    memory = np.nan_to_num(np.concatenate([remembered, outcome], axis=1)).astype(np.float32)
    within = positions - starts[owner]
    hours = np.array([piece.first for piece in pieces])[owner] + within
    regions = np.array([piece.region for piece in pieces], np.int32)[owner]
    target = rows[:, TARGET] * sign
    valid = np.isfinite(target) & (hours >= scored.first) & (hours <= scored.last)
    days = np.cumsum([0, *(piece.hours // 24 + 1 for piece in pieces)])
    batch = Batch(
        mx.array(features[:, : len(FEATURES)].astype(np.float32)),
        mx.array(features[:, len(FEATURES) :].astype(np.float32)),
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
        total,
        rows[:, TARGET + 1 :],
        hours,
        regions,
    )


def draw_pieces(store: TokenStore, period: Period, hours: int, count: int, seed: int, step: int) -> list[Piece]:
    """`count` pieces of at most `hours` hours inside `period`, each respondent equally often, each with an hour that has a target.

    The same for the same (seed, step). UsageError for a respondent without such an hour.
    """
    draw = np.random.default_rng((seed, step))
    regions = np.concatenate(
        [draw.permutation(len(store.respondents)) for _ in range(-(-count // len(store.respondents)))]
    )[:count]
    pieces = []
    for region in regions:
        there = store.period(int(region))
        first, last = max(there.first, period.first), min(there.last, period.last)
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
    """-1 for a share `rate` of the pieces: an error seen the other way round is as good an example."""
    draw = np.random.default_rng((seed, step, 1))
    return [-1.0 if x < rate else 1.0 for x in draw.random(count)]


def open_token_store(
    data_dir: Path,
    respondents: Sequence[str],
    reference: Reference = "DF",
    say: Callable[[str], None] = lambda words: None,
) -> TokenStore:
    """The tokens of all years on disk, as memory maps; computed and kept on first use, of which `say` is told."""
    maps = tuple(_mapped(data_dir, name, reference, say) for name in respondents)
    return TokenStore(tuple(respondents), reference, maps)


def token_rows(tokens: Tokens) -> NDArray[np.float32]:
    """Tokens as rows of a store, [hour, TARGET + COLUMNS]."""
    columns = [tokens.features, tokens.condition, *(getattr(tokens, name)[:, None] for name in COLUMNS)]
    return np.concatenate(columns, axis=1)


def _mapped(
    data_dir: Path, respondent: str, reference: Reference, say: Callable[[str], None]
) -> tuple[int, NDArray[np.float32]]:
    there = available(data_dir, respondent)
    start, end = f"{there.years[0]}-01-01T00", f"{there.years[-1]}-12-31T23"
    path = data_dir / "tokens" / f"{respondent}-{_key(data_dir, respondent, there.years, reference)}.npy"
    if not path.exists():
        say(f"making tokens of {respondent}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, token_rows(windows.load_tokens(data_dir, respondent, start, end, reference=reference)))
        part.replace(path)
    return hour_number(start), np.load(path, mmap_mode="r")


def _key(data_dir: Path, respondent: str, years: Sequence[int], reference: Reference) -> str:
    """Digest of all that tokens depend on: the series' files, the features, the reference."""
    made_of = [
        json.loads((data_dir / "series" / respondent / str(year) / "series.json").read_text())["pieces"]
        for year in years
    ]
    text = json.dumps([windows.VERSION, INPUTS, reference, made_of])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
