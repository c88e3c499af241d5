"""Errors of ringattn, one tree.

RingError (RuntimeError)
├── ArgumentError (also ValueError)  a rule about the arguments is broken; nothing was sent
│   ├── ShapeError                   ranks of arrays, heads, lengths, segments
│   ├── DTypeError                   unsupported or mixed dtypes
│   ├── LayoutError                  unknown layout, or lengths that do not follow it
│   └── MismatchError                the ranks of the group were given different calls
├── TransformError                   called under mx.compile or mx.vmap, which cannot hold a ring
├── KernelError                      a kernel that is unknown, not available here, or wrong
├── PeerError                        the group is unusable from here on: end the process, start the ring again
│   ├── PeerLost                     a peer closed its connection: it died, or gave up on another
│   └── PeerStalled                  a peer did not answer within the deadline, or never started
└── LaunchError                      local ranks started by `ringattn.launch`
    ├── StartTimeout                 not every rank joined the group in time
    ├── RankFailed                   a rank ended with an error
    └── RunTimeout                   the ranks did not end in time
"""

from __future__ import annotations


class RingError(RuntimeError):
    """Base of every error that ringattn raises on purpose."""


class ArgumentError(RingError, ValueError):
    """A rule about the arguments is broken; every rank of the group gets an error and nothing was sent."""


class ShapeError(ArgumentError):
    """Shapes, heads, lengths or segments do not fit the rule that the message states."""


class DTypeError(ArgumentError):
    """Dtypes are mixed or not among float32, bfloat16 and float16."""


class LayoutError(ArgumentError):
    """An unknown layout, or local lengths that are not the ones the layout gives."""


class MismatchError(ArgumentError):
    """The ranks were called with different arguments; the message names the field and each rank's value."""


class TransformError(RingError):
    """Ring attention was traced by mx.compile or mx.vmap; it evaluates its inputs, so neither can hold it."""


class KernelError(RingError):
    """A block kernel that is unknown, not available on this machine, or failed its parity check."""


class PeerError(RingError):
    """A peer is gone. The mlx group cannot be used again: end this process and start the ring anew.

    Attributes: `rank` (this process's rank), `doing` (the exchange that failed, e.g. "backward hop 1 of 3, kv").
    """

    def __init__(self, message: str, *, rank: int, doing: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.doing = doing


class PeerLost(PeerError):
    """A connection of the ring was closed: a peer died, or gave up because another peer did."""


class PeerStalled(PeerError):
    """No answer within the deadline: a peer is stopped, cut off, far too slow, or was never started."""


class LaunchError(RingError):
    """Base of the errors of `ringattn.launch`."""


class StartTimeout(LaunchError):
    """Not every local rank joined the group before the start-up deadline; all were ended."""


class RankFailed(LaunchError):
    """A local rank ended with an error; the others were ended. Attributes: `rank`, `returncode`."""

    def __init__(self, message: str, *, rank: int, returncode: int) -> None:
        super().__init__(message)
        self.rank = rank
        self.returncode = returncode


class RunTimeout(LaunchError):
    """The local ranks were still running at their deadline; all were ended."""
