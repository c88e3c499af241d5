"""EIA's rate limit as a deterministic state machine: a token bucket a key, and a suspension of a key that empties it.

The published figures are 9,000 requests an hour (2.5/s) sustained and bursts under 5 a second. Here a bucket of `burst`
tokens (5) fills at `rate` tokens a second (2.5) by the emulated clock. A request that finds less than one token suspends
the key for a drawn time between half and twice `suspend` seconds (so seconds to minutes). Requests during the suspension
are refused and do not make it longer. Afterwards the bucket is full again. Each suspension refuses in one of the three
forms that were seen: a 403, a 429, an HTML notice.
"""

from dataclasses import dataclass

import numpy as np

FORMS = ("403", "429", "html")


@dataclass(frozen=True)
class Limits:
    """State what the server allows a key."""

    rate: float = 2.5  # requests a second, sustained
    burst: float = 5.0  # requests at once, after a rest
    suspend: float = 20.0  # seconds, typical


@dataclass
class Account:
    """Hold the server's state of one key; times are emulated seconds."""

    tokens: float = 0.0
    at: float = 0.0  # time at which `tokens` was valid
    until: float = 0.0  # end of the suspension
    form: str = ""  # of the suspension; "" while there is none
    suspensions: int = 0
    refused: int = 0  # requests that came during a suspension, the one that caused it included
    first: float | None = None  # time of the first request
    last: float | None = None


class Policy:
    """Admit or refuse each request of a key at an emulated time. Deterministic given seed, keys and times."""

    def __init__(self, limits: Limits | None, seed: int) -> None:
        """Start with no accounts; None for `limits` admits everything but suspended keys."""
        self._limits = limits
        self._seed = seed
        self.accounts: dict[str, Account] = {}

    def admit(self, key: str, now: float) -> str | None:
        """Return None when the request may pass, else the form of the refusal."""
        limits = self._limits
        account = self.accounts.setdefault(key, Account(limits.burst if limits else 0.0, at=now, first=now))
        account.last = now
        if now < account.until:
            account.refused += 1
            return account.form
        if limits is None:
            return None
        if account.form:  # a suspension is over
            account.form, account.tokens = "", limits.burst
        account.tokens = min(limits.burst, account.tokens + (now - account.at) * limits.rate)
        account.at = now
        if account.tokens >= 1:
            account.tokens -= 1
            return None
        rng = np.random.default_rng([self._seed, account.suspensions])
        self.suspend(key, now, limits.suspend * float(2 ** rng.uniform(-1, 1)), FORMS[account.suspensions % 3])
        account.refused += 1
        return account.form

    def suspend(self, key: str, now: float, seconds: float, form: str) -> None:
        """Refuse the requests of a key that has an account, until `now + seconds`."""
        account = self.accounts[key]
        account.until, account.form = now + seconds, form
        account.suspensions += 1


class Spacing:
    """OASIS's rate limit: one request every `seconds`. A faster one is refused; the wait counts from the last one served."""

    def __init__(self, seconds: float | None) -> None:
        """Start with no request served; None admits everything."""
        self._seconds = seconds
        self._last = float("-inf")

    def admit(self, now: float) -> bool:
        """Return whether a request at `now` (s) keeps the distance; one that does counts as served."""
        if self._seconds is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True
