"""Policies' weights as this worker has them: broadcast by the coordinator, or asked for, each proved by its sha256."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable

from coordinator.wire.messages import Weights
from ingest.errors import Cancelled
from ingest.lru_cache import LruCache

log = logging.getLogger(__name__)

KEPT = 32  # newest weights
ANSWER_S = 2.0  # without an answer for this long, ask again
LOOK_S = 0.1  # between looks at `cancelled`


class PolicyCache:
    """Thread-safe. `ask(sha256)` sends a request; it must not block."""

    def __init__(self, ask: Callable[[str], None]) -> None:
        self._ask = ask
        self._held: LruCache[bytes] = LruCache(KEPT)
        self._unknown: set[str] = set()  # the coordinator has answered that it does not have them
        self._changed = threading.Condition()

    def receive(self, weights: Weights) -> None:
        """A broadcast or an answer."""
        with self._changed:
            if not weights.data:
                self._unknown.add(weights.sha256)
            elif hashlib.sha256(weights.data).hexdigest() != weights.sha256:
                log.warning("dropped weights %s: their sha256 is another", weights.sha256[:16])
            else:
                self._held.put(weights.sha256, weights.data)
            self._changed.notify_all()

    def get(self, sha256: str, cancelled: threading.Event) -> bytes:
        """The weights of that name; blocks until they have come.

        Cancelled when the lease was taken back, or when the coordinator does not have them: then another try may.
        """
        asked = 0.0
        with self._changed:
            self._unknown.discard(sha256)
            while (data := self._held.get(sha256)) is None:
                if cancelled.is_set() or sha256 in self._unknown:
                    raise Cancelled(f"weights {sha256[:16]} are not to be had")
                if time.monotonic() - asked > ANSWER_S:
                    asked = time.monotonic()
                    self._ask(sha256)
                self._changed.wait(LOOK_S)
            return data
