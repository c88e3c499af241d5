"""File descriptors of this process: raise their limit, and derive how many connections the proxy may hold."""

from __future__ import annotations

import resource
from dataclasses import dataclass

WANTED = 16_384  # descriptors: all connections that the proxy takes, and as many again
RESERVE = 64  # of a low limit, for files, pipes to workers and libzmq
SHARE = 8  # a higher limit reserves one in this many: hosts over ssh have three pipes each


@dataclass(frozen=True)
class DescriptorLimit:
    """The limits of this process on open files."""

    soft: int
    hard: int

    def __str__(self) -> str:
        """Return the limit and where it comes from."""
        return f"{self.soft} open files (hard limit {'none' if self.hard == resource.RLIM_INFINITY else self.hard})"


def wanted_limit(soft: int, hard: int, wanted: int = WANTED) -> int:
    """Return the soft limit to set: `wanted` or as near as the hard limit allows, never less than `soft`."""
    if soft == resource.RLIM_INFINITY:
        return soft
    return max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))


def raise_limit() -> DescriptorLimit:
    """Raise the soft limit on open files towards the hard limit, at most to `WANTED`; return the limits in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted_limit(soft, hard)
    while wanted > soft != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
        except (OSError, ValueError):  # macOS: the kernel's kern.maxfilesperproc may be lower than the hard limit
            wanted //= 2
    return current_limit()


def current_limit() -> DescriptorLimit:
    """Return the limits in force."""
    return DescriptorLimit(*resource.getrlimit(resource.RLIMIT_NOFILE))


def peers_within(soft: int, most: int) -> int:
    """Return how many connections the proxy may hold, `most` at most: each takes two of the descriptors that are not reserved."""
    if soft == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, (soft - max(RESERVE, soft // SHARE)) // 2))
