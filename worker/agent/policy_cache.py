"""Cache of policy weights, broadcast by the coordinator or requested from it, each verified by its SHA-256."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable

from coordinator.wire.messages import Weights
from ingest.errors import Cancelled
from ingest.lru_cache import LruCache

log = logging.getLogger(__name__)

CAPACITY = 32  # policies
ANSWER_S = 2.0  # without an answer for this long, the request is sent again
POLL_S = 0.1  # between checks of `cancelled`


class PolicyCache:
    """Policy weights by SHA-256, least recently used evicted first. Thread-safe.

    Args:
        request: Sends a request for the weights of a SHA-256; must not block.
    """

    def __init__(self, request: Callable[[str], None]) -> None:
        self._request = request
        self._weights: LruCache[bytes] = LruCache(CAPACITY)
        self._unavailable: set[str] = set()  # the coordinator has answered that it does not have them
        self._changed = threading.Condition()

    def receive(self, weights: Weights) -> None:
        """Store a broadcast or an answer; weights with another SHA-256 than their name are dropped."""
        with self._changed:
            if not weights.data:
                self._unavailable.add(weights.sha256)
            elif hashlib.sha256(weights.data).hexdigest() != weights.sha256:
                log.warning("dropped policy %s: its SHA-256 does not match", weights.sha256[:16])
            else:
                self._weights.put(weights.sha256, weights.data)
            self._changed.notify_all()

    def get(self, sha256: str, cancelled: threading.Event) -> bytes:
        """Return the weights of a SHA-256; blocks until they have arrived.

        Raises:
            Cancelled: The lease was cancelled, or the coordinator does not have the weights: a later attempt may succeed.
        """
        requested = 0.0
        with self._changed:
            self._unavailable.discard(sha256)
            while (data := self._weights.get(sha256)) is None:
                if cancelled.is_set():
                    raise Cancelled("the lease was cancelled")
                if sha256 in self._unavailable:
                    raise Cancelled(f"policy {sha256[:16]} is not available from the coordinator")
                if time.monotonic() - requested > ANSWER_S:
                    requested = time.monotonic()
                    self._request(sha256)
                self._changed.wait(POLL_S)
            return data
