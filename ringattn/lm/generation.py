"""Prefill in chunks and token by token generation over the ring, by mlx-lm's own loop on a ShardedCache.

Every rank runs the same loop over the same prompt. A chunk is cut over the ranks; of its logits none are computed (MLX is lazy and
nobody reads them), so that no rank ever holds [tokens, vocabulary]. The last token of the prompt and every generated one are
computed by all ranks over the sharded keys. Rank 0's choice of a token counts, so that hosts whose last bits differ stay together.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ringattn._errors import ArgumentError
from ringattn.lm.cache import CachedModel, ShardedCache, make_cache

PREFILL_STEP_SIZE = 2048  # tokens of a chunk over all ranks, mlx-lm's default
Sampler = Callable[[mx.array], mx.array]
Progress = Callable[[int, int], None]


def generate_step(
    prompt: Sequence[int] | mx.array,
    model: nn.Module,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Callable[[mx.array, mx.array], mx.array]] | None = None,
    prompt_cache: ShardedCache | None = None,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    prompt_progress_callback: Progress | None = None,
) -> Iterator[tuple[int, mx.array]]:
    """Generate token ids over the ring; as `mlx_lm.generate.generate_step`, and with the same tokens.

    Every rank calls it with the same arguments, and gets the same tokens.

    Args:
        prompt: token ids that every rank holds whole; those that come after the ones in the cache.
        model: a model that `shard_model` converted.
        max_tokens: number of tokens; -1: without end.
        sampler: a function of log-probabilities [1, V], e.g. of `mlx_lm.sample_utils.make_sampler`; None: the most likely token.
        logits_processors: as mlx-lm's.
        prompt_cache: the cache to use; None: a new one.
        prefill_step_size: tokens of a chunk of the prompt, over all ranks.
        prompt_progress_callback: called with the prompt's tokens so far and in all.

    Yields:
        A token, and the log-probabilities [V] that it was taken from.
    """
    from mlx_lm.generate import generate_step as loop

    cache = make_cache(model) if prompt_cache is None else prompt_cache
    steps = loop(
        _checked_prompt(prompt),
        CachedModel(model),
        max_tokens=max_tokens,
        sampler=agreed(sampler, cache),
        logits_processors=None if logits_processors is None else list(logits_processors),
        prompt_cache=cache,
        prefill_step_size=prefill_step_size,
        prompt_progress_callback=prompt_progress_callback,
    )
    yield from ((int(token), logprobs) for token, logprobs in steps)


def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | Sequence[int] | mx.array,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    prompt_cache: ShardedCache | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Generate text over the ring as it comes; as `mlx_lm.stream_generate`, until the tokenizer's end of text.

    Args:
        model: a model that `shard_model` converted.
        tokenizer: mlx-lm's.
        prompt: text, or token ids.
        max_tokens: number of tokens.
        sampler: as for `generate_step`.
        prompt_cache: as for `generate_step`.
        options: others of `generate_step`.

    Yields:
        mlx-lm's GenerationResponse: text, token, log-probabilities, speeds, and at last why it ended.
    """
    from mlx_lm import stream_generate as stream

    cache = make_cache(model) if prompt_cache is None else prompt_cache
    if not isinstance(prompt, str):
        prompt = _checked_prompt(prompt)
    yield from stream(
        CachedModel(model),
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampler=agreed(sampler, cache),
        prompt_cache=cache,
        **{"prefill_step_size": PREFILL_STEP_SIZE, **options},
    )


def prefill(
    model: nn.Module,
    tokens: Sequence[int] | mx.array,
    cache: ShardedCache,
    *,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    prompt_progress_callback: Progress | None = None,
) -> None:
    """Fill a cache with all of a prompt's tokens, e.g. to save it; no logits are computed.

    Args:
        model: a model that `shard_model` converted.
        tokens: token ids that every rank holds whole; those that come after the ones in the cache.
        cache: the cache to fill.
        prefill_step_size: tokens of a chunk, over all ranks.
        prompt_progress_callback: called with the tokens so far and in all.
    """
    whole, cached = _checked_prompt(tokens), CachedModel(model)
    for start in range(0, len(whole), prefill_step_size):
        chunk = whole[start : start + prefill_step_size]
        cached(chunk[None], cache=cache)
        if prompt_progress_callback is not None:
            prompt_progress_callback(start + len(chunk), len(whole))
        mx.clear_cache()


def agreed(sampler: Sampler | None, cache: ShardedCache) -> Sampler:
    """Return a sampler that gives every rank the token of rank 0.

    Args:
        sampler: a function of log-probabilities; None: the most likely token.
        cache: the cache whose ranks sample.
    """

    def sample(logprobs: mx.array) -> mx.array:
        token = mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)
        if cache.size == 1:
            return token
        mine = token.astype(mx.int32).reshape(1, -1)
        mx.eval(mine)
        (tokens,) = cache.transport.all_gather(mine, "agreeing on a token").wait(cache.timeout)
        return tokens[0].astype(token.dtype)

    return sample


def model_digest(model: nn.Module) -> str:
    """Return a digest of a model's parameters: names, shapes, dtypes, and the first values of each."""
    crc = 0
    for name, weight in sorted(dict(tree_flatten(model.parameters())).items()):
        first = np.array(weight.reshape(-1)[:64].astype(mx.float32))
        crc = zlib.crc32(first.tobytes(), zlib.crc32(f"{name} {weight.shape} {weight.dtype}".encode(), crc))
    return f"{crc:08x}"


def _checked_prompt(prompt: Sequence[int] | mx.array) -> mx.array:
    tokens = prompt if isinstance(prompt, mx.array) else mx.array(list(prompt))
    if tokens.ndim != 1 or tokens.size == 0:
        raise ArgumentError(f"a prompt is a list of one or more token ids, not of shape {tokens.shape}")
    return tokens
