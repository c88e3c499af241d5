"""Interface of the data sources: blocks of hourly values by route and respondent, with a state for each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

ABSENT, NULL, VALUE = 0, 1, 2  # a row that does not exist, a row whose value is null, a row with a value


@dataclass(frozen=True)
class Block:
    """Hold consecutive hours of one respondent: values and states, [hours, codes].

    Row `i` is hour `first + i`, in hours since 1970-01-01T00 UTC, hour-ending. The codes are in alphabetical order.
    """

    first: int
    codes: tuple[str, ...]
    values: npt.NDArray[np.int32] | npt.NDArray[np.float64]  # MWh, [hours, codes]; float64 where they are not whole
    state: npt.NDArray[np.uint8]  # ABSENT | NULL | VALUE, [hours, codes]

    def between(self, start: int, end: int) -> Block:
        """Return the hours from `start` to `end`, both inclusive, that the block holds (views)."""
        low = min(max(start - self.first, 0), len(self.values))
        high = max(min(end - self.first + 1, len(self.values)), low)
        return Block(self.first + low, self.codes, self.values[low:high], self.state[low:high])

    def series(self, code: str) -> dict[int, float]:
        """Return the values of one code as {hour: MWh}, without hours that have none; empty if the block lacks the code."""
        if code not in self.codes:
            return {}
        column = self.codes.index(code)
        there = np.flatnonzero(self.state[:, column] == VALUE)
        return dict(zip((there + self.first).tolist(), self.values[there, column].tolist(), strict=True))


class World(Protocol):
    """Define a data source. `now` is the hour of the emulated clock; hours count from 1970-01-01T00 UTC.

    The routes are EIA's: `region-data`, `fuel-type-data`, `interchange-data` (its respondent is `fromba`, its code is
    `toba`) and `region-sub-ba-data` (`parent` and `subba`).
    """

    name: str  # "synthetic" | "recordings": sent as X-Emulator-World
    note: str  # one sentence for every description

    def respondents(self, route: str) -> tuple[str, ...]:
        """Return the respondents of a route, sorted."""

    def codes(self, route: str) -> tuple[str, ...]:
        """Return the types, fuels, neighbours or sub-areas of a route, sorted."""

    def span(self, now: int) -> tuple[int, int]:
        """Return the first and the last hour that are served at hour `now`."""

    def ahead(self, route: str) -> int:
        """Return how many hours after the present one a route can have values, in answers to queries that name their end."""

    def settled_before(self, now: int) -> int:
        """Return the hour before which no hour ever changes again, so that its pages can be cached for good."""

    def block(self, route: str, respondent: str, start: int, end: int, now: int) -> Block | None:
        """Return what is reported at hour `now` for the hours from `start` to `end`, both inclusive; `end` at most `ahead` of `now`.

        Returns:
            None where the world lacks the respondent on the route.
        """
