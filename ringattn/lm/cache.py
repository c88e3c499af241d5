"""The KV cache of a converted model: keys and values of all tokens so far, each on one rank, in even shares.

mlx-lm's models call `offset` and `update_and_fetch` on it as on its own caches, and the conversion calls `attend`. Keys lie in
pages, so that growth copies a page at most, and no key moves to another rank. A layer with a sliding window drops the
pages that no later query sees.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ringattn import kernels
from ringattn._call_header import Kind, exchange
from ringattn._errors import MismatchError, ModelError
from ringattn.decode import FREE, KeyBlock, Rules, attend_replicated, checked_rules, without_gradient
from ringattn.lm import cache_files
from ringattn.lm.steps import Runs, Step, needs_of, plan_step
from ringattn.query_ring import attend_sharded
from ringattn.transport import Group, transport_of, wait_limit

PAGE = 8192  # rows: the kernels' packed copy of a page stays in a CPU's caches
GROWTH = 256  # rows by which the last page grows, as mlx-lm's caches do


@dataclass
class _Page:
    """Rows of keys and values; those from `used` on are free."""

    keys: mx.array
    values: mx.array
    positions: np.ndarray
    used: int = 0

    def block(self) -> KeyBlock:
        return KeyBlock(self.keys, self.values, self.positions)

    def write(self, keys: mx.array, values: mx.array, positions: np.ndarray, limit: int) -> None:
        """Append rows; the page grows, to `limit` rows at most, by as much as they need."""
        end = self.used + len(positions)
        capacity = len(self.positions)
        if end > capacity:
            room = min(limit, -(-end // GROWTH) * GROWTH) - capacity
            self.keys, self.values = (
                mx.concatenate([x, mx.zeros((*x.shape[:2], room, x.shape[3]), x.dtype)], axis=2)
                for x in (self.keys, self.values)
            )
            self.positions = np.concatenate([self.positions, np.full(room, FREE, np.int32)])
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        self.positions[self.used : end] = positions
        self.used = end


class LayerCache:
    """Keys and values of one layer on this rank; made by `ShardedCache`.

    Args:
        whole: the cache that it belongs to, which plans its steps.
        layer: the layer's number.
        window: number of positions that the layer's queries see; None: all.
    """

    def __init__(self, whole: "ShardedCache", layer: int, window: int | None) -> None:
        self._whole, self._layer, self.window = whole, layer, window
        self.pages: list[_Page] = []
        self.offset = 0
        self.width = 0  # of a value; known from the first keys on
        self._page = PAGE if window is None else min(PAGE, -(-window // (4 * whole.size * GROWTH)) * GROWTH)

    def local_runs(self, length: int) -> Runs:
        """Return the positions of the tokens that this rank computes in the present step.

        Args:
            length: tokens that the model got.

        Raises:
            ModelError: if they are not those of the step.
        """
        runs = self._whole.present_step().runs[self._whole.rank]
        if length != sum(map(len, runs)):
            raise ModelError(
                f"the model got {length} tokens, but rank {self._whole.rank}'s part of this step has {sum(map(len, runs))}; "
                "call it through ringattn.lm.CachedModel, with all tokens of the step"
            )
        return runs

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep this rank's share of the step's keys [B, Hkv, T, D] and values [B, Hkv, T, Dv], and return them.

        `attend` reads what is kept here, not what is returned.
        """
        step, rank = self._whole.present_step(), self._whole.rank
        kept, at = step.kept(rank), step.positions(rank)
        if len(kept) < len(at):
            index = mx.array(kept.astype(np.int32))
            own_keys, own_values = mx.take(keys, index, axis=2), mx.take(values, index, axis=2)
        else:
            own_keys, own_values = keys, values
        self.width = values.shape[3]
        self.append(own_keys, own_values, at[kept])
        if self.window is not None:
            dead = step.start - self.window  # the step's first query sees later positions only
            while self.pages and self.pages[0].positions[: self.pages[0].used].max() <= dead:
                del self.pages[0]
        self.offset = step.start + step.count
        return keys, values

    def append(self, keys: mx.array, values: mx.array, positions: np.ndarray) -> None:
        """Keep rows of keys and values at these positions, whatever the step."""
        done = 0
        while done < len(positions):
            if not self.pages or self.pages[-1].used == self._page:
                no_keys, no_values = (mx.zeros((*x.shape[:2], 0, x.shape[3]), x.dtype) for x in (keys, values))
                self.pages.append(_Page(no_keys, no_values, np.empty(0, np.int32)))
            page = self.pages[-1]
            upto = min(len(positions), done + self._page - page.used)
            page.write(keys[:, :, done:upto], values[:, :, done:upto], positions[done:upto], self._page)
            mx.eval(page.keys, page.values)
            done = upto

    def attend(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        window: int | None,
        sinks: mx.array | None = None,
        softcap: float | None = None,
    ) -> mx.array:
        """Compute the step's causal attention over the keys of all ranks.

        Args:
            q: [B, Hq, T, D] of the tokens that this rank computes, rotated.
            k: not read.
            v: not read.
            scale: factor on the scores.
            window: number of positions that a query sees, itself included; None: all.
            sinks: [Hq] scores that take no value, or None.
            softcap: c: scores s become c · tanh(s / c), or None.

        Returns:
            [B, Hq, T, Dv] in q's dtype.

        Raises:
            ModelError: if the cache does not hold what the call needs.
        """
        whole, step = self._whole, self._whole.present_step()
        if self.window is not None and (window is None or window > self.window):
            raise ModelError(
                f"layer {self._layer} attends to {window or 'all'} positions, but its cache keeps {self.window}"
            )
        if self.offset != step.start + step.count:
            raise ModelError(f"layer {self._layer} attends before its keys are in the cache")
        rules = checked_rules(q, Rules(scale, window, sinks, softcap))
        blocks, kernel = [page.block() for page in self.pages], kernels.select_for(whole.kernel, q.shape[3])

        def work(q: mx.array) -> mx.array:
            if step.replicated:
                return attend_replicated(
                    q, blocks, step.positions(whole.rank), rules, width=self.width, tag=self._layer,
                    transport=whole.transport, kernel=kernel, timeout=whole.timeout,
                )  # fmt: skip
            return attend_sharded(
                q, blocks, [step.positions(rank) for rank in range(whole.size)], whole.needs(window), rules,
                width=self.width, transport=whole.transport, kernel=kernel, timeout=whole.timeout,
            )  # fmt: skip

        return without_gradient(q, work)

    def make_mask(self, *_: object, **__: object) -> None:
        """Return None: positions and window decide what a query sees."""

    @property
    def state(self) -> list[mx.array]:
        """The arrays of this rank."""
        return [x for page in self.pages for x in (page.keys, page.values)]

    @property
    def nbytes(self) -> int:
        """Bytes on this rank, free rows included."""
        return sum(x.nbytes for x in self.state)

    def kept(self) -> dict[str, mx.array]:
        """Return "keys" [B, Hkv, T, D], "values" [B, Hkv, T, Dv] and "positions" int32 [T] of this rank."""
        used = [(page, page.used) for page in self.pages]
        if not used:
            raise ModelError(f"layer {self._layer} keeps no token on this rank: there is nothing to save")
        return {
            "keys": mx.concatenate([page.keys[:, :, :n] for page, n in used], axis=2),
            "values": mx.concatenate([page.values[:, :, :n] for page, n in used], axis=2),
            "positions": mx.array(np.concatenate([page.positions[:n] for page, n in used])),
        }

    def rows(self) -> int:
        """Return the tokens whose keys this rank keeps."""
        return sum(page.used for page in self.pages)

    def is_trimmable(self) -> bool:
        """Return False: mlx-lm's speculative decoding needs a cache of one process."""
        return False


class ShardedCache(list[LayerCache]):
    """The cache of a model, one LayerCache a layer, as mlx-lm's `cache=` and `prompt_cache=` take it.

    Args:
        windows: of each layer, the number of positions that its queries see; None: all.
        group: an MLX group (None: the global one), or a Transport.
        kernel: name of the block kernel, or None.
        timeout: seconds that any wait may take; None: environment RINGATTN_TIMEOUT, else 60.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        *,
        group: Group = None,
        kernel: str | kernels.Kernel | None = None,
        timeout: float | None = None,
    ) -> None:
        self.transport = transport_of(group)
        self.rank, self.size = self.transport.rank(), self.transport.size()
        self.kernel, self.timeout = kernel, wait_limit(timeout)
        self.owner = np.empty(0, np.uint8)  # of each position: the rank that keeps it
        self._step: Step | None = None
        self._needs: dict[int | None, tuple[tuple[bool, ...], ...]] = {}
        super().__init__(LayerCache(self, layer, window) for layer, window in enumerate(windows))

    @property
    def tokens(self) -> int:
        """Tokens of the whole sequence so far."""
        return len(self.owner)

    def held(self) -> tuple[int, ...]:
        """Return the tokens that each rank keeps, in rank order."""
        return tuple(np.bincount(self.owner, minlength=self.size).tolist())

    @contextlib.contextmanager
    def step(self, count: int, digest: int = 0) -> Iterator[Step]:
        """Hold the plan of one pass over `count` new tokens; the model is called within, with this rank's part.

        Args:
            count: new tokens, the same on every rank.
            digest: of the tokens, compared between ranks before a chunk.

        Raises:
            MismatchError: on every rank, if the ranks' steps differ.
        """
        step = plan_step(self.tokens, count, self.held())
        if self.size > 1 and not step.replicated:  # decode's own messages have a header
            self._agree([step.start, step.count, zlib.crc32(self.owner.tobytes()) >> 1, digest & 0x7FFFFFFF])
        self._step, self._needs = step, {}
        self.owner = np.concatenate([self.owner, step.owner])
        try:
            yield step
        finally:
            self._step = None

    def _agree(self, facts: list[int]) -> None:
        rows = exchange(Kind.CHUNK, None, facts, self.transport, self.timeout)
        for name, *values in zip(("position", "chunk", "cache", "tokens"), *rows, strict=False):
            if len(set(values)) > 1:
                shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
                raise MismatchError(f"the {name} of a pass must be the same on every rank, but is {shown}")

    def present_step(self) -> Step:
        """Return the step that runs now.

        Raises:
            ModelError: if none does.
        """
        if self._step is None:
            raise ModelError(
                "a sharded cache needs to know the whole step: call the model through ringattn.lm.CachedModel"
            )
        return self._step

    def needs(self, window: int | None) -> tuple[tuple[bool, ...], ...]:
        """Return which rank's keys each rank's queries see in the present step; see `steps.needs_of`."""
        if window not in self._needs:
            self._needs[window] = needs_of(self.present_step(), self.owner, window)
        return self._needs[window]

    @property
    def nbytes(self) -> int:
        """Bytes on this rank, free rows included."""
        return sum(layer.nbytes for layer in self)

    def save(self, folder: str | Path, *, model: str, prompt: Sequence[int]) -> None:
        """Write this rank's share into a folder; every rank calls it.

        Args:
            folder: may be the same for all ranks, or each host's own.
            model: the model's digest, of `model_digest`.
            prompt: the tokens that the cache holds.
        """
        windows = tuple(layer.window for layer in self)
        arrays = {"owner": mx.array(self.owner), "prompt": mx.array(np.asarray(prompt, np.int32))}
        for i, layer in enumerate(self):
            arrays |= {f"{i}.{name}": x for name, x in layer.kept().items()}
        cache_files.write(Path(folder), cache_files.Shard(self.rank, self.size, self.tokens, windows, model, arrays))

    @classmethod
    def load(
        cls, folder: str | Path, *, like: "ShardedCache", model: str, prompt: Sequence[int] | None = None
    ) -> "ShardedCache":
        """Read a cache that `save` wrote; one of another number of ranks is spread anew, if all its files are here.

        Args:
            folder: the folder that `save` got.
            like: an empty cache of the model, of `make_cache`.
            model: the model's digest.
            prompt: tokens of which the cache must hold a beginning; None: any.

        Raises:
            ArgumentError: if files are missing, or are of another model or prompt.
        """
        windows = [layer.window for layer in like]
        cache = cls(windows, group=like.transport, kernel=like.kernel, timeout=like.timeout)
        for shard in cache_files.read(Path(folder), cache.rank, cache.size):
            cache_files.check(shard, Path(folder), windows, model, prompt)
            same = shard.size == cache.size
            cache.owner = (
                np.array(shard.arrays["owner"]) if same else (np.arange(shard.tokens) % cache.size).astype(np.uint8)
            )
            for i, layer in enumerate(cache):
                at = np.array(shard.arrays[f"{i}.positions"])
                mine = np.flatnonzero(cache.owner[at] == cache.rank)
                rows = mx.array(mine.astype(np.int32))
                keys, values = (mx.take(shard.arrays[f"{i}.{name}"], rows, axis=2) for name in ("keys", "values"))
                layer.width, layer.offset = values.shape[3], shard.tokens
                layer.append(keys, values, at[mine])
        return cache


class CachedModel(nn.Module):
    """A converted model that takes whole tokens and a ShardedCache, as mlx-lm's generate_step calls it.

    A pass of many tokens is cut: this rank gets, computes and returns its part only. A pass of few is computed by every rank.

    Args:
        model: a model that `shard_model` converted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __call__(self, inputs: mx.array, cache: ShardedCache) -> mx.array:
        """Return this rank's logits [B, T_local, V] of tokens [B, T] that every rank holds."""
        mx.eval(inputs)
        tokens = np.array(inputs)
        with cache.step(tokens.shape[1], zlib.crc32(tokens.tobytes())) as step:
            return self.model(mx.array(tokens[:, step.positions(cache.rank) - step.start]), cache=cache)

    @property
    def layers(self) -> Any:
        """The model's layers."""
        return self.model.layers


def make_cache(model: nn.Module) -> ShardedCache:
    """Return an empty cache for a converted model, over its group.

    Args:
        model: a model that `shard_model` converted.

    Raises:
        ModelError: if the model was not converted, or keeps more of a token than keys and values.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    from ringattn.lm.convert import ring_of

    ring = ring_of(model)
    assert ring is not None  # it is required
    windows: list[int | None] = []
    for layer, own in enumerate(make_prompt_cache(model)):
        if type(own) is KVCache:
            windows.append(None)
        elif type(own) is RotatingKVCache and own.keep == 0:
            windows.append(own.max_size)
        else:
            raise ModelError(
                f"layer {layer} of {type(model).__name__} keeps a {type(own).__name__}, which cannot be sharded by positions; "
                "only keys and values of attention can"
            )
    return ShardedCache(windows, group=ring.group, kernel=ring.kernel, timeout=ring.timeout)
