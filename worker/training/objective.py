"""The objective of a step and its gradient: hour by hour after attention, so that memory does not hold a whole sequence's hidden layers.

MLX keeps all that is evaluated while it differentiates. Attention needs the whole sequence; everything after it treats each hour alone. That part's
loss and gradient are therefore computed hours by hours on the ring's thread, outside the trace (`ringattn._compute_thread`), and handed
to MLX as one function with a known gradient.
"""

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ringattn._compute_thread import detached_copy, run_untraced
from worker.forecast.model.network import HOURS, Forecaster, ascending, pinball
from worker.training.data import LocalBatch

TOKENS = 4096  # at a time, about: their hidden layers fit a core's caches

_Tree = dict[str, Any]


class Objective:
    """The sum of the pinball losses of a rank's tokens as a function of the model, for `nn.value_and_grad`.

    Args:
        twin: a model of the same shape, whose weights are replaced.
    """

    def __init__(self, twin: Forecaster) -> None:
        self._twin = twin

    def __call__(self, model: Forecaster, local: LocalBatch, key: mx.array) -> mx.array:
        """Return the loss, a scalar.

        Args:
            model: the forecaster.
            local: this rank's part of the sequence.
            key: draws the dropout masks.
        """
        weights = {name: x for name, x in model.trainable_parameters().items() if name != "recall"}
        names, arrays = zip(*tree_flatten(weights), strict=True)
        masks = model.dropout_masks(local.batch, key)
        mx.eval(masks)
        gradients: list[tuple[mx.array, ...]] = []

        @mx.custom_function
        def after_attention(recalled: mx.array, *arrays: mx.array) -> mx.array:
            copies = tree_unflatten([(name, detached_copy(x)) for name, x in zip(names, arrays, strict=True)])
            copied = detached_copy(recalled)
            loss, of_weights, of_recalled = run_untraced(lambda: self._by_hours(copies, copied, local, masks))
            by_name = dict(tree_flatten(of_weights))
            gradients.append((of_recalled, *(by_name[name] for name in names)))
            return loss

        @after_attention.vjp
        def after_attention_vjp(primals: object, cotangent: mx.array, output: object) -> tuple[mx.array, ...]:
            return tuple(cotangent * gradient for gradient in gradients.pop())

        return cast(mx.array, after_attention(model.recall(local.batch), *arrays))

    def _by_hours(
        self, weights: _Tree, recalled: mx.array, local: LocalBatch, masks: list[mx.array] | None
    ) -> tuple[mx.array, _Tree, mx.array]:
        """Return the loss and its gradients with respect to the weights and to what is recalled [24, row, dim]."""
        region = local.batch.of_asked(local.batch.region)
        step = max(1, TOKENS // recalled.shape[1])

        def loss_of(weights: _Tree, recalled: mx.array, hours: slice) -> mx.array:
            self._twin.update(weights)
            x = self._twin.summary(local.batch.features[hours], region, recalled, masks)
            quantiles = ascending(self._twin.head(x))
            return (pinball(quantiles, local.target[hours]) * local.valid[hours]).sum()

        gradient = mx.value_and_grad(loss_of, argnums=(0, 1))
        total, sums, parts = mx.array(0.0), None, []
        for first in range(0, HOURS, step):
            hours = slice(first, first + step)
            loss, (of_weights, of_recalled) = gradient(weights, recalled[hours], hours)
            total, sums = total + loss, of_weights if sums is None else tree_map(mx.add, sums, of_weights)
            mx.eval(total, sums, of_recalled)
            parts.append(of_recalled)
        whole = mx.concatenate(parts)
        mx.eval(whole)
        return total, sums or {}, whole
