"""Block-attention kernels behind one interface: `(q, k, v, block) -> (o, lse)` and its backward.

Four kernels implement it. `reference` is plain softmax and the oracle; `mlx` is tiled MLX, portable to GPUs and CPUs;
`native` is fused C for CPUs; `metal` is fused for Apple GPUs. `select()` chooses one, `available()` lists which can run.
"""

import os
from collections.abc import Callable

import mlx.core as mx

from ringattn._errors import KernelError, ShapeError
from ringattn.kernels.base import Block, Kernel
from ringattn.kernels.metal import CheckedKernel, MetalKernel
from ringattn.kernels.mlx_tiled import MlxKernel
from ringattn.kernels.native import NativeKernel
from ringattn.kernels.reference import ReferenceKernel

__all__ = ["Block", "Kernel", "available", "select", "select_for"]

_KERNELS: dict[str, Callable[[], Kernel]] = {
    "native": NativeKernel,
    "metal": lambda: CheckedKernel(MetalKernel(), MlxKernel(), falls_back=False),
    "mlx": MlxKernel,
    "reference": ReferenceKernel,
}
_DEFAULT_ON_GPU = "default on a GPU"
"""Not a name to select: metal, and mlx where its self-check fails."""
_made: dict[str, Kernel] = {}


def _make(name: str) -> Kernel:
    if name not in _made:
        _made[name] = _KERNELS[name]()
    return _made[name]


def _why_not(name: str) -> str | None:
    try:
        _make(name)
    except KernelError as error:
        return str(error)
    return None


def available() -> dict[str, str | None]:
    """Map every kernel's name to None if it can run in this process, else to the reason and the remedy."""
    return {name: _why_not(name) for name in _KERNELS}


def select(name: str | None = None, device: mx.Device | None = None) -> Kernel:
    """Return a kernel: `name`, else the environment variable RINGATTN_KERNEL, else the best one.

    The best one is native on a CPU, metal on an Apple GPU, else mlx. Metal checks itself at first use of a head dimension: where that
    fails, mlx is used instead, with one warning, unless metal was asked for by name.

    Args:
        name: "native", "metal", "mlx" or "reference".
        device: where it runs; None: MLX's default device.

    Raises:
        KernelError: if the kernel cannot run; the message lists those that can, and why the others cannot.
    """
    wanted = name or os.environ.get("RINGATTN_KERNEL")
    if wanted is None:
        return _best((device or mx.default_device()).type == mx.cpu)
    reason = _why_not(wanted) if wanted in _KERNELS else "no kernel has this name"
    if reason is not None:
        listing = "; ".join(f"{n}: {why or 'usable'}" for n, why in available().items())
        raise KernelError(
            f"kernel {wanted!r} cannot be used: {reason}. Set RINGATTN_KERNEL to one that can ({listing})"
        )
    return _make(wanted)


def select_for(kernel: str | Kernel | None, head_dim: int) -> Kernel:
    """Return the kernel of a call: as `select`, but mlx where the best one does not take so large a head dimension.

    Args:
        kernel: a name, a kernel, or None.
        head_dim: head dimension of the call.

    Raises:
        ShapeError: if a kernel that was asked for, by name or in the environment, does not take it.
        KernelError: if it is no kernel.
    """
    if kernel is not None and not isinstance(kernel, str):
        if not (callable(getattr(kernel, "forward", None)) and callable(getattr(kernel, "backward", None))):
            raise KernelError(f"kernel is {type(kernel).__name__}; use a name of {list(_KERNELS)}, a Kernel, or None")
        return kernel
    chosen = select(kernel)
    limit = getattr(chosen, "max_dim", None)
    if limit is None or head_dim <= limit:
        return chosen
    if kernel is None and not os.environ.get("RINGATTN_KERNEL"):
        return _make("mlx")
    raise ShapeError(
        f'the {chosen.name} kernel takes head dimensions up to {limit}, not {head_dim}: use kernel="mlx", or name none, '
        "here and in RINGATTN_KERNEL"
    )


def _best(on_cpu: bool) -> Kernel:
    if on_cpu or _why_not("metal") is not None:
        return _make("native" if on_cpu and _why_not("native") is None else "mlx")
    if _DEFAULT_ON_GPU not in _made:
        _made[_DEFAULT_ON_GPU] = CheckedKernel(MetalKernel(), _make("mlx"), falls_back=True)
    return _made[_DEFAULT_ON_GPU]
