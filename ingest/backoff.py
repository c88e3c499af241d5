"""Capped exponential back-off between attempts."""

MAX_DOUBLINGS = 30  # keeps the power finite after any number of failures


def backoff_s(failures: int, first_s: float, max_s: float) -> float:
    """Return the pause after `failures` (1, 2, …) in a row: `first_s` seconds, doubled each time, at most `max_s`."""
    return min(max_s, first_s * 2.0 ** min(max(failures - 1, 0), MAX_DOUBLINGS))
