"""Exact, differentiable ring attention on mlx.distributed: `from ringattn import ring_attention`."""

from ringattn._errors import (
    ArgumentError,
    DTypeError,
    KernelError,
    LaunchError,
    LayoutError,
    MismatchError,
    PeerError,
    PeerLost,
    PeerStalled,
    RankFailed,
    RingError,
    RunTimeout,
    ShapeError,
    StartTimeout,
    TransformError,
)
from ringattn.attention import ring_attention
from ringattn.layout import Layout, weighted_zigzag
from ringattn.load_balance import Shares
from ringattn.process_group import abandon, init
from ringattn.ring import HopTime, trace
from ringattn.sharding import positions, shard, unshard
from ringattn.transport import MlxTransport, Throttled, Transport

__all__ = [
    "ArgumentError",
    "DTypeError",
    "HopTime",
    "KernelError",
    "LaunchError",
    "Layout",
    "LayoutError",
    "MismatchError",
    "MlxTransport",
    "PeerError",
    "PeerLost",
    "PeerStalled",
    "RankFailed",
    "RingError",
    "RunTimeout",
    "ShapeError",
    "Shares",
    "StartTimeout",
    "Throttled",
    "TransformError",
    "Transport",
    "abandon",
    "init",
    "positions",
    "ring_attention",
    "shard",
    "trace",
    "unshard",
    "weighted_zigzag",
]
