"""The metal kernel: fused attention for Apple GPUs, as source for `mx.fast.metal_kernel`. Never run on a Mac by this project.

Forward is online softmax with log-sum-exp, backward is FlashAttention-2 (Dao 2023) in two kernels, dQ over keys and dK, dV over
queries: nothing is added up by atomics, so that results have the same bits in every run. Scores never leave the registers. fp32,
bf16 and fp16 inputs are widened to fp32 where they enter threadgroup memory; products and sums are fp32. D of 64, 80, 96, 128 and
256; another D up to 256 is padded with zeros to the next one. Masks are compared on the device, tiles that no query sees are
skipped.
"""

import math
from functools import cache
from importlib import resources
from typing import Any

import mlx.core as mx

from ringattn._errors import KernelError, ShapeError
from ringattn.kernels.base import Block, check
from ringattn.kernels.metal.tiling import DIMS, FORWARD, Masks, Tiling

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
    return resources.files(__package__).joinpath(f"{name}.metal").read_text()


class MetalKernel:
    """Fused kernel for Apple GPUs; KernelError if this process has no Metal device."""

    name = "metal"

    def __init__(self) -> None:
        if not mx.metal.is_available():
            raise KernelError("mlx has no Metal device in this process; it needs an Apple GPU")
        self._kernels: dict[str, Any] = {}

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`.

        Raises:
            ShapeError: if D is over 256.
        """
        check(q, k, v, block)
        batch, heads, q_len, dim = q.shape
        width = padded_dim(dim)
        tiling = FORWARD[width]
        masks = Masks.of(block)
        o, lse = self._call(
            "forward",
            {
                **{name: _padded(x, width) for name, x in (("q", q), ("k", k), ("v", v))},
                "q_mask": mx.array(masks.queries),
                "k_mask": mx.array(masks.keys),
                "q_ranges": mx.array(masks.query_ranges(tiling.own)),
                "k_ranges": mx.array(masks.key_ranges(tiling.streamed)),
                "scale_log2e": mx.array([scale * _LOG2E]),
            },
            {"o": (batch, heads, q_len, width), "lse": (batch, heads, q_len)},
            tiling,
            (-(-q_len // tiling.own), heads, batch),
        )
        return o[..., :dim], lse

    def _call(
        self,
        name: str,
        inputs: dict[str, mx.array],
        outputs: dict[str, tuple[int, ...]],
        tiling: Tiling,
        groups: tuple[int, int, int],
    ) -> list[mx.array]:
        """Launch NAME.metal on `groups` threadgroups."""
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
            template=tiling.template(),
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
