"""The token store: features of every hour on disk, as memory-mapped rows, with their normalisation.

Tokens are computed once and kept in `<data>/tokens/`, in files named by a digest of all that they depend on, each with the digest of its
own content beside it; a damaged one is computed again. A rank then reads only the rows of its own part of the ring.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest import features
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError
from ingest.features import COLUMNS, CONDITION, FEATURES, ODD, Reference, Tokens
from ingest.files import atomic_write, file_sha256
from ingest.loader import available, respondents_on_disk
from ingest.periods import parse_period
from ingest.publication import DEFAULT, Publication
from ingest.zones import ZONES

LINEAR_VERSION = 4  # of worker.forecast.linear: raised when its forecasts change
INPUTS = (*FEATURES, *CONDITION)
TARGET = len(INPUTS)  # column of the target; the other COLUMNS follow it
FLIP = np.array([-1.0 if name in ODD else 1.0 for name in INPUTS], np.float32)


@dataclass(frozen=True)
class Piece:
    """Consecutive hours of one respondent: a segment of a packed sequence."""

    region: int  # index of the respondent
    first: int  # hour number
    hours: int


@dataclass(frozen=True)
class Period:
    """The hours `first` to `last` (hour numbers, both inclusive)."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str, option: str) -> Period:
        """Parse the value of an option, such as `2015-07:2017`; another form is a UsageError that names the option."""
        first, last = parse_period(text, option)
        return cls(hour_number(first), hour_number(last))

    def __str__(self) -> str:
        return (
            hour_text(self.first) if self.first == self.last else f"{hour_text(self.first)} to {hour_text(self.last)}"
        )


@dataclass(frozen=True)
class Normalisation:
    """Means and standard deviations of the inputs over the training hours; both [input].

    Inputs that change sign with the forecast's errors have mean 0, so that zero stays zero.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def from_state(cls, state: Mapping[str, Sequence[float]]) -> Normalisation:
        """Build it from a checkpoint's `normalisation`."""
        return cls(np.array(state["mean"], np.float32), np.array(state["deviation"], np.float32))


@dataclass(frozen=True)
class TokenStore:
    """Tokens of several respondents: of each the first hour number and the rows [hour, INPUTS + COLUMNS], float32."""

    respondents: tuple[str, ...]
    reference: Reference
    maps: tuple[tuple[int, NDArray[np.float32]], ...]
    publication: Publication = DEFAULT

    def period(self, region: int) -> Period:
        """Return the hours that the store has of a respondent."""
        first, rows = self.maps[region]
        return Period(first, first + len(rows) - 1)

    def rows(self, region: int, first: int, count: int) -> NDArray[np.float32]:
        """Return the rows [hour, column] of `count` hours from `first` on, NaN where the store has none; a view where it has all."""
        start, rows = self.maps[region]
        low, high = first - start, first - start + count
        if low >= 0 and high <= len(rows):
            return rows[low:high]
        padded = np.full((count, rows.shape[1]), np.nan, np.float32)
        inside = slice(max(low, 0), max(min(high, len(rows)), 0))
        found = rows[inside]
        padded[inside.start - low : inside.start - low + len(found)] = found
        return padded

    def targets(self, region: int, period: Period) -> NDArray[np.int64]:
        """Return the hour numbers of `period` that have a target."""
        first, rows = self.maps[region]
        low = max(period.first - first, 0)
        return first + low + np.flatnonzero(np.isfinite(rows[low : max(period.last + 1 - first, low), TARGET]))

    def fit(self, period: Period) -> Normalisation:
        """Compute the normalisation from the hours of `period` that have a target.

        Raises:
            UsageError: if no hour has one.
        """
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


def open_token_store(
    data_dir: Path,
    respondents: Sequence[str],
    reference: Reference = "DF",
    log: Callable[[str], None] = lambda message: None,
    publication: Publication = DEFAULT,
    needed: Collection[str] | None = None,
) -> TokenStore:
    """Open the tokens of all years on disk as memory maps; compute them on first use.

    Args:
        data_dir: data folder with the series.
        respondents: codes of the respondents.
        reference: the forecast that is corrected.
        log: called with a message before the tokens of a respondent are computed.
        publication: when values are published.
        needed: the respondents to open; the others have no hour in the store, which masks them. None: all.
    """
    opened = [name for name in respondents if needed is None or name in needed]
    if reference == "linear":
        maps = dict(zip(opened, _linear_maps(data_dir, opened, log, publication), strict=True))
    else:
        maps = {name: _open_map(data_dir, name, reference, log, publication) for name in opened}
    none = (0, np.empty((0, TARGET + len(COLUMNS)), np.float32))
    return TokenStore(tuple(respondents), reference, tuple(maps.get(name, none) for name in respondents), publication)


def token_rows(tokens: Tokens) -> NDArray[np.float32]:
    """Return tokens as rows of a store, [hour, TARGET + COLUMNS]."""
    columns = [tokens.features, tokens.condition, *(getattr(tokens, name)[:, None] for name in COLUMNS)]
    return np.concatenate(columns, axis=1)


def _open_map(
    data_dir: Path, respondent: str, reference: Reference, log: Callable[[str], None], publication: Publication
) -> tuple[int, NDArray[np.float32]]:
    years = available(data_dir, respondent).years
    start, end = f"{years[0]}-01-01T00", f"{years[-1]}-12-31T23"
    path = data_dir / "tokens" / f"{respondent}-{series_key(data_dir, respondent, years, reference, publication)}.npy"
    if not _is_whole(path):
        log(f"computing the tokens of {respondent}")
        found = features.load_tokens(data_dir, respondent, start, end, reference=reference, publication=publication)
        _write(path, token_rows(found))
    return hour_number(start), np.load(path, mmap_mode="r")


def _linear_maps(
    data_dir: Path, respondents: Sequence[str], log: Callable[[str], None], publication: Publication
) -> tuple[tuple[int, NDArray[np.float32]], ...]:
    """Open the tokens whose reference is the linear forecast, for which every authority with DF on disk is a neighbour.

    Raises:
        UsageError: a respondent has no DF.
    """
    names = with_forecast(data_dir, respondents_on_disk(data_dir))
    if missing := [name for name in respondents if name not in names]:
        raise UsageError(
            f"{', '.join(missing)}: no day-ahead forecast (DF) on disk to correct; name others, or --reference week"
        )
    text = json.dumps(
        [
            LINEAR_VERSION,
            [
                (name, series_key(data_dir, name, available(data_dir, name).years, "linear", publication))
                for name in names
            ],
        ]
    )
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    paths = {name: data_dir / "tokens" / f"{name}-linear-{key}.npy" for name in names}
    if not all(_is_whole(paths[name]) for name in respondents):
        _write_linear(data_dir, names, {name: paths[name] for name in respondents}, log, publication)
    return tuple(
        (hour_number(f"{available(data_dir, name).years[0]}-01-01T00"), np.load(paths[name], mmap_mode="r"))
        for name in respondents
    )


def _write_linear(
    data_dir: Path,
    names: Sequence[str],
    paths: Mapping[str, Path],
    log: Callable[[str], None],
    publication: Publication,
) -> None:
    """Compute the linear forecasts of `names`, and write the tokens of those that have a path."""
    from worker.forecast.baselines.history import read_history  # which read token stores themselves
    from worker.forecast.linear.path import linear_forecasts

    store = open_token_store(data_dir, names, "DF", log, publication)
    log(f"fitting the linear forecasts of {len(names)} authorities")
    forecasts = linear_forecasts([read_history(store, region) for region in range(len(names))], log=log)
    for name, path in paths.items():
        log(f"computing the tokens of {name}")
        years = available(data_dir, name).years
        start, end = f"{years[0]}-01-01T00", f"{years[-1]}-12-31T23"
        linear = forecasts[names.index(name)].neighbours
        found = features.load_tokens(
            data_dir, name, start, end, reference="linear", publication=publication, linear=linear
        )
        _write(path, token_rows(found))


def with_forecast(
    data_dir: Path, respondents: Sequence[str], log: Callable[[str], None] = lambda message: None
) -> list[str]:
    """Return the respondents that have a time zone and DF on disk; the others are left out by name.

    Raises:
        UsageError: none has.
    """
    found = []
    for name in respondents:
        if name not in ZONES:
            log(f"{name} is left out: its time zone is unknown")
        elif "DF" not in available(data_dir, name).variables:
            log(f"{name} is left out: it has no day-ahead forecast (DF) on disk")
        else:
            found.append(name)
    if not found:
        raise UsageError(f"{data_dir} has no series with DF of {', '.join(respondents)}: extract them")
    return found


def _write(path: Path, rows: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    atomic_write(path, buffer.getvalue())
    atomic_write(_digest_file(path), hashlib.sha256(buffer.getvalue()).hexdigest().encode())


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _is_whole(path: Path) -> bool:
    """Return whether the file has the digest beside it: a damaged one would change a training without a word."""
    try:
        return file_sha256(path) == _digest_file(path).read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return False


def series_key(
    data_dir: Path,
    respondent: str,
    years: Sequence[int],
    reference: Reference,
    publication: Publication = DEFAULT,
) -> str:
    """Return the digest of all that tokens depend on: the pieces of the series, the features, the reference and the publication."""
    folder = data_dir / "series" / respondent
    pieces = [json.loads((folder / str(year) / "series.json").read_text("utf-8"))["pieces"] for year in years]
    text = json.dumps([features.VERSION, INPUTS, reference, str(publication), pieces])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
