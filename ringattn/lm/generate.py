"""Generate text from a prompt that is spread over the ranks: `python -m ringattn.launch -n 2 -m ringattn.lm.generate --model DIR --prompt-file FILE`.

On several hosts: `mlx.launch --hostfile H --backend ring` with this module. Options that mlx_lm.generate has too are called as
there. Rank 0 writes the text to stdout as it comes; what was chosen, progress and speeds go to stderr.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ringattn import kernels
from ringattn._errors import ArgumentError, PeerError, RingError
from ringattn.lm._command import USAGE, need_mlx_lm, refused, together
from ringattn.lm.cache import ShardedCache, make_cache
from ringattn.lm.generation import PREFILL_STEP_SIZE, model_digest, prefill, stream_generate
from ringattn.lm.load import load
from ringattn.process_group import EXIT_BROKEN, abort, init

OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {"type": Path, "required": True, "help": "folder of a model in mlx-lm's format; on every host"},
    "--prompt": {"help": "text to continue or to answer"},
    "--prompt-file": {"type": Path, "help": "file with the text, UTF-8; on every host"},
    "--system-prompt": {"help": "system prompt of the chat template"},
    "--ignore-chat-template": {"action": "store_true", "help": "take the prompt as it is"},
    "--extra-eos-token": {"nargs": "+", "default": [], "help": "more tokens that end the text"},
    "--max-tokens": {"type": int, "default": 100, "help": "tokens to generate at most"},
    "--temp": {"type": float, "default": 0.0, "help": "temperature; 0 takes the most likely token"},
    "--top-p": {"type": float, "default": 1.0, "help": "share of probability to choose from"},
    "--min-p": {"type": float, "default": 0.0, "help": "least probability, as a share of the largest"},
    "--top-k": {"type": int, "default": 0, "help": "number of tokens to choose from; 0: all"},
    "--seed": {"type": int, "help": "seed of the choice"},
    "--prefill-step-size": {
        "type": int, "default": PREFILL_STEP_SIZE, "help": "tokens of a chunk of the prompt, over all ranks",
    },
    "--prompt-cache-file": {
        "type": Path,
        "help": "folder that keeps the prompt's keys and values, a file a rank; they are not computed again for a prompt that begins alike",
    },
    "--timeout": {"type": float, "help": "seconds that a rank may be silent; default: RINGATTN_TIMEOUT, else 60"},
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A model, its prompt and its cache, ready to generate."""

    model: nn.Module
    tokenizer: Any
    tokens: list[int]
    cache: ShardedCache
    say: Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 wrong arguments, 75 a rank was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m ringattn.lm.generate",
        description="Generate text from a prompt that is spread over the ranks.",
        epilog="example: python -m ringattn.launch -n 2 -m ringattn.lm.generate --model models/llama --prompt-file book.txt",
    )
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **({"default": None} | settings))
    options = parser.parse_args(argv)
    if (options.prompt is None) == (options.prompt_file is None):
        parser.error("give one of --prompt and --prompt-file")
    if min(options.max_tokens, options.prefill_step_size) < 1:
        parser.error("--max-tokens and --prefill-step-size must be 1 or more")
    need_mlx_lm("generate")
    try:
        _generate(_prepared(options), options)
    except PeerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        abort(EXIT_BROKEN)
    except (RingError, OSError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return USAGE
    return 0


def _prepared(options: argparse.Namespace) -> Run:
    group = init()

    def own() -> tuple[nn.Module, Any, list[int], ShardedCache]:
        prompt = options.prompt if options.prompt_file is None else _read_prompt(options.prompt_file)
        model, tokenizer = load(options.model, group, timeout=options.timeout)
        for token in options.extra_eos_token:
            tokenizer.add_eos_token(token)
        tokens = encoded(tokenizer, prompt, options.system_prompt, ignore_template=options.ignore_chat_template)
        folder, cache = options.prompt_cache_file, make_cache(model)
        if folder is not None and folder.is_dir():
            cache = ShardedCache.load(folder, like=cache, model=model_digest(model), prompt=tokens)
        return model, tokenizer, tokens, cache

    model, tokenizer, tokens, cache = together("generate", own, group, options.timeout)

    def say(line: str) -> None:
        if group.rank() == 0:
            print(line, file=sys.stderr, flush=True)

    return Run(model, tokenizer, tokens, cache, say)


def _read_prompt(path: Path) -> str:
    with refused(f"{path} cannot be read", "name a text file in UTF-8 with --prompt-file, on every host"):
        return path.read_text(encoding="utf-8")


def encoded(tokenizer: Any, prompt: str, system_prompt: str | None, *, ignore_template: bool) -> list[int]:
    """Return a prompt's tokens, in the tokenizer's chat template where it has one, as mlx_lm.generate does.

    Args:
        tokenizer: mlx-lm's.
        prompt: the text.
        system_prompt: of the template, or None.
        ignore_template: whether to take the text as it is.

    Raises:
        ArgumentError: if nothing remains of the prompt.
    """
    templated = tokenizer.has_chat_template and not ignore_template
    if templated:
        messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        messages.append({"role": "user", "content": prompt})
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(prompt, add_special_tokens=not templated)
    if not tokens:
        raise ArgumentError("the prompt has no tokens; give some text")
    return list(tokens)


def _generate(run: Run, options: argparse.Namespace) -> None:
    from mlx_lm.sample_utils import make_sampler

    cache, tokens, say = run.cache, run.tokens, run.say
    size = cache.size
    kernel = kernels.select()
    say(
        f"{size} {'rank' if size == 1 else 'ranks'}, {kernel.name} kernel{_detail(kernel)}; prompt of {len(tokens)} tokens in chunks of "
        f"{options.prefill_step_size}, each cut over the ranks in the zigzag layout"
    )
    if cache.tokens:
        say(f"{options.prompt_cache_file}: keys and values of {cache.tokens} tokens were loaded")
    if options.seed is not None:
        mx.random.seed(options.seed)
    # All but the last token: its logits are the first choice.
    new, began = tokens[cache.tokens : -1], time.perf_counter()
    if new:
        prefill(
            run.model, new, cache, prefill_step_size=options.prefill_step_size,
            prompt_progress_callback=_progress(say, len(new)),
        )  # fmt: skip
        mx.eval([layer.state for layer in cache])
        say(f"prefill: {len(new)} tokens in {time.perf_counter() - began:.1f} s")
    if options.prompt_cache_file is not None and new:

        def save() -> None:
            cache.save(options.prompt_cache_file, model=model_digest(run.model), prompt=tokens[: cache.tokens])

        together("generate", save, cache.transport, options.timeout)
    held = cache.held()
    say(
        f"cache: {cache.nbytes / 1e6:.1f} MB on rank 0; tokens a rank {', '.join(map(str, held))}, "
        f"at most {max(held) / max(1, cache.tokens):.2%} of the context (1/{size} is {1 / size:.2%})"
    )
    sampler = make_sampler(options.temp, top_p=options.top_p, min_p=options.min_p, top_k=options.top_k)
    last = None
    for last in stream_generate(
        run.model, run.tokenizer, tokens[-1:], max_tokens=options.max_tokens, sampler=sampler, prompt_cache=cache
    ):
        if cache.rank == 0:
            print(last.text, end="", flush=True)
    if cache.rank == 0:
        print(flush=True)
    if last is not None:
        say(
            f"generation: {last.generation_tokens} tokens, {last.generation_tps:.2f} a second, ended by "
            f"{'end of text' if last.finish_reason == 'stop' else '--max-tokens'}; peak memory {last.peak_memory:.3f} GB on rank 0"
        )


def _detail(kernel: kernels.Kernel) -> str:
    isa = getattr(kernel, "isa", "")
    return f" ({isa})" if isa else ""


def _progress(say: Callable[[str], None], total: int) -> Callable[[int, int], None]:
    """Return a callback that says each tenth of the prompt."""
    tenths = 0

    def callback(done: int, _: int) -> None:
        nonlocal tenths
        if done < total and done * 10 // total > tenths:
            tenths = done * 10 // total
            say(f"prefill: {done} of {total} tokens")

    return callback


if __name__ == "__main__":
    sys.exit(main())
