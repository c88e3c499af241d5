"""A rank that trains a small model for ten AdamW steps on a sharded sequence: `train.py FOLDER VARIANT…`.

Variants are "plain" and "checkpoint" (mx.checkpoint around the attention); the weights go to FOLDER/VARIANT.npz. The invariant:
the same weights at any number of ranks. Losses are sums over local tokens, gradients are summed over ranks.
"""

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

import ringattn as ra

LENGTH, DIM, HEADS = 53, 16, 4


class Model(nn.Module):
    """One attention layer with GQA between two projections, with absolute positions as features."""

    def __init__(self, checkpoint: bool) -> None:
        super().__init__()
        # A bias of the keys has gradient zero, and AdamW would blow up its rounding noise.
        self.qkv = nn.Linear(DIM, 2 * DIM, bias=False)
        self.out = nn.Linear(DIM, DIM)
        self.attend = mx.checkpoint(self._attend) if checkpoint else self._attend

    def _attend(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        parts = x.reshape(batch, length, -1, DIM // HEADS).transpose(0, 2, 1, 3)
        q, k, v = parts[:, :HEADS], parts[:, HEADS : HEADS + 2], parts[:, HEADS + 2 :]
        o = ra.ring_attention(q, k, v, scale=0.5, mask="causal")
        return o.transpose(0, 2, 1, 3).reshape(batch, length, DIM)

    def __call__(self, x: mx.array, positions: mx.array) -> mx.array:
        x = x + mx.sin(positions[:, None] * 0.1)
        return x + self.out(self.attend(self.qkv(x)))


def train(group: mx.distributed.Group, variant: str) -> None:
    mx.random.seed(0)
    model = Model(variant == "checkpoint")
    x, target = (mx.random.normal((2, LENGTH, DIM)) for _ in range(2))
    x, target, positions = ra.shard(x, 1), ra.shard(target, 1), ra.positions(LENGTH)
    optimizer = optim.AdamW(learning_rate=1e-2)

    def loss(model: Model) -> mx.array:
        return ((model(x, positions) - target) ** 2).sum() / (LENGTH * DIM)

    step = nn.value_and_grad(model, loss)
    for _ in range(10):
        _, grads = step(model)
        flat: list[tuple[str, mx.array]] = [*tree_flatten(grads)]
        packed = mx.concatenate([g.reshape(-1) for _, g in flat])
        packed = mx.distributed.all_sum(packed, group=group)
        ends = np.cumsum([g.size for _, g in flat])[:-1].tolist()
        summed = [p.reshape(g.shape) for p, (_, g) in zip(mx.split(packed, ends), flat, strict=True)]
        optimizer.update(model, tree_unflatten(list(zip((name for name, _ in flat), summed, strict=True))))
        mx.eval(model.parameters(), optimizer.state)
    if group.rank() == 0:
        trained: list[tuple[str, mx.array]] = [*tree_flatten(model.parameters())]
        weights: dict[str, Any] = {name: np.array(w) for name, w in trained}
        np.savez(Path(sys.argv[1]) / f"{variant}.npz", **weights)


def main() -> None:
    group = ra.init()
    for variant in sys.argv[2:]:
        train(group, variant)


main()
