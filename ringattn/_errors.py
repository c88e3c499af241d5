"""The errors of ringattn, as one tree.

RingError (RuntimeError)
├── ArgumentError (also ValueError)  an argument breaks a rule; nothing was sent
│   ├── ShapeError                   dimensions of arrays, heads, lengths, segments
│   ├── DTypeError                   unsupported or mixed dtypes
│   ├── LayoutError                  unknown layout, or lengths that do not fit it
│   ├── MismatchError                the ranks of the group were given different calls
│   └── ModelError                   a language model has a part that `ringattn.lm` does not convert
├── TransformError                   called under mx.compile or mx.vmap, which cannot contain a ring
├── KernelError                      a kernel is unknown, not available here, or computes wrong numbers
├── PeerError                        the group is unusable from now on: end the process, start the ring again
│   ├── PeerLost                     a peer closed its connection: it died, or lost another peer
│   └── PeerStalled                  a peer did not answer within the deadline, or never started
└── LaunchError                      local ranks started by `ringattn.launch`
    ├── StartTimeout                 not every rank joined the group in time
    ├── RankFailed                   a rank ended with an error
    └── RunTimeout                   the ranks did not end in time
"""


class RingError(RuntimeError):
    """Base of every error that ringattn raises on purpose."""


class ArgumentError(RingError, ValueError):
    """An argument breaks a rule; every rank of the group gets an error and nothing was sent."""


class ShapeError(ArgumentError):
    """Shapes, heads, lengths or segments break the rule that the message states."""


class DTypeError(ArgumentError):
    """Dtypes are mixed or not among float32, bfloat16 and float16."""


class LayoutError(ArgumentError):
    """The layout is unknown, or local lengths differ from those of the layout."""


class MismatchError(ArgumentError):
    """The ranks were called with different arguments; the message names the field and each rank's value."""


class ModelError(ArgumentError):
    """A language model has a part that the conversion of `ringattn.lm` does not know, or is used in a way that it can't follow."""


class TransformError(RingError):
    """Ring attention was traced by mx.compile or mx.vmap; it evaluates its inputs, so neither can contain it."""


class KernelError(RingError):
    """A block kernel is unknown, not available on this machine, or failed its parity check."""


class PeerError(RingError):
    """A peer is gone. The MLX group cannot be used again: end this process and start the ring again.

    Attributes:
        rank: this process's rank.
        doing: the exchange that failed, e.g. "backward hop 1 of 3, kv".
    """

    def __init__(self, message: str, *, rank: int, doing: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.doing = doing


class PeerLost(PeerError):
    """A connection of the ring was closed: a peer died, or ended because another peer did."""


class PeerStalled(PeerError):
    """A peer did not answer within the deadline: it is stopped, unreachable, far too slow, or was never started."""


class LaunchError(RingError):
    """Base of the errors of `ringattn.launch`."""


class StartTimeout(LaunchError):
    """Not every local rank joined the group before the start-up deadline; all were ended."""


class RankFailed(LaunchError):
    """A local rank ended with an error; the others were ended.

    Attributes:
        rank: the rank that failed.
        returncode: its exit code, or the negative number of the signal that ended it.
    """

    def __init__(self, message: str, *, rank: int, returncode: int) -> None:
        super().__init__(message)
        self.rank = rank
        self.returncode = returncode


class RunTimeout(LaunchError):
    """The local ranks were still running at their deadline; all were ended."""
