"""What a world gives the server: blocks of hourly values by route and respondent, with a state for each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

ABSENT, NULL, VALUE = 0, 1, 2  # a row that does not exist, a row whose value is null, a row with a value


@dataclass(frozen=True)
class Block:
    """Hours `first`, `first + 1`, … (hours since 1970-01-01T00 UTC, hour-ending) × codes, in codes' alphabetical order."""

    first: int
    codes: tuple[str, ...]
    values: npt.NDArray[np.int32]  # MWh, [hours, codes]
    state: npt.NDArray[np.uint8]  # ABSENT | NULL | VALUE, [hours, codes]

    def cut(self, start: int, end: int) -> Block:
        """The hours `start`…`end`, both inclusive, as far as the block has them (views)."""
        low = min(max(start - self.first, 0), len(self.values))
        high = max(min(end - self.first + 1, len(self.values)), low)
        return Block(self.first + low, self.codes, self.values[low:high], self.state[low:high])


class World(Protocol):
    """Routes are EIA's: `region-data`, `fuel-type-data`, `interchange-data` (its respondent is `fromba`, its code `toba`)."""

    name: str  # "synthetic" | "recordings": sent as X-Emulator-World
    note: str  # one sentence for every description

    def respondents(self, route: str) -> tuple[str, ...]:
        """Who is served on a route, sorted."""
        ...

    def codes(self, route: str) -> tuple[str, ...]:
        """Types, fuels or neighbours of a route, sorted."""
        ...

    def span(self, now: int) -> tuple[int, int]:
        """First and last hour that is served when the clock stands at hour `now`."""
        ...

    def settled_before(self, now: int) -> int:
        """Hours before this one never change again, so their pages can be kept for good."""
        ...

    def block(self, route: str, respondent: str, start: int, end: int, now: int) -> Block | None:
        """What is reported at hour `now` for `start`…`end`; None when the world lacks the respondent on the route."""
        ...
