"""The mlx kernel as it runs on a GPU, here on a CPU: results in float64, launches and bytes across memory by count, work on the host."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ringattn import ring_attention
from ringattn.kernels import Block, mlx_tiled, tile_arithmetic
from ringattn.kernels.mlx_tiled import MlxKernel
from tests.support.attention import TOLERANCE, Case, assert_exact, draw, oracle, run
from tests.support.metal.compiler import COMPILER
from tests.support.mlx_graph import Traffic, fused, launched, traffic

LENGTH, HEADS, DIM = 4096, 8, 64
COMPILED = ("_visible", "_merged", "_full_gradients", "_masked_gradients")
AT = np.arange(LENGTH, dtype=np.int32)
BLOCKS = {
    "full": Block(AT, AT),
    "causal": Block(AT, AT, causal=True),
    "sliding": Block(AT, AT, causal=True, window=1000),
    "band": Block(AT, AT, window=1000),
    "packed": Block(AT, AT, causal=True, q_seg=AT // 200, k_seg=AT // 200),
    "packed by batch": Block(AT, AT, causal=True, q_seg=AT[None] // 200, k_seg=AT[None] // 200),
}
BEFORE = {
    "full": (497, 15_042_576_720),
    "causal": (345, 9_997_156_680),
    "sliding": (273, 7_610_876_244),
    "band": (369, 10_815_734_184),
    "packed": (273, 7_610_876_244),
    "packed by batch": (273, 7_610_876_244),
}
"""Launches and bytes of forward and backward, by `traffic`, of the kernel that made masks on the host, took base 2 and compiled nothing."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlxKernel]:
    """The kernel with a GPU's arithmetic, several tiles at the tests' small lengths, nothing compiled (that needs a C++ compiler)."""
    monkeypatch.setattr(mlx_tiled, "_on_cpu", lambda: False)
    monkeypatch.setattr(mlx_tiled, "GPU_TILE", 64)
    mx.disable_compile()
    yield MlxKernel()
    mx.enable_compile()


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> MlxKernel:
    """The kernel as on a GPU, which builds graphs and computes nothing."""
    monkeypatch.setattr(mlx_tiled, "_on_cpu", lambda: False)
    for name in ("eval", "async_eval"):
        monkeypatch.setattr(mx, name, lambda *arrays: None)
    return MlxKernel()


def both(kernel: MlxKernel, block: Block, use: Callable[..., Any]) -> list[Any]:
    """Return `use(function, *tensors)` of forward and of backward, on the block that is counted."""
    q, rows = (
        mx.array(np.zeros((1, HEADS, LENGTH, DIM), np.float32)),
        mx.array(np.zeros((1, HEADS, LENGTH), np.float32)),
    )

    def forward(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        return kernel.forward(q, k, v, block, scale=0.125)

    def backward(
        q: mx.array, k: mx.array, v: mx.array, do: mx.array, lse: mx.array, delta: mx.array
    ) -> tuple[mx.array, ...]:
        return kernel.backward(q, k, v, do, lse, delta, block, scale=0.125)

    return [use(forward, q, q, q), use(backward, q, q, q, q, rows, rows)]


MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "sliding": {"causal": True, "window": 37},
    "band": {"window": 50},
    "packed": {"causal": True, "segments": 3, "batch": 2},
}


@pytest.mark.parametrize("mask", MASKS)
def test_gpu_arithmetic_matches_fp64(gpu: MlxKernel, mask: str) -> None:
    lengths = ((1, 1), (1, 200), (200, 1), (97, 193))
    for (q_len, k_len), group, leap in itertools.product(lengths, (1, 3), (0, 1000)):
        assert_exact(Case(q_len=q_len, k_len=k_len, group=group, leap=leap, **{"batch": 1, **MASKS[mask]}), gpu)
    for dtype in (mx.bfloat16, mx.float16):
        assert_exact(Case(dtype=dtype, group=2, shuffled=True, **MASKS[mask]), gpu)
    assert_exact(Case(group=2, softcap=1.5, v_dim=11, **MASKS[mask]), gpu)


def test_gpu_arithmetic_without_keys_with_nan_and_with_large_scores(gpu: MlxKernel) -> None:
    (q, k, v, do), block = draw(Case())
    hidden = Block(block.q_pos, block.k_pos + 1000, causal=True)
    o, lse = gpu.forward(q, k, v, hidden, scale=1.0)
    assert not np.array(o).any()
    assert (np.array(lse) == -np.inf).all()
    half = Block(block.q_pos - 80, block.k_pos, causal=True)  # the first rows see nothing, in a mixed tile
    o, lse = gpu.forward(q, k, v, half, scale=1.0)
    blind = half.q_pos < 0
    assert 0 < blind.sum() < len(blind)
    assert not np.array(o)[:, :, blind].any()
    assert (np.isneginf(np.array(lse)) == blind).all()
    assert np.isfinite(np.array(o)).all()
    for mask in (hidden, block):
        grads = gpu.backward(q, k, v, do, mx.full(lse.shape, -mx.inf), mx.zeros(lse.shape), mask, scale=1.0)
        assert not any(np.array(g).any() for g in grads)
    large = oracle([q * 30, k * 30, v, do], block, 1.0)
    got = run(gpu, [q * 30, k * 30, v, do], block, large, scale=1.0)
    np.testing.assert_allclose(got["o"], large["o"], atol=2e-2)  # scores of 1e4 keep 1e-3 in fp32
    k[0, 0, 5] = float("nan")
    o, _ = gpu.forward(q, k, v, block, scale=1.0)
    assert np.isnan(np.array(o)[0]).all()
    assert np.isfinite(np.array(o)[1]).all()


def test_ring_attention_trains_on_a_gpus_arithmetic(gpu: MlxKernel) -> None:
    """On the ring's own thread, where rows of tiles are computed while later ones are built."""
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.standard_normal((1, 2, 150, 16), dtype=np.float32)) for _ in range(3))

    def loss(kernel: Any) -> Any:
        return lambda *x: (ring_attention(*x, scale=0.25, mask="causal", kernel=kernel) ** 2).sum()

    results = [mx.value_and_grad(loss(kernel), argnums=(0, 1, 2))(q, k, v) for kernel in (gpu, "reference")]
    for got, wanted in zip((results[0][0], *results[0][1]), (results[1][0], *results[1][1]), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(wanted), rtol=TOLERANCE, atol=TOLERANCE)


def test_kernel_works_where_mlx_differentiates(gpu: MlxKernel) -> None:
    """There MLX refuses to begin a computation, and computes at once."""
    (q, k, v, _), block = draw(Case())

    @mx.custom_function
    def attend(x: mx.array) -> Any:
        return gpu.forward(x, k, v, block, scale=0.25)[0]

    attend.vjp(lambda x, g, o: g)

    def loss(x: mx.array) -> Any:
        o: Any = attend(x)
        return o.sum()

    ones: Any = mx.grad(loss)(q)
    np.testing.assert_array_equal(np.array(ones), np.ones(q.shape, np.float32))


def test_a_block_is_computed_with_no_wait(gpu: MlxKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring waits once a hop: the kernel begins each row of tiles, and waits for none."""
    begun: list[int] = []
    begin = mx.async_eval

    def count(*arrays: mx.array) -> None:
        begun.append(len(arrays))
        begin(*arrays)

    monkeypatch.setattr(mx, "async_eval", count)
    monkeypatch.setattr(mx, "eval", lambda *arrays: pytest.fail("a wait inside the kernel"))
    (q, k, v, do), block = draw(Case(q_len=200, k_len=130))
    _, lse = gpu.forward(q, k, v, block, scale=1.0)
    assert begun == [2] * 4
    begun.clear()
    gpu.backward(q, k, v, do, lse, lse, block, scale=1.0)
    assert begun == [2 + 4] * 3


def counted(kernel: MlxKernel, block: Block) -> Traffic:
    """Forward and backward together."""
    forward, backward = both(kernel, block, traffic)
    return Traffic(forward.launches + backward.launches, forward.moved + backward.moved)


@pytest.mark.parametrize("kind", BLOCKS)
def test_bytes_across_memory_are_at_most_0_6_of_before(
    graph: MlxKernel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = sum(both(graph, BLOCKS[kind], lambda function, *tensors: launched(*function(*tensors))))
    for name in COMPILED:
        monkeypatch.setattr(tile_arithmetic, name, fused(getattr(tile_arithmetic, name)))
    found = counted(graph, BLOCKS[kind])
    launches, moved = BEFORE[kind]
    assert found.moved <= 0.6 * moved
    assert found.launches.total() <= 0.5 * launches
    page = (Path(__file__).parents[3] / "docs" / "internals" / "mlx_integration.md").read_text()
    row = f"{launches} | {found.launches.total()} | {moved / 1e9:.2f} | {found.moved / 1e9:.2f} | {found.moved / moved:.2f} |"
    assert row in page
    # What is counted is what MLX compiles; its export makes equal arrays of zeros once, the graph makes one a row of tiles.
    assert alone == found.launches.total() + 2 * (LENGTH // mlx_tiled.GPU_TILE - 1)


def test_scores_cross_memory_5_times_forward_and_9_backward(graph: MlxKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full tile; the rest is rows of D numbers beside 1,024 scores."""
    for name in COMPILED:
        monkeypatch.setattr(tile_arithmetic, name, fused(getattr(tile_arithmetic, name)))
    passes = counted(graph, BLOCKS["full"]).moved / (4 * HEADS * LENGTH**2)
    assert 14 < passes < 14 + 24 * DIM / mlx_tiled.GPU_TILE


def test_each_compiled_chain_is_one_launch() -> None:
    s, first, at = mx.array(np.zeros((1, 2, 8, 8), np.float32)), mx.array(AT[:8, None]), mx.array(AT[:8])
    row, o = mx.array(np.zeros((1, 2, 8, 1), np.float32)), mx.array(np.zeros((1, 2, 8, 4), np.float32))
    q_seg, k_seg = mx.array(AT[None, None, None, :8, None]), mx.array(AT[None, None, None, None, :8])
    seen = mx.array(np.zeros((1, 1, 1, 8, 8), bool))
    assert launched(tile_arithmetic._visible(first, first, q_seg, at, k_seg)) == 1
    assert launched(tile_arithmetic._visible(first, first, None, at, None)) == 1
    assert launched(tile_arithmetic._merged(o, row, o, row)) == 1
    assert launched(*tile_arithmetic._full_gradients(s, s)) == 1
    assert launched(*tile_arithmetic._masked_gradients(s[:, :, None], s[:, :, None], seen)) == 1
    assert launched(tile_arithmetic._capped(s, 1.5)) == 1
    assert launched(*tile_arithmetic._capped_gradients(s, row, s, None, 1.5)) == 1
    assert launched(*tile_arithmetic._capped_gradients(s[:, :, None], row[:, :, None], s[:, :, None], seen, 1.5)) == 1


@pytest.mark.parametrize("kind", BLOCKS)
def test_host_prepares_masks_in_linear_work(graph: MlxKernel, kind: str) -> None:
    """By what numpy and Python allocate: 64 bytes a row hold no tile's mask, which takes a byte a pair of rows."""

    def allocated(function: Callable[..., Any], *tensors: mx.array) -> int:
        tracemalloc.start()
        try:
            function(*tensors)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert max(both(graph, BLOCKS[kind], allocated)) < 64 * 2 * LENGTH


@pytest.mark.long
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: mx.compile was not run")
def test_compiled_chains_agree_with_their_operations(gpu: MlxKernel) -> None:
    for softcap in (None, 1.5):
        case = Case(causal=True, window=100, segments=3, group=2, softcap=softcap)
        arrays, block = draw(case)
        truth = oracle(arrays, block, **case.scores)
        mx.disable_compile()
        plain = run(gpu, arrays, block, truth, **case.scores)
        mx.enable_compile()
        for name, x in run(gpu, arrays, block, truth, **case.scores).items():
            np.testing.assert_allclose(x, plain[name], rtol=1e-6, atol=1e-6)
