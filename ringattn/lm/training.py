"""Fine-tune a converted model: mlx-lm's batches, optimizers and checkpoints, with each sequence spread over the ranks.

Every rank has the same weights, sees the same batches and makes the same update, so that the loss curve does not depend on
the number of ranks. The batches are those of mlx_lm.lora with the same data, seed and options.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ringattn._errors import ArgumentError
from ringattn.lm.convert import ring_of
from ringattn.lm.loss import loss_and_grad, next_token_labels, sum_over_ranks, summed_losses
from ringattn.transport import transport_of

OPTIMIZERS = {
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "muon": optimizers.Muon,
    "sgd": optimizers.SGD,
    "adafactor": optimizers.Adafactor,
}
LORA = {"rank": 8, "dropout": 0.0, "scale": 20.0}  # mlx_lm.lora's


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training, with mlx_lm.lora's names and defaults.

    Attributes:
        iters: batches to train on.
        batch_size: sequences of a batch.
        max_seq_length: tokens of a sequence at most; the rest is cut off.
        grad_accumulation_steps: batches of an update.
        steps_per_report: batches between reports of the training loss.
        steps_per_eval: batches between validations.
        val_batches: batches of a validation; -1: all.
        save_every: batches between checkpoints.
        seed: of the order of the batches, new weights and dropout.
    """

    iters: int = 1000
    batch_size: int = 4
    max_seq_length: int = 2048
    grad_accumulation_steps: int = 1
    steps_per_report: int = 10
    steps_per_eval: int = 200
    val_batches: int = 25
    save_every: int = 100
    seed: int = 0


def make_trainable(model: nn.Module, fine_tune_type: str, num_layers: int, *, seed: int = 0) -> None:
    """Freeze a converted model but for what is trained, as mlx_lm.lora does; the same values on every rank.

    Args:
        model: a converted model.
        fine_tune_type: "lora", "dora" (new layers beside the linear ones), or "full".
        num_layers: the last layers, that many; -1: all.
        seed: of the new weights.

    Raises:
        ArgumentError: if the model has fewer layers.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    if num_layers > len(model.layers):
        raise ArgumentError(f"num_layers is {num_layers}, but the model has {len(model.layers)}; use -1 for all")
    mx.random.seed(seed)
    model.freeze()
    if fine_tune_type == "full":
        for layer in model.layers[-max(num_layers, 0) :]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, num_layers, LORA, use_dora=fine_tune_type == "dora")
    model.update(of_first_rank(model, model.trainable_parameters()))


def of_first_rank(model: nn.Module, tree: Any) -> Any:
    """Return a tree of arrays as rank 0 has it; on the others only the shapes and dtypes count.

    Args:
        model: a converted model.
        tree: arrays; integers below 2^24.
    """
    ring = ring_of(model)
    assert ring is not None
    named = sorted(dict(tree_flatten(tree)).items())  # what is loaded from a file comes in any order
    first = transport_of(ring.group).rank() == 0
    shared = sum_over_ranks(model, [x if first else mx.zeros_like(x) for _, x in named], "weights of rank 0")
    return tree_unflatten([(name, x) for (name, _), x in zip(named, shared, strict=True)])


def train(
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    train_set: Any,
    valid_set: Any,
    options: TrainingOptions,
    *,
    done: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    save: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the trainable parameters of a converted model.

    Args:
        model: a converted model, made trainable.
        optimizer: an MLX optimizer.
        train_set: mlx-lm's CacheDataset, the same on every rank.
        valid_set: another, or an empty one.
        options: see TrainingOptions.
        done: batches that an earlier run has trained on: they are skipped.
        report: called on every rank with {"iteration", "train_loss", …} or {"iteration", "val_loss", …}; losses are float.
        save: called on every rank with the batches done so far.

    Raises:
        ArgumentError: if the data has fewer sequences than a batch.
    """
    if len(train_set) < options.batch_size:
        raise ArgumentError(
            f"the data has {len(train_set)} sequences, fewer than a batch of {options.batch_size}; give more, or a smaller batch_size"
        )
    ring = ring_of(model)
    assert ring is not None
    rank, every = transport_of(ring.group).rank(), options.grad_accumulation_steps
    period = _Period(optimizer)
    sums: Any = None
    model.train()
    for it, batch in enumerate(itertools.islice(_batches(train_set, options), done, options.iters), done + 1):
        if len(valid_set) and (it in (1, options.iters) or it % options.steps_per_eval == 0):
            report({"iteration": it, "val_loss": validate(model, valid_set, options)})
            period.start()
        mx.random.seed((options.seed << 32) + (it << 10) + rank)  # dropout, the same after a resumption
        tokens, labels = next_token_labels(*batch)
        if (count := int(np.count_nonzero(np.array(labels) >= 0))) > 0:
            loss, grads = loss_and_grad(model, tokens, labels)
            sums = grads if sums is None else tree_map(mx.add, sums, grads)
            period.add(float(np.array(loss)), count)
        else:
            report({"iteration": it, "left_out": f"no label within {options.max_seq_length} tokens"})
        if it % every == 0 and sums is not None:
            optimizer.update(model, tree_map(lambda g: g / every, sums) if every > 1 else sums)
            sums = None
        mx.eval(model.trainable_parameters(), optimizer.state, sums)
        if it % options.steps_per_report == 0 or it == options.iters:
            report({"iteration": it, **period.end()})
        if it % options.save_every == 0 or it == options.iters:
            save(it)


def validate(model: nn.Module, dataset: Any, options: TrainingOptions) -> float:
    """Return the mean loss over the labels of a dataset's batches.

    Args:
        model: a converted model.
        dataset: mlx-lm's CacheDataset, the same on every rank.
        options: `val_batches`, `batch_size` and `max_seq_length` count.
    """
    order = np.random.get_state()  # the order of the training's batches must not depend on validations
    model.eval()
    total = labels_seen = 0.0
    some = None if options.val_batches == -1 else options.val_batches
    for batch in itertools.islice(_batches(dataset, options, loop=False), some):
        loss, count = summed_losses(model, *next_token_labels(*batch))
        total, labels_seen = total + loss, labels_seen + count
    model.train()
    np.random.set_state(order)
    return total / labels_seen if labels_seen else float("nan")


def _batches(dataset: Any, options: TrainingOptions, *, loop: bool = True) -> Iterator[tuple[mx.array, mx.array]]:
    from mlx_lm.tuner.trainer import iterate_batches

    if loop:
        np.random.seed(options.seed)
    return iterate_batches(dataset, options.batch_size, options.max_seq_length, loop=loop)


class _Period:
    """Sums between two reports."""

    def __init__(self, optimizer: optimizers.Optimizer) -> None:
        self._optimizer, self._losses, self._tokens, self._all_tokens = optimizer, list[float](), 0, 0
        self.start()

    def start(self) -> None:
        self._since, self._seconds = time.perf_counter(), getattr(self, "_seconds", 0.0)

    def add(self, loss: float, count: int) -> None:
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._losses.append(loss)
        self._tokens += count
        self._all_tokens += count

    def end(self) -> dict[str, Any]:
        seconds = max(self._seconds, 1e-9)
        facts = {
            "train_loss": sum(self._losses) / max(1, len(self._losses)),
            "learning_rate": float(self._optimizer.learning_rate),
            "iterations_per_second": len(self._losses) / seconds,
            "tokens_per_second": self._tokens / seconds,
            "trained_tokens": self._all_tokens,
            "peak_memory": mx.get_peak_memory() / 1e9,  # GB, of this rank
        }
        self._losses, self._tokens, self._seconds = [], 0, 0.0
        return facts
