"""An LRU cache bounded by a cost, for what `functools.lru_cache` cannot bound.

`rl.distributed.runner` has its own: `rl` imports no other package of the project.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """Keep the most recently used values whose costs sum to at most `limit`; the newest one always stays.

    Not thread-safe.
    """

    def __init__(self, limit: int, cost: Callable[[Value], int] = lambda value: 1) -> None:
        self._limit, self._cost = limit, cost
        self._values: dict[Hashable, Value] = {}  # least recently used first
        self._total = 0

    def get(self, key: Hashable) -> Value | None:
        """Return the value of `key` and mark it as used; None where there is none."""
        if key not in self._values:
            return None
        value = self._values[key] = self._values.pop(key)
        return value

    def put(self, key: Hashable, value: Value) -> Value:
        """Store and return `value`; evict the least recently used values beyond the limit."""
        if key in self._values:
            self._total -= self._cost(self._values.pop(key))
        self._values[key] = value
        self._total += self._cost(value)
        while self._total > self._limit and len(self._values) > 1:
            self._total -= self._cost(self._values.pop(next(iter(self._values))))
        return value
