"""Use the metal kernel only where a self-check at first use agrees with the mlx kernel; say why where it does not.

No Mac was available to this project, so that each host proves its own compiler and GPU: once a process for each head dimension,
dtype and with a softcap, forward and backward of a small block with every kind of tile.
"""

import importlib.metadata
import platform
import warnings

import mlx.core as mx

from ringattn._errors import KernelError, ShapeError
from ringattn.kernels.base import Block, Kernel
from ringattn.kernels.metal.kernel import MAX_DIM, padded_dim
from ringattn.kernels.parity import results, worst

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
    max_dim = MAX_DIM

    def __init__(self, metal: Kernel, oracle: Kernel, *, falls_back: bool) -> None:
        self._metal, self._oracle, self._falls_back = metal, oracle, falls_back
        self._chosen: dict[tuple[int, mx.Dtype, bool], Kernel] = {}

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`.

        Raises:
            KernelError: if the self-check fails and nothing may take the kernel's place.
        """
        return self._choose(q, v, softcap).forward(q, k, v, block, scale=scale, softcap=softcap)

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
        softcap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Kernel.backward`.

        Raises:
            KernelError: if the self-check fails and nothing may take the kernel's place.
        """
        return self._choose(q, v, softcap).backward(q, k, v, do, lse, delta, block, scale=scale, softcap=softcap)

    def _choose(self, q: mx.array, v: mx.array, softcap: float | None) -> Kernel:
        key = (max(q.shape[-1], v.shape[-1]), q.dtype, softcap is not None)
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


def self_check(metal: Kernel, oracle: Kernel, dim: int, dtype: mx.Dtype, capped: bool = False) -> str | None:
    """Return None if the kernels agree, with a softcap if `capped`, else what is wrong and how to report it."""
    try:
        padded_dim(dim)
    except ShapeError as error:
        return str(error).removesuffix("; use the mlx kernel")
    report = f"please report it with this: D {dim}, {dtype}, {'softcap, ' if capped else ''}{host_name()}"
    softcap = 2.0 if capped else None
    try:
        got = results(metal, dim, dtype, softcap=softcap)
    except Exception as error:  # whatever Apple's compiler or the driver finds wrong, training goes on
        lines = str(error).strip().splitlines() or [repr(error)]
        wrong = next((line for line in lines if "error:" in line), lines[0])
        return f"the metal kernel does not run on this GPU ({wrong.strip()[:300]}); {report}"
    with mx.stream(mx.cpu):  # in full fp32 on every chip
        wanted = results(oracle, dim, dtype, softcap=softcap)
    output, difference = worst(got, wanted)
    if difference <= ALLOWED:
        return None
    return f"the metal kernel's {output} differs from the mlx kernel's by {difference:.2g}, of {ALLOWED:g} allowed; {report}"


def host_name() -> str:
    """Name the chip, the system and mlx's version, for a report."""
    chip = mx.device_info().get("device_name", platform.machine())
    return f"{chip}, {platform.system()} {platform.mac_ver()[0] or platform.release()}, mlx {importlib.metadata.version('mlx')}"
