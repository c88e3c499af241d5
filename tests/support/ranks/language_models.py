"""A rank that compares converted models with the whole ones: `language_models.py cases.json`; its last line is the report.

A case is {"family", "length", "layout"}; its report [error of the logits, error of the gradients, parameter, error of the loss].
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

sys.path.insert(0, str(Path(__file__).parents[3]))

import ringattn as ra
from ringattn.lm import local_tokens, shard_model
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


def main() -> None:
    group = ra.init()
    print(json.dumps([compare(case, group) for case in json.loads(Path(sys.argv[1]).read_text())]))


main()
