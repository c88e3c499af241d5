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
from ringattn.load_balance import LoadBalancer
from ringattn.process_group import abort, init
from ringattn.ring import HopTime, trace
from ringattn.sharding import positions, shard, unshard
from ringattn.transport import MlxTransport, ThrottledTransport, Transport

__all__ = [
    "ArgumentError",
    "DTypeError",
    "HopTime",
    "KernelError",
    "LaunchError",
    "Layout",
    "LayoutError",
    "LoadBalancer",
    "MismatchError",
    "MlxTransport",
    "PeerError",
    "PeerLost",
    "PeerStalled",
    "RankFailed",
    "RingError",
    "RunTimeout",
    "ShapeError",
    "StartTimeout",
    "ThrottledTransport",
    "TransformError",
    "Transport",
    "abort",
    "init",
    "positions",
    "ring_attention",
    "shard",
    "trace",
    "unshard",
    "weighted_zigzag",
]
