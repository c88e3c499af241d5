"""A cache is saved by shard and loaded again, on as many ranks or on others; what does not fit is refused by name."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import ringattn as ra
from ringattn.lm.cache import ShardedCache
from ringattn.transport import Shift

CHUNKS = [9, 1, 1, 30, 1]
TOKENS = sum(CHUNKS)
WINDOWS = [None, 700]
PROMPT = list(range(TOKENS))


class Alone:
    """A transport of one rank among several that say the same."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def all_gather(self, x: mx.array, doing: str) -> "Alone":
        self._got = mx.concatenate([x] * self._size)
        return self

    def wait(self, timeout: float) -> list[mx.array]:
        return [self._got]

    def all_sum(self, x: mx.array, doing: str) -> "Alone":
        raise AssertionError("nothing is summed here")

    def shift(self, shift: Shift, doing: str) -> "Alone":
        raise AssertionError("nothing is attended to here")


def rows(positions: np.ndarray, layer: int) -> mx.array:
    """Keys that name their position and layer."""
    named = mx.array(positions + 1000.0 * layer).astype(mx.bfloat16)
    return mx.broadcast_to(named[None, None, :, None], (1, 2, len(positions), 4))


def filled(rank: int, size: int) -> ShardedCache:
    cache = ShardedCache(WINDOWS, group=Alone(rank, size))
    for count in CHUNKS:
        with cache.step(count) as step:
            at = step.positions(rank)
            for i, layer in enumerate(cache):
                layer.update_and_fetch(rows(at, i), -rows(at, i))
    return cache


def save(size: int, folder: Path, *ranks: int) -> None:
    for rank in ranks or range(size):
        filled(rank, size).save(folder, model="m", prompt=PROMPT)


def load(rank: int, size: int, folder: Path, **changed: object) -> ShardedCache:
    arguments: dict = {"model": "m", "prompt": [*PROMPT, 7]} | changed
    return ShardedCache.load(folder, like=ShardedCache(WINDOWS, group=Alone(rank, size)), **arguments)


@pytest.mark.parametrize(("before", "after"), [(3, 3), (1, 1), (2, 1), (1, 3), (4, 2)])
def test_every_key_is_kept_on_one_rank(before: int, after: int, tmp_path: Path) -> None:
    save(before, tmp_path)
    caches = [load(rank, after, tmp_path) for rank in range(after)]
    for i in range(len(WINDOWS)):
        kept = [cache[i].kept() for cache in caches]
        at = np.concatenate([np.array(x["positions"]) for x in kept])
        assert sorted(at.tolist()) == list(range(TOKENS))
        assert max(len(x["positions"]) for x in kept) - min(len(x["positions"]) for x in kept) <= 1
        for x in kept:
            wanted = rows(np.array(x["positions"]), i)
            assert mx.array_equal(x["keys"], wanted)
            assert mx.array_equal(x["values"], -wanted)
    assert {cache.tokens for cache in caches} == {layer.offset for cache in caches for layer in cache} == {TOKENS}
    # The next step goes on where the saved one ended.
    with caches[0].step(1) as step:
        assert step.start == TOKENS


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ra.ArgumentError, match="no file for rank 0 of 2, but none at all"):
        load(0, 2, tmp_path)
    save(3, tmp_path, 0, 2)
    with pytest.raises(ra.ArgumentError, match="no file for rank 1 of 3"):
        load(1, 3, tmp_path)
    with pytest.raises(ra.ArgumentError, match=r"a cache of 3 ranks; to spread it over 2 .* missing"):
        load(0, 2, tmp_path)
    with pytest.raises(ra.ArgumentError, match="the cache of another model"):
        load(0, 3, tmp_path, model="other")
    with pytest.raises(ra.ArgumentError, match="differs from token 2 on"):
        load(0, 3, tmp_path, prompt=[0, 1, 5, *PROMPT])
    with pytest.raises(ra.ArgumentError, match="holds all 42 tokens"):
        load(0, 3, tmp_path, prompt=PROMPT)
    (tmp_path / "cache-0-of-3.safetensors").write_bytes(b"torn")
    with pytest.raises(ra.ArgumentError, match="cannot be read"):
        load(0, 3, tmp_path)
