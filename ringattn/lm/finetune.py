"""Fine-tune a model with sequences that are spread over the ranks: `python -m ringattn.launch -n 2 -m ringattn.lm.finetune --model DIR --data FILE`.

On several hosts: `mlx.launch --hostfile H --backend ring` with this module. Options that mlx_lm.lora has too are called as there,
with its defaults. Rank 0 reports, and writes the checkpoints, which `mlx_lm.generate --adapter-path` reads; --resume continues.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringattn._errors import PeerError, RingError
from ringattn.lm import checkpoints
from ringattn.lm._command import USAGE, need_mlx_lm, refused, together
from ringattn.lm.load import load
from ringattn.lm.training import LORA, OPTIMIZERS, TrainingOptions, make_trainable, train
from ringattn.process_group import EXIT_BROKEN, abort, init

OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {"type": Path, "required": True, "help": "folder of a model in mlx-lm's format; on every host"},
    "--data": {
        "type": Path, "required": True,
        "help": "file of JSON lines, or folder of train.jsonl and perhaps valid.jsonl, in mlx-lm's forms (text, messages, or prompt and completion); on every host",
    },
    "--fine-tune-type": {"choices": ["lora", "dora", "full"], "default": "lora", "help": "what is trained"},
    "--optimizer": {"choices": list(OPTIMIZERS), "default": "adam", "help": "optimizer"},
    "--mask-prompt": {"action": "store_true", "help": "count the answer's tokens only, not the prompt's"},
    "--num-layers": {"type": int, "default": 16, "help": "layers to train, from the last; -1: all"},
    "--batch-size": {"type": int, "default": 4, "help": "sequences of a batch"},
    "--iters": {"type": int, "default": 1000, "help": "batches to train on"},
    "--val-batches": {"type": int, "default": 25, "help": "batches of a validation; -1: all"},
    "--learning-rate": {"type": float, "default": 1e-5, "help": "learning rate"},
    "--steps-per-report": {"type": int, "default": 10, "help": "batches between reports"},
    "--steps-per-eval": {"type": int, "default": 200, "help": "batches between validations"},
    "--grad-accumulation-steps": {"type": int, "default": 1, "help": "batches of an update"},
    "--resume-adapter-file": {"type": Path, "help": "start from these weights; on every host"},
    "--resume": {"action": "store_true", "help": "continue from the newest checkpoint in --adapter-path, with the options of before"},
    "--adapter-path": {"type": Path, "default": Path("adapters"), "help": "folder of the checkpoints; on rank 0's host"},
    "--save-every": {"type": int, "default": 100, "help": "batches between checkpoints"},
    "--max-seq-length": {"type": int, "default": 2048, "help": "tokens of a sequence, over all ranks; the rest is cut off"},
    "--grad-checkpoint": {"action": "store_true", "help": "compute each layer again in the backward pass, which saves memory"},
    "--seed": {"type": int, "default": 0, "help": "seed of the order, new weights and dropout"},
    "--timeout": {"type": float, "help": "seconds that a rank may be silent; default: RINGATTN_TIMEOUT, else 60"},
}  # fmt: skip
_POSITIVE = ("batch_size", "iters", "steps_per_report", "steps_per_eval", "grad_accumulation_steps", "save_every")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 wrong arguments, 75 a rank was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m ringattn.lm.finetune",
        description="Fine-tune a model with sequences that are spread over the ranks.",
        epilog="example: python -m ringattn.launch -n 2 -m ringattn.lm.finetune --model models/llama --data books.jsonl",
    )
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **settings)
    options = parser.parse_args(argv)
    for name in _POSITIVE:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    need_mlx_lm("finetune")
    try:
        _fine_tune(options)
    except PeerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        abort(EXIT_BROKEN)
    except (RingError, OSError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return USAGE
    return 0


def read_data(path: Path, tokenizer: Any, *, mask_prompt: bool) -> tuple[Any, Any]:
    """Return training and validation data as mlx-lm's CacheDatasets; the latter is empty where there is none.

    Args:
        path: a file of JSON lines, or a folder of train.jsonl and perhaps valid.jsonl.
        tokenizer: mlx-lm's.
        mask_prompt: whether the prompt's tokens are no labels.

    Raises:
        ArgumentError: if there is no data, or a line is not in one of mlx-lm's forms.
    """  # noqa: DOC501  # the ValueErrors are caught here
    from mlx_lm.tuner.datasets import CacheDataset, create_dataset

    sets = []
    for name in ("train", "valid"):
        file = path / f"{name}.jsonl" if path.is_dir() else path
        if name == "valid" and (file == path or not file.is_file()):
            sets.append(CacheDataset([]))
            continue
        with refused(f"{file}", "give JSON lines in mlx-lm's forms with --data, on every host"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            if not rows:
                raise ValueError("it is empty")
            for number, row in enumerate(rows, 1):
                _check_row(row, rows[0], number)
            sets.append(CacheDataset(create_dataset(rows, tokenizer, argparse.Namespace(mask_prompt=mask_prompt))))
    return sets[0], sets[1]


def _check_row(row: object, first: dict[str, Any], number: int) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"example {number} is no JSON object")
    for name, kind in (("text", str), ("messages", list), ("prompt", str), ("completion", str)):
        if name in first and not isinstance(row.get(name), kind):
            raise ValueError(f"example {number} has no {name!r}, or not as {'text' if kind is str else 'a list'}")


def _fine_tune(options: argparse.Namespace) -> None:
    from mlx_lm.tuner.trainer import grad_checkpoint

    group = init()

    def own() -> tuple[Any, Any, Any]:
        model, tokenizer = load(options.model, group, timeout=options.timeout)
        sets = read_data(options.data, tokenizer, mask_prompt=options.mask_prompt)
        make_trainable(model, options.fine_tune_type, options.num_layers, seed=options.seed)
        if (weights := options.resume_adapter_file) is not None:
            with refused(f"{weights}: the weights cannot be loaded", "name a file of this model's adapters"):
                model.load_weights(str(weights), strict=False)
        return model, *sets

    model, train_set, valid_set = together("finetune", own, group, options.timeout)
    first = checkpoints.is_first_rank(model)
    if options.grad_checkpoint:
        grad_checkpoint(model.layers[0])
    optimizer = OPTIMIZERS[options.optimizer](learning_rate=options.learning_rate)
    done = 0
    if options.resume:
        parts = together(
            "finetune",
            lambda: checkpoints.read_newest(options.adapter_path, model, optimizer),
            group,
            options.timeout,
        )
        done = checkpoints.resume(parts, model, optimizer)
    if first and done:
        print(f"resuming after batch {done}", flush=True)

    def write_config() -> None:
        if first:
            checkpoints.write_config(options.adapter_path, _config(options))

    together("finetune", write_config, group, options.timeout)

    began = time.monotonic()
    train(
        model, optimizer, train_set, valid_set,
        TrainingOptions(**{name: getattr(options, name) for name in TrainingOptions.__dataclass_fields__}),
        done=done,
        report=lambda facts: print(_line(facts), flush=True) if first else None,
        save=lambda iteration: checkpoints.save(options.adapter_path, model, optimizer, iteration),
    )  # fmt: skip
    if first:
        if options.fine_tune_type == "full":
            checkpoints.write_model(options.adapter_path, options.model, model)
        print(f"{options.adapter_path}: trained in {time.monotonic() - began:.0f} s", flush=True)


def _config(options: argparse.Namespace) -> dict[str, Any]:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {**values, "lora_parameters": None if options.fine_tune_type == "full" else LORA}


def _line(facts: dict[str, Any]) -> str:
    """Return a report as a line of mlx_lm.lora's form."""
    if "left_out" in facts:
        return f"Iter {facts['iteration']}: left out, {facts['left_out']}"
    if "val_loss" in facts:
        return f"Iter {facts['iteration']}: Val loss {facts['val_loss']:.3f}"
    return (
        f"Iter {facts['iteration']}: Train loss {facts['train_loss']:.6g}, Learning Rate {facts['learning_rate']:.3e}, "
        f"It/sec {facts['iterations_per_second']:.3f}, Tokens/sec {facts['tokens_per_second']:.3f}, "
        f"Trained Tokens {facts['trained_tokens']}, Peak mem {facts['peak_memory']:.3f} GB"
    )


if __name__ == "__main__":
    sys.exit(main())
