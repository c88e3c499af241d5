"""The metal kernel: fused attention for Apple GPUs, as source for `mx.fast.metal_kernel`. Never run on a Mac by this project.

Forward is online softmax with log-sum-exp, backward is FlashAttention-2 (Dao 2023) in two kernels, dQ over keys and dK, dV over
queries: nothing is added up by atomics, so that results have the same bits in every run. Scores never leave the registers. fp32,
bf16 and fp16 inputs are widened to fp32 where they enter threadgroup memory; products and sums are fp32. D of 64, 80, 96, 128 and
256; another D up to 256 is padded with zeros to the next one, as are values of another width than keys. Masks are compared on the device, tiles that no query sees are
skipped.
"""

import math
from functools import cache
from importlib import resources
from typing import Any

import mlx.core as mx

from ringattn._errors import KernelError, ShapeError
from ringattn.kernels.base import Block, check
from ringattn.kernels.masks import Masks
from ringattn.kernels.metal.tiling import (
    BACKWARD_KV,
    BACKWARD_Q,
    CONSTANT_BELOW,
    DIMS,
    FORWARD,
    Tiling,
    in_device_memory,
)

MAX_DIM = DIMS[-1]
_LOG2E = math.log2(math.e)


def padded_dim(dim: int) -> int:
    """Return the head dimension that the kernels use for D.

    Raises:
        ShapeError: if D is over 256.
    """
    for supported in DIMS:
        if dim <= supported:
            return supported
    raise ShapeError(f"the metal kernel takes D up to {MAX_DIM}: got {dim}; use the mlx kernel")


@cache
def source(name: str) -> str:
    """Return the text of NAME.metal of this package."""
    return resources.files(__package__).joinpath(f"{name}.metal").read_text("utf-8")


class MetalKernel:
    """Fused kernel for Apple GPUs; KernelError if this process has no Metal device."""

    name = "metal"

    def __init__(self) -> None:
        if not mx.metal.is_available():
            raise KernelError("mlx has no Metal device in this process; it needs an Apple GPU")
        self._kernels: dict[str, Any] = {}

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`.

        Raises:
            ShapeError: if D is over 256.
        """
        check(q, k, v, block)
        batch, heads, q_len, _ = q.shape
        width = padded_dim(max(q.shape[3], v.shape[3]))
        tiling = FORWARD[width]
        inputs = {
            **{name: _padded(x, width) for name, x in (("q", q), ("k", k), ("v", v))},
            **_rules(block, tiling.own, tiling.streamed, (scale, softcap)),
        }
        o, lse = self._call(
            "forward",
            inputs,
            {"o": (batch, heads, q_len, width), "lse": (batch, heads, q_len)},
            tiling,
            (-(-q_len // tiling.own), heads, batch),
            capped=softcap is not None,
        )
        return o[..., : v.shape[3]], lse

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
            ShapeError: if D is over 256.
        """
        dq = self.query_gradient(q, k, v, do, lse, delta, block, scale=scale, softcap=softcap)
        return dq, *self.key_value_gradients(q, k, v, do, lse, delta, block, scale=scale, softcap=softcap)

    def query_gradient(
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
    ) -> mx.array:
        """Return dq of `Kernel.backward`."""
        check(q, k, v, block)
        batch, heads, q_len, dim = q.shape
        tiling = BACKWARD_Q[padded_dim(max(dim, v.shape[3]))]
        inputs = _saved(q, k, v, do, lse, delta, tiling) | _rules(block, tiling.own, tiling.streamed, (scale, softcap))
        groups = (-(-q_len // tiling.own), heads, batch)
        (dq,) = self._call(
            "backward_q", inputs, {"dq": (*q.shape[:3], tiling.dim)}, tiling, groups, capped=softcap is not None
        )
        return dq[..., :dim]

    def key_value_gradients(
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
    ) -> tuple[mx.array, mx.array]:
        """Return dk and dv of `Kernel.backward`."""
        check(q, k, v, block)
        batch, kv_heads, k_len, dim = k.shape
        tiling = BACKWARD_KV[padded_dim(max(dim, v.shape[3]))]
        inputs = _saved(q, k, v, do, lse, delta, tiling) | _rules(block, tiling.streamed, tiling.own, (scale, softcap))
        shape = (*k.shape[:3], tiling.dim)
        groups = (-(-k_len // tiling.own), kv_heads, batch)
        dk, dv = self._call(
            "backward_kv", inputs, {"dk": shape, "dv": shape}, tiling, groups, capped=softcap is not None
        )
        return dk[..., :dim], dv[..., : v.shape[3]]

    def _call(
        self,
        name: str,
        inputs: dict[str, mx.array],
        outputs: dict[str, tuple[int, ...]],
        tiling: Tiling,
        groups: tuple[int, int, int],
        *,
        capped: bool,
    ) -> list[mx.array]:
        """Launch NAME.metal on `groups` threadgroups; `capped`: with a softcap."""
        if name not in self._kernels:
            self._kernels[name] = mx.fast.metal_kernel(
                name=f"ringattn_{name}",
                input_names=list(inputs),
                output_names=list(outputs),
                source=source(name),
                header=source("common"),
            )
        return self._kernels[name](
            inputs=list(inputs.values()),
            template=[*tiling.template(), ("CAPPED", int(capped))],
            grid=(groups[0] * tiling.threads, *groups[1:]),
            threadgroup=(tiling.threads, 1, 1),
            output_shapes=list(outputs.values()),
            output_dtypes=[mx.float32] * len(outputs),
        )


def _padded(x: mx.array, width: int) -> mx.array:
    """[..., D] -> [..., width], with zeros."""
    if x.shape[-1] == width:
        return x
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def _rules(block: Block, q_rows: int, k_rows: int, factors: tuple[float, float | None]) -> dict[str, mx.array]:
    """Return the masks with ranges of tiles of q_rows queries and k_rows keys, and the factors: scale and softcap."""
    scale, softcap = factors
    masks = Masks.of(block)
    return {
        "q_mask": mx.array(in_device_memory(masks.queries)),
        "k_mask": mx.array(in_device_memory(masks.keys)),
        "q_ranges": mx.array(in_device_memory(masks.query_ranges(q_rows))),
        "k_ranges": mx.array(in_device_memory(masks.key_ranges(k_rows))),
        "scales": mx.array([scale, scale * _LOG2E, (softcap or 0.0) * _LOG2E]),
    }


def _saved(
    q: mx.array, k: mx.array, v: mx.array, do: mx.array, lse: mx.array, delta: mx.array, tiling: Tiling
) -> dict[str, mx.array]:
    """Return what a backward kernel reads beside the rules."""
    return {
        **{name: _padded(x, tiling.dim) for name, x in (("q", q), ("k", k), ("v", v), ("dout", do))},
        **{name: _in_device_memory(x.astype(mx.float32)) for name, x in (("lse", lse), ("delta", delta))},
    }


def _in_device_memory(x: mx.array) -> mx.array:
    """Return an array of at least 8 elements, which a kernel reads by a flat index."""
    missing = CONSTANT_BELOW - x.size
    return x if missing <= 0 else mx.pad(x.reshape(-1), (0, missing))
