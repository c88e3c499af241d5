"""Use the metal kernel only where a self-check at first use agrees with the mlx kernel; say why where it does not.

No Mac was available to this project, so that each host proves its own compiler and GPU: once a process for each head dimension and
dtype, forward and backward of a small block with every kind of tile.
"""

import importlib.metadata
import platform
import warnings

import mlx.core as mx
import numpy as np

from ringattn._errors import KernelError, ShapeError
from ringattn.kernels.base import Block, Kernel
from ringattn.kernels.metal.kernel import padded_dim

ALLOWED = 1e-4
"""Difference from the mlx kernel, for outputs of about 1: both compute in fp32."""


class CheckedKernel:
    """The metal kernel behind its self-check.

    Args:
        metal: the kernel to check.
        oracle: the kernel to compare with.
        falls_back: whether the oracle computes, after one warning, what `metal` can't; else KernelError is raised.
    """

    name = "metal"

    def __init__(self, metal: Kernel, oracle: Kernel, *, falls_back: bool) -> None:
        self._metal, self._oracle, self._falls_back = metal, oracle, falls_back
        self._chosen: dict[tuple[int, mx.Dtype], Kernel] = {}

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`.

        Raises:
            KernelError: if the self-check fails and nothing may take the kernel's place.
        """
        return self._choose(q).forward(q, k, v, block, scale=scale)

    def backward(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        do: mx.array,
        lse: mx.array,
        delta: mx.array,
        block: Block,
        *,
        scale: float,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Kernel.backward`.

        Raises:
            KernelError: if the self-check fails and nothing may take the kernel's place.
        """
        return self._choose(q).backward(q, k, v, do, lse, delta, block, scale=scale)

    def _choose(self, q: mx.array) -> Kernel:
        key = (q.shape[-1], q.dtype)
        if key not in self._chosen:
            reason = self_check(self._metal, self._oracle, *key)
            if reason is None:
                self._chosen[key] = self._metal
            elif not self._falls_back:
                raise KernelError(f"{reason}; unset RINGATTN_KERNEL, or set it to mlx")
            else:
                warnings.warn(f"ringattn: {reason}; the mlx kernel is used instead", RuntimeWarning, stacklevel=3)
                self._chosen[key] = self._oracle
        return self._chosen[key]


def self_check(metal: Kernel, oracle: Kernel, dim: int, dtype: mx.Dtype) -> str | None:
    """Return None if the kernels agree, else what is wrong and how to report it."""
    try:
        padded_dim(dim)
    except ShapeError as error:
        return str(error).removesuffix("; use the mlx kernel")
    report = f"please report it with this: D {dim}, {dtype}, {_host()}"
    try:
        got = _results(metal, dim, dtype)
    except Exception as error:  # whatever Apple's compiler or the driver finds wrong, training goes on
        lines = str(error).strip().splitlines() or [repr(error)]
        wrong = next((line for line in lines if "error:" in line), lines[0])
        return f"the metal kernel does not run on this GPU ({wrong.strip()[:300]}); {report}"
    with mx.stream(mx.cpu):  # in full fp32 on every chip
        wanted = _results(oracle, dim, dtype)
    errors = {name: float(np.abs(got[name] - wanted[name]).max()) for name in wanted}
    worst = max(errors, key=lambda name: errors[name] if np.isfinite(errors[name]) else np.inf)
    if errors[worst] <= ALLOWED:
        return None
    return f"the metal kernel's {worst} differs from the mlx kernel's by {errors[worst]:.2g}, of {ALLOWED:g} allowed; {report}"


def _results(kernel: Kernel, dim: int, dtype: mx.Dtype) -> dict[str, np.ndarray]:
    """Return outputs and gradients of a block with hidden, full and mixed tiles, odd lengths and two heads a kv head."""
    rng = np.random.default_rng(0)
    q, do = (mx.array(rng.standard_normal((1, 2, 67, dim)), dtype=dtype) for _ in range(2))
    k, v = (mx.array(rng.standard_normal((1, 1, 203, dim)), dtype=dtype) for _ in range(2))
    block = Block(np.arange(67, dtype=np.int32) + 72, np.arange(203, dtype=np.int32), causal=True, window=100)
    scale = dim**-0.5
    o, lse = kernel.forward(q, k, v, block, scale=scale)
    grads = kernel.backward(q, k, v, do, lse, (do * o).sum(axis=-1), block, scale=scale)
    return {name: np.array(x) for name, x in zip(("o", "lse", "dq", "dk", "dv"), (o, lse, *grads), strict=True)}


def _host() -> str:
    """Name the chip, the system and mlx's version, for a report."""
    chip = mx.device_info().get("device_name", platform.machine())
    return f"{chip}, {platform.system()} {platform.mac_ver()[0] or platform.release()}, mlx {importlib.metadata.version('mlx')}"
