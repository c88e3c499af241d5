"""The loss of a whole sequence and its gradient, from each rank's part: sums over ranks, by the count of all labels.

A mean of the ranks' means is wrong: ranks hold different numbers of labels, and after zigzag a rank may hold none of an
answer's. Here each rank sums over its labels, divides by the count of all, and the parts are added up.
"""

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ringattn._errors import ArgumentError, MismatchError, ShapeError
from ringattn.lm.convert import head, hidden_states, local_tokens, ring_of
from ringattn.transport import transport_of, wait_limit

_ROWS = (32 << 20) // 4  # values of a collective: 32 MiB in float32
_NO_LABEL = "no label counts: all are below 0; leave the batch out"
_LOGITS = 1 << 26  # of a piece of the head: 256 MB in float32


def loss_and_grad(model: nn.Module, tokens: mx.array, labels: mx.array) -> tuple[mx.array, Any]:
    """Return the mean cross entropy over all labels, and its gradient by the trainable parameters; both equal on all ranks.

    Args:
        model: a converted model.
        tokens: integers [B, T], whole and the same on every rank; T is at least the number of ranks.
        labels: integers [B, T], likewise: the token that should follow each position; those below 0 (-100) don't count.

    Returns:
        The loss, float32, and the gradients as `nn.value_and_grad` gives them, for `optimizer.update`. Ranks may hold no label.

    Raises:
        ArgumentError: if no label counts, or if the shapes differ; MismatchError, on every rank, if the ranks' batches differ.
    """
    count = _counted(tokens, labels)
    if count == 0:
        raise ArgumentError(_NO_LABEL)
    parameters = model.trainable_parameters()
    part, grads = nn.value_and_grad(model, lambda: _local_sum(model, tokens, labels) / count)()
    model.update(parameters)  # those of a recomputation have the same values, and hold its memory
    named = _flat(grads)
    own = [part, _digest(tokens, labels), *(g for _, g in named)]
    loss, digests, *summed = sum_over_ranks(model, own, "gradients")
    _compare(model, digests)
    return loss, tree_unflatten([(name, g) for (name, _), g in zip(named, summed, strict=True)])


def loss_of(model: nn.Module, tokens: mx.array, labels: mx.array) -> float:
    """Return the loss alone: see `loss_and_grad`."""
    total, count = summed_losses(model, tokens, labels)
    if count == 0:
        raise ArgumentError(_NO_LABEL)
    return total / count


def summed_losses(model: nn.Module, tokens: mx.array, labels: mx.array) -> tuple[float, int]:
    """Return the cross entropies of all labels, summed, and their count; arguments as for `loss_and_grad`, without a gradient."""
    count = _counted(tokens, labels)
    total, digests = sum_over_ranks(model, [_local_sum(model, tokens, labels), _digest(tokens, labels)], "loss")
    _compare(model, digests)
    return float(np.array(total)), count


def sum_over_ranks(model: nn.Module, arrays: Sequence[mx.array], doing: str) -> list[mx.array]:
    """Return the sums over ranks of arrays that have the same shapes on each, in their dtypes; the same bits on every rank.

    They travel in float32, packed, and in pieces, so that what is held beside them is small.

    Args:
        model: a converted model.
        arrays: this rank's arrays.
        doing: what they are, for errors.

    Returns:
        The sums, evaluated.
    """
    ring = ring_of(model)
    assert ring is not None
    transport = transport_of(ring.group)
    if transport.size() == 1:
        mx.eval(arrays)
        return list(arrays)
    limit = wait_limit(ring.timeout)
    sums: list[mx.array] = []
    for group in _groups(arrays):
        flat = mx.concatenate([x.reshape(-1).astype(mx.float32) for x in group])
        parts = []
        for start in range(0, flat.size, _ROWS):
            piece = mx.contiguous(flat[start : start + _ROWS])
            mx.eval(piece)
            parts += transport.all_sum(piece, f"sum of {doing}").wait(limit)
        ends = list(itertools.accumulate(x.size for x in group))
        cut = mx.split(mx.concatenate(parts), ends[:-1])
        sums += [total.reshape(x.shape).astype(x.dtype) for total, x in zip(cut, group, strict=True)]
        mx.eval(sums)
    return sums


def _groups(arrays: Sequence[mx.array]) -> list[list[mx.array]]:
    """Return the arrays in groups of at most a piece, in order; a larger one is a group of its own."""
    groups: list[list[mx.array]] = []
    size = _ROWS
    for x in arrays:
        if size + x.size > _ROWS:
            groups.append([])
            size = 0
        groups[-1].append(x)
        size += x.size
    return groups


def next_token_labels(batch: mx.array, lengths: mx.array | None = None) -> tuple[mx.array, mx.array]:
    """Return tokens and labels, each [B, T - 1], of a batch of mlx-lm's trainer.

    Args:
        batch: tokens [B, T].
        lengths: [B, 2], of each row the length of the prompt, whose tokens are no labels, and the whole length; None: all count.
    """
    tokens, labels = batch[:, :-1], batch[:, 1:]
    if lengths is not None:
        steps = mx.arange(1, batch.shape[1])
        labels = mx.where((steps >= lengths[:, :1]) & (steps <= lengths[:, 1:]), labels, -100)
    return tokens, labels


def _counted(tokens: mx.array, labels: mx.array) -> int:
    if tokens.shape != labels.shape or tokens.ndim != 2:
        raise ShapeError(f"tokens {tokens.shape} and labels {labels.shape} must both be [B, T], whole on every rank")
    return int(np.count_nonzero(np.array(labels) >= 0))


def _digest(tokens: mx.array, labels: mx.array) -> mx.array:
    """Return three bytes of a digest of the batch and their squares, which sums in float32 keep exact."""
    digest = zlib.crc32(np.array(labels).tobytes(), zlib.crc32(np.array(tokens).tobytes()))
    parts = np.frombuffer(digest.to_bytes(4, "little"), np.uint8)[:3].astype(np.float32)
    return mx.array(np.stack([parts, parts * parts]))


def _compare(model: nn.Module, digests: mx.array) -> None:
    """Compare the ranks' batches: numbers are equal just where the sum of their squares is the square of their sum by n.

    Raises:
        MismatchError: if they differ, on every rank.
    """
    ring = ring_of(model)
    assert ring is not None
    total, squares = np.array(digests).astype(np.int64)
    if (total * total != squares * transport_of(ring.group).size()).any():
        raise MismatchError("the ranks' tokens or labels differ; give the same whole batch on every rank")


def _local_sum(model: nn.Module, tokens: mx.array, labels: mx.array) -> mx.array:
    """Return the cross entropies of this rank's labels, summed, float32; logits are made, and made again, piece by piece."""
    hidden, labels = hidden_states(model, local_tokens(model, tokens)), local_tokens(model, labels)
    batch, length = labels.shape
    vocabulary = _vocabulary(model, hidden)
    pieces = math.ceil(batch * length * vocabulary / _LOGITS)
    if pieces == 1:
        return _head_sum(model, hidden, labels)
    # The head's parameters only: the gradients of a piece by those of the layers would be whole arrays of zeros.
    outside = [(name, x) for name, x in _flat(model.trainable_parameters()) if "layers." not in name]

    def recomputed(hidden: mx.array, labels: mx.array) -> mx.array:
        def piece(parameters: Any, hidden: mx.array) -> mx.array:
            model.update(parameters)
            return _head_sum(model, hidden, labels)

        return mx.checkpoint(piece)(tree_unflatten(outside), hidden)

    cuts = np.linspace(0, length, min(pieces, length) + 1).astype(int).tolist()
    return mx.stack([recomputed(hidden[:, a:b], labels[:, a:b]) for a, b in itertools.pairwise(cuts)]).sum()


def _head_sum(model: nn.Module, hidden: mx.array, labels: mx.array) -> mx.array:
    entropies = nn.losses.cross_entropy(head(model, hidden), mx.maximum(labels, 0))
    return mx.where(labels >= 0, entropies.astype(mx.float32), 0.0).sum()


def _vocabulary(model: nn.Module, hidden: mx.array) -> int:
    return head(model, mx.stop_gradient(hidden[:1, :1])).shape[-1]  # lazy: only its shape is asked for


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    return list(dict(tree_flatten(tree)).items())
