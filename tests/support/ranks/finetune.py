"""A rank that fine-tunes tiny models: `finetune.py cases.json`; its last line has a list a case: the losses, then a digest of the weights.

A case is {"type": "lora" | "full", "answers": whether the answers alone are labels, "plain": by mlx-lm's own trainer,
"stop": stop there and resume in another object from "folder"}.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

import ringattn as ra
from ringattn.lm import checkpoints, shard_model
from ringattn.lm.training import LORA, TrainingOptions, make_trainable, train
from tests.support import language_models as models

STEPS, RATE = 20, 1e-3


def rows(answers: bool) -> list[tuple[list[int], int]]:
    """Sequences of 40 to 60 tokens, and the length of each one's prompt."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 60, 12)
    return [(rng.integers(0, models.VOCABULARY, n).tolist(), int(n) - 4 if answers else 0) for n in lengths]


def plain(case: dict) -> tuple[Any, list[float]]:
    """Train in one process, by mlx-lm's own trainer."""
    from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback
    from mlx_lm.tuner.trainer import train as plain_train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    losses: list[float] = []

    class Keep(TrainingCallback):
        def on_train_loss_report(self, train_info: dict) -> None:
            losses.append(train_info["train_loss"])

    model = models.make("llama sliding")
    mx.random.seed(0)
    model.freeze()
    if case["type"] == "full":
        model.layers[-1].unfreeze()
        model.layers[-2].unfreeze()
    else:
        linear_to_lora_layers(model, 2, LORA)
    np.random.seed(0)  # as mlx_lm.lora
    mx.disable_compile()  # on a CPU each compiled graph starts a C++ compiler
    plain_train(
        model, optimizers.AdamW(learning_rate=RATE), rows(case["answers"]),
        args=TrainingArgs(batch_size=2, iters=STEPS, steps_per_report=1, adapter_file=f"{case['folder']}/plain.safetensors"),
        training_callback=Keep(),
    )  # fmt: skip
    return model, losses


def ringed(case: dict, group: mx.distributed.Group, until: int, *, resume: bool) -> tuple[Any, list[float]]:
    """Train over the ring; with `resume` from the checkpoint, on rank 0 only."""
    model = shard_model(models.make("llama sliding"), group)
    make_trainable(model, case["type"], 2)
    optimizer = optimizers.AdamW(learning_rate=RATE)
    folder = Path(case["folder"])
    done = 0
    if resume:
        own = folder if group.rank() == 0 else Path("none")
        done = checkpoints.resume(checkpoints.read_newest(own, model, optimizer), model, optimizer)
    losses: list[float] = []
    options = TrainingOptions(
        iters=until, batch_size=2, steps_per_report=1, steps_per_eval=7, val_batches=1, save_every=5
    )
    train(
        model, optimizer, rows(case["answers"]), rows(False)[:2], options, done=done,
        report=lambda facts: losses.append(facts["train_loss"]) if "train_loss" in facts else None,
        save=lambda it: checkpoints.save(folder, model, optimizer, it),
    )  # fmt: skip
    return model, losses


def run(case: dict, group: mx.distributed.Group) -> list:
    if case.get("plain"):
        model, losses = plain(case)
    elif stop := case.get("stop"):
        _, losses = ringed(case, group, stop, resume=False)
        model, rest = ringed(case, group, STEPS, resume=True)
        losses += rest
    else:
        model, losses = ringed(case, group, STEPS, resume=False)
    weights = b"".join(np.array(x).tobytes() for _, x in models.flat(model.trainable_parameters()))
    return [*losses, hashlib.sha256(weights).hexdigest()]


def main() -> None:
    group = ra.init()
    print(json.dumps([run(case, group) for case in json.loads(Path(sys.argv[1]).read_text())]))


main()
