"""Segments and explicit positions of a call: what masks are compared from where the layout alone does not say it."""

from dataclasses import dataclass

import numpy as np

from ringattn import schedule
from ringattn._errors import ArgumentError, DTypeError, ShapeError

_INT32 = np.iinfo(np.int32)
NO_BOUNDS = (0, 0, 0, 0)


@dataclass(frozen=True)
class TokenRules:
    """This rank's segments and positions, int32; None where the call gives none."""

    segments: np.ndarray | None = None
    """of the queries [Tq] or [B, Tq]"""
    key_segments: np.ndarray | None = None
    """[Tk] or [B, Tk]"""
    positions: np.ndarray | None = None
    """of the queries [Tq]"""
    key_positions: np.ndarray | None = None
    """[Tk]"""

    @property
    def travelling(self) -> tuple[np.ndarray, ...]:
        """What travels with this rank's keys and values: key segments, then key positions."""
        return tuple(x for x in (self.key_segments, self.key_positions) if x is not None)

    def kinds(self) -> list[int]:
        """Return numbers that must be the same on every rank: dimensions of the segments, and whether there are positions."""
        by_keys = 0 if self.key_segments is None else self.key_segments.ndim
        return [0 if self.segments is None else self.segments.ndim, by_keys, int(self.positions is not None)]

    def bounds(self) -> list[int]:
        """Return twelve numbers from which all ranks derive who needs which keys.

        The lowest and highest segment in each half of the queries and in each half of the keys, which are zigzag's two chunks; the
        lowest and highest position of the queries and of the keys.
        """
        positions = [
            int(bound)
            for x in (self.positions, self.key_positions)
            for bound in ((x.min(), x.max()) if x is not None and x.size else (0, 0))
        ]
        return [*_segment_bounds(self.segments), *_segment_bounds(self.key_segments), *positions]


BOUNDS = 12
"""Length of `TokenRules.bounds`."""


def check_token_rules(
    batch: int,
    lengths: tuple[int, int],
    *,
    segments: object,
    key_segments: object,
    positions: object,
    key_positions: object,
) -> TokenRules:
    """Check segments and positions of a call; those of the keys default to those of the queries where there are as many.

    Args:
        batch: B.
        lengths: Tq, Tk.
        segments: of the queries, None or integers [Tq] or [B, Tq].
        key_segments: of the keys, None or integers [Tk] or [B, Tk].
        positions: of the queries, None or integers [Tq].
        key_positions: of the keys, None or integers [Tk].

    Raises:
        ArgumentError: if only those of the keys are given, or if those of the keys are missing.
        ShapeError: if a shape does not fit.
        DTypeError: if a value is not an integer within int32.
    """
    found: list[np.ndarray | None] = []
    for what, of_queries, of_keys in (
        ("segments", segments, key_segments),
        ("positions", positions, key_positions),
    ):
        if of_queries is None and of_keys is not None:
            raise ArgumentError(f"key_{what} need {what} of the queries beside them: give {what}=")
        if of_queries is not None and of_keys is None:
            if lengths[0] != lengths[1]:
                raise ArgumentError(
                    f"{what} of {lengths[0]} queries say nothing about {lengths[1]} keys: give key_{what}= too"
                )
            of_keys = of_queries
        may_batch = what == "segments"
        for name, ids, length in ((what, of_queries, lengths[0]), (f"key_{what}", of_keys, lengths[1])):
            found.append(None if ids is None else _integers(name, ids, batch if may_batch else 0, length))
    return TokenRules(*found)


def spans(runs: list[tuple[int, int]], segment_bounds: list[int] | None) -> list[schedule.Span]:
    """Return the spans of a rank's runs of positions (first, last), with the bounds of their segments if there are any."""
    if segment_bounds is None:
        return [schedule.Span(*run) for run in runs]
    low, high, low_2, high_2 = segment_bounds
    pairs = [(low, high), (low_2, high_2)] if len(runs) == 2 else [(min(low, low_2), max(high, high_2))]
    return [schedule.Span(*run, pair) for run, pair in zip(runs, pairs, strict=True)] if runs else []


def _integers(what: str, given: object, batch: int, length: int) -> np.ndarray:
    try:
        ids = np.asarray(given)
    except ValueError as error:
        raise ShapeError(f"{what} are ragged ({error}); give integers of one shape") from None
    shapes = [(length,), (batch, length)] if batch else [(length,)]
    if ids.shape not in shapes:
        rule = "[tokens] or [batch, tokens]" if batch else "[tokens]"
        raise ShapeError(f"{what} {ids.shape} must be {rule} of the local part: {', '.join(map(str, shapes))}")
    if ids.dtype.kind not in "iu" or (ids.size and (ids.min() < _INT32.min or ids.max() > _INT32.max)):
        raise DTypeError(f"{what} must be integers within int32, not {ids.dtype}")
    return np.ascontiguousarray(ids, dtype=np.int32)


def _segment_bounds(ids: np.ndarray | None) -> tuple[int, ...]:
    if ids is None or ids.shape[-1] == 0:
        return NO_BOUNDS
    cut = ids.shape[-1] - ids.shape[-1] // 2
    halves = (ids[..., :cut], ids[..., cut:]) if cut < ids.shape[-1] else (ids, ids)
    return tuple(int(bound) for half in halves for bound in (half.min(), half.max()))
