"""A rank that compares converted models with the whole ones: `language_models.py cases.json`; its last line is the report.

A case is {"family", "length"} and perhaps "layout", "check"; its report is [error of the logits, error of the gradients, parameter, error of the loss].
With "lengths" (of each row the prompt's and the whole) it is about the loss: [loss_of against loss_and_grad, error of the gradients,
parameter, error of the loss, digest of loss and gradients, labels on this rank]. With "unlike" the last rank has another label: [error, loss
of a right call after it].
"""

import hashlib
import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

import ringattn as ra
from ringattn.lm import local_tokens, loss_and_grad, loss_of, next_token_labels, shard_model
from ringattn.lm import loss as loss_module
from tests.support import language_models as models


def compare(case: dict, group: mx.distributed.Group) -> list:
    model = models.make(case["family"])
    sequence = models.tokens(case["length"] + 1)
    inputs, labels = sequence[:, :-1], sequence[:, 1:]
    step = nn.value_and_grad(model, lambda *batch: models.summed_loss(model, *batch))
    (loss, logits), grads = step(inputs, labels)
    wanted = dict(models.flat(grads))
    mx.eval(loss, logits, wanted)

    shard_model(model, group, layout=case.get("layout", "zigzag"), check=case.get("check", False))
    (part, got), grads = step(local_tokens(model, inputs), local_tokens(model, labels))
    here = local_tokens(model, logits)
    total = mx.distributed.all_sum(mx.stop_gradient(part), group=group)
    summed = [(name, mx.distributed.all_sum(g, group=group)) for name, g in models.flat(grads)]
    mx.eval(total, summed)
    worst, name = models.worst(summed, wanted)
    return [
        float(abs(got - here).max() / abs(logits).max()),
        worst,
        name,
        abs(total.item() - loss.item()) / loss.item(),
    ]


def compare_loss(case: dict, group: mx.distributed.Group) -> list:
    """Compare `loss_and_grad` with a mean over the counted labels in one process."""
    model = models.make(case["family"])
    tokens, labels = next_token_labels(models.tokens(case["length"] + 1), mx.array(case["lengths"]))

    def mean() -> mx.array:
        entropies = nn.losses.cross_entropy(model(tokens), mx.maximum(labels, 0))
        return mx.where(labels >= 0, entropies, 0).sum() / (labels >= 0).sum()

    loss, grads = nn.value_and_grad(model, mean)()
    wanted = dict(models.flat(grads))
    mx.eval(loss, wanted)
    loss_module._LOGITS = case.get("logits", loss_module._LOGITS)
    loss_module._ROWS = case.get("rows", loss_module._ROWS)
    shard_model(model, group)
    total, grads = loss_and_grad(model, tokens, labels)
    worst, name = models.worst(models.flat(grads), wanted)
    alone = abs(loss_of(model, tokens, labels) - total.item()) / loss.item()
    error = abs(total.item() - loss.item()) / loss.item()
    bits = hashlib.sha256(b"".join(np.array(g).tobytes() for _, g in [("", total), *models.flat(grads)])).hexdigest()
    return [alone, worst, name, error, bits, int(np.count_nonzero(np.array(local_tokens(model, labels)) >= 0))]


def unlike(case: dict, group: mx.distributed.Group) -> list:
    """Give the last rank another label; a right call follows."""
    model = shard_model(models.make(case["family"]), group)
    tokens, labels = next_token_labels(models.tokens(case["length"] + 1))
    other = mx.where(mx.arange(labels.shape[1]) == 7, 5, labels) if group.rank() == group.size() - 1 else labels
    error = ""
    try:
        loss_and_grad(model, tokens, other)
    except ra.MismatchError as mismatch:
        error = str(mismatch)
    return [error, float(np.array(loss_and_grad(model, tokens, labels)[0]))]


def main() -> None:
    group = ra.init()
    cases = json.loads(Path(sys.argv[1]).read_text())
    kinds = [unlike if "unlike" in case else compare_loss if "lengths" in case else compare for case in cases]
    print(json.dumps([kind(case, group) for kind, case in zip(kinds, cases, strict=True)]))


main()
