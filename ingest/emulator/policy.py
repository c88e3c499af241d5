"""EIA's request limits as a pure state machine: a token bucket a key, and a suspension for whoever draws it dry.

The published figures are 9,000 requests an hour (2.5/s) sustained and bursts under 5 a second. Here: a bucket of `burst`
tokens (5) that fills at `rate` tokens a second (2.5) by the emulated clock. A request that finds less than one token
suspends the key for a drawn time between half and twice `suspend` seconds (so seconds to minutes); requests during it are
refused and do not make it longer. Afterwards the bucket is full again. Each suspension refuses in one of the three
forms that were seen: a 403, a 429, an HTML notice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FORMS = ("403", "429", "html")


@dataclass(frozen=True)
class Limits:
    """What the server allows a key."""

    rate: float = 2.5  # requests a second, sustained
    burst: float = 5.0  # requests at once, after a rest
    suspend: float = 20.0  # seconds, typical


@dataclass
class Account:
    """What the server remembers of one key."""

    tokens: float
    at: float  # when `tokens` was true
    until: float = 0.0  # suspended until
    form: str = ""
    suspensions: int = 0
    refused: int = 0  # requests that came while suspended, the one that caused it included
    admitted: int = 0
    first: float | None = None
    last: float | None = None


class Policy:
    """Decides for each request of a key at an emulated time. Deterministic given seed, keys and times."""

    def __init__(self, limits: Limits | None, seed: int) -> None:
        self._limits = limits
        self._seed = seed
        self.accounts: dict[str, Account] = {}

    def admit(self, key: str, now: float) -> str | None:
        """None when the request may pass, else the form of the refusal."""
        limits = self._limits
        account = self.accounts.setdefault(key, Account(limits.burst if limits else 0.0, now))
        account.first = now if account.first is None else account.first
        account.last = now
        if now < account.until:
            account.refused += 1
            return account.form
        if limits is None:
            account.admitted += 1
            return None
        if account.form:  # a suspension is over
            account.form, account.tokens = "", limits.burst
        else:
            account.tokens = min(limits.burst, account.tokens + (now - account.at) * limits.rate)
        account.at = now
        if account.tokens >= 1:
            account.tokens -= 1
            account.admitted += 1
            return None
        rng = np.random.default_rng([self._seed, account.suspensions])
        self.suspend(key, now, limits.suspend * float(2 ** rng.uniform(-1, 1)), FORMS[account.suspensions % 3])
        account.refused += 1
        return account.form

    def suspend(self, key: str, now: float, seconds: float, form: str) -> None:
        """Refuse the key's requests until `now + seconds`."""
        account = self.accounts.setdefault(key, Account(0.0, now))
        account.until, account.form = now + seconds, form
        account.suspensions += 1


class Spacing:
    """OASIS: one request every `seconds`; a faster one is refused, and the wait counts from the last one served."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def admit(self, now: float) -> bool:
        """Whether a request at `now` (s) keeps the distance; one that does counts."""
        if self._seconds is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True
