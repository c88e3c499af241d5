"""RoPE by runs: mlx's rotation takes one offset, but a rank's tokens are two runs of positions (zigzag), or have a step (striped)."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ringattn.lm.attention import current_mask


def rope_by_runs(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a RoPE class that rotates by the positions of the pass; the caller's offset is not used.

    Args:
        cls: a class whose instances take x [B, H, L, D] and `offset`, an integer or integers [B].
    """

    class RopeByRuns(cls):  # type: ignore[valid-type, misc]
        def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
            return rotated(super().__call__, x, current_mask().runs)

    RopeByRuns.__name__ = RopeByRuns.__qualname__ = cls.__name__
    return RopeByRuns


def rotated(rope: Any, x: mx.array, runs: tuple[range, ...]) -> mx.array:
    """Rotate x [B, H, L, D], whose tokens have the positions of `runs`, by `rope(x, offset=…)`."""
    parts, start = [], 0
    for run in runs:
        part = x[..., start : start + len(run), :]
        start += len(run)
        parts.append(rope(part, offset=run.start) if run.step == 1 or len(run) == 1 else _with_step(rope, part, run))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-2)


def _with_step(rope: Any, x: mx.array, run: range) -> mx.array:
    """Rotate one run whose positions have a step: tokens become the batch, which may have an offset each."""
    batch, heads, length, dim = x.shape
    offsets = mx.tile(mx.arange(run.start, run.stop, run.step, dtype=mx.int32), batch)
    by_token = rope(x.transpose(0, 2, 1, 3).reshape(batch * length, heads, 1, dim), offset=offsets)
    return by_token.reshape(batch, length, heads, dim).transpose(0, 2, 1, 3)
