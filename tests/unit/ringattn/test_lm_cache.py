"""The cache of one rank: pages keep every key at its position, growth copies a page at most, windows drop what nobody sees."""

import mlx.core as mx
import numpy as np
import pytest

import ringattn as ra
from ringattn.lm import cache as caches
from ringattn.lm.cache import LayerCache, ShardedCache

HEADS, DIM = 2, 4


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "PAGE", 8)
    monkeypatch.setattr(caches, "GROWTH", 4)


def rows(positions: np.ndarray) -> mx.array:
    """Keys that name their position."""
    return mx.broadcast_to(mx.array(positions.astype(np.float32))[None, None, :, None], (1, HEADS, len(positions), DIM))


def feed(cache: ShardedCache, counts: list[int]) -> None:
    for count in counts:
        with cache.step(count) as step:
            at = step.positions(0)
            for layer in cache:
                assert layer.offset == step.start
                layer.update_and_fetch(rows(at), -rows(at))


def kept(layer: LayerCache) -> list[int]:
    found = []
    for page in layer.pages:
        positions = page.positions[: page.used]
        for values, sign in ((page.keys, 1), (page.values, -1)):
            assert (np.array(values)[0, 1, : page.used, 2] * sign == positions).all()
        assert (page.positions[page.used :] == caches.FREE).all()
        assert len(page.positions) <= caches.PAGE
        found += positions.tolist()
    return found


def test_chunks_of_any_size_are_kept_in_pages() -> None:
    cache = ShardedCache([None])
    feed(cache, [5, 1, 1, 20, 3, 9])
    assert sorted(kept(cache[0])) == list(range(39))
    assert cache.tokens == cache[0].offset == cache[0].rows() == 39
    assert len(cache[0].state) == 2 * 5
    assert cache.nbytes == cache[0].nbytes == 40 * HEADS * DIM * 4 * 2  # a page's growth more than the tokens, at most


def test_a_window_keeps_what_later_queries_see_and_little_more() -> None:
    cache = ShardedCache([6])
    for count in [5, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 12, 1, 1]:
        feed(cache, [count])
        found = kept(cache[0])
        # The last step's first query saw 6 positions, itself included.
        assert set(range(max(0, cache.tokens - count - 5), cache.tokens)) <= set(found)
        assert len(found) <= 6 + count + caches.GROWTH


def test_attention_is_that_of_all_tokens() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.standard_normal((1, h, 30, DIM), dtype=np.float32)) for h in (4, HEADS, HEADS))
    for window in (None, 6):
        wanted = ra.ring_attention(q, k, v, scale=0.5, mask="causal", window=window, layout="contiguous")
        cache, got = ShardedCache([window]), []
        for start, end in [(0, 11), (11, 12), (12, 29), (29, 30)]:
            with cache.step(end - start):
                cache[0].update_and_fetch(k[:, :, start:end], v[:, :, start:end])
                got.append(cache[0].attend(q[:, :, start:end], k, v, scale=0.5, window=window))
        np.testing.assert_allclose(np.array(mx.concatenate(got, axis=2)), np.array(wanted), atol=1e-6)


def test_misuse_is_named() -> None:
    cache = ShardedCache([6])
    x = rows(np.arange(2))
    with pytest.raises(ra.ModelError, match="CachedModel"):
        cache[0].update_and_fetch(x, x)
    with cache.step(2):
        with pytest.raises(ra.ModelError, match="before its keys"):
            cache[0].attend(x, x, x, scale=1.0, window=6)
        cache[0].update_and_fetch(x, x)
        with pytest.raises(ra.ModelError, match="its cache keeps 6"):
            cache[0].attend(x, x, x, scale=1.0, window=None)
        with pytest.raises(ra.ModelError, match="got 3 tokens"):
            cache[0].local_runs(3)
        with pytest.raises(ra.TransformError, match="no derivative"):
            mx.eval(mx.grad(lambda q: cache[0].attend(q, x, x, scale=1.0, window=6).sum())(x))
