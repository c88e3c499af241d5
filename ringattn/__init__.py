"""Exact, differentiable ring attention on mlx.distributed: `from ringattn import ring_attention`.

`ringattn.blas` has to come before mlx. So the package itself does not load mlx: each name below does, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ringattn._errors import (
    ArgumentError,
    DTypeError,
    KernelError,
    LaunchError,
    LayoutError,
    MismatchError,
    ModelError,
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
from ringattn.macos import refused_python

if TYPE_CHECKING:
    from ringattn._mesh import Mesh, mesh
    from ringattn.attention import ring_attention
    from ringattn.decode import decode_attention
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
    "Mesh",
    "MismatchError",
    "MlxTransport",
    "ModelError",
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
    "decode_attention",
    "init",
    "mesh",
    "positions",
    "ring_attention",
    "shard",
    "trace",
    "unshard",
    "weighted_zigzag",
]

_HOMES = {  # module → its names
    "_mesh": ("Mesh", "mesh"),
    "attention": ("ring_attention",),
    "decode": ("decode_attention",),
    "layout": ("Layout", "weighted_zigzag"),
    "load_balance": ("LoadBalancer",),
    "process_group": ("abort", "init"),
    "ring": ("HopTime", "trace"),
    "sharding": ("positions", "shard", "unshard"),
    "transport": ("MlxTransport", "ThrottledTransport", "Transport"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # here: it loads the parser of e-mail headers

        return version("ring-attention-energy")
    for home, names in _HOMES.items():
        if name in names:
            if reason := refused_python():
                raise ImportError(f"{__name__}.{name}: {reason}")
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
