"""Wait for a condition with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

WAIT_S = 90.0  # bound of every wait: reached only when something is broken


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`; AssertionError that names `what` after `WAIT_S`."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return found
