"""The Metal kernels, run on a CPU by the harness from the source that mlx generates: results in float64, and no finding."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ringattn.kernels import Block
from ringattn.kernels.metal.tiling import DIMS
from ringattn.layout import local_positions
from ringattn.ring import merge_partials
from tests.support.attention import Case, assert_close, draw, oracle
from tests.support.metal.cases import (
    KERNELS,
    LAYOUTS,
    case_of,
    emulate,
    name_of,
    needs_compiler,
    outputs,
    product,
    rows,
)
from tests.support.metal.compiler import CLANG, check_syntax
from tests.support.metal.source import generate

SCHEDULES = (1, 2, 3)
pytestmark = needs_compiler


def prove(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel on one block, in three random schedules: the other kernels' bounds, the same bits, no finding."""
    case = case_of(row)
    arrays, block = draw(case)
    truth = oracle(arrays, block, **case.scores)
    results = []
    for seed in SCHEDULES:
        kernel, emulator = emulate(monkeypatch, seed)
        got = outputs(kernel, row["kernel"], arrays, block, truth, **case.scores)
        assert emulator.findings == [], f"{case}, schedule {seed}"
        results.append({name: np.array(x) for name, x in got.items()})
    for name, x in results[0].items():
        assert_close(x, truth[name], f"{name}, {case}")
        for other in results[1:]:
            np.testing.assert_array_equal(x, other[name])


@pytest.mark.parametrize("row", rows(), ids=name_of)
def test_metal_kernel_matches_fp64_in_three_schedules(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prove(row, monkeypatch)


CAPPED: tuple[tuple[str, int, mx.Dtype, str], ...] = (
    ("forward", 64, mx.float32, "segments"),
    ("backward_q", 256, mx.bfloat16, "sliding"),
    ("backward_kv", 128, mx.float16, "segments"),
)


@pytest.mark.parametrize(("which", "dim", "dtype", "mask"), CAPPED, ids=str)
def test_softcap_and_narrow_values(
    which: str, dim: int, dtype: mx.Dtype, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of the head dimension, hidden keys, a last tile that is not full."""
    row = {
        "kernel": which,
        "dim": dim,
        "dtype": dtype,
        "mask": mask,
        "layout": "zigzag",
        "group": 2,
        "lengths": (33, 65),
    }
    prove(row | {"softcap": 1.5, "v_dim": dim - 24}, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("which", KERNELS)
def test_softcap_in_every_combination_of_a_layout(which: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in product(kernel=which, dim=dim, layout="zigzag", group=2):
        prove(row | {"softcap": 1.5}, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(3600)  # two minutes of processor time at most, which a busy machine stretches
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("which", KERNELS)
def test_metal_kernel_matches_fp64_in_every_combination(which: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in product(kernel=which, dim=dim):
        prove(row, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_a_ring_of_four_merge_to_the_whole(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the ring does, for rank 1: merge outputs by log-sum-exp, sum gradients with that of all blocks."""
    case = Case(group=2, q_len=100, k_len=100, dim=64, causal=True, window=60, batch=1)
    (q, k, v, do), block = draw(case)
    truth = oracle([q, k, v, do], block, case.scale)
    at = [local_positions(layout, 100, 4, r).astype(np.int32) for r in range(4)]
    mine = at[1]
    lse, delta = (mx.array(truth[name].astype(np.float32)) for name in ("lse", "delta"))
    kernel, emulator = emulate(monkeypatch)
    merged: tuple[mx.array, mx.array] = (mx.zeros((1, 2, len(mine), 64)), mx.full((1, 2, len(mine)), -mx.inf))
    dq, dk, dv = mx.array(0.0), mx.array(0.0), mx.array(0.0)
    for theirs in at:
        forward_mask, backward_mask = (
            Block(*pair, causal=True, window=60) for pair in ((mine, theirs), (theirs, mine))
        )
        own, other = ([mx.take(x, mx.array(i), axis=2) for x in (q, k, v, do, lse, delta)] for i in (mine, theirs))
        part = kernel.forward(own[0], other[1], other[2], forward_mask, scale=case.scale)
        merged = merge_partials(*merged, *part)
        dq = dq + kernel.query_gradient(
            own[0], other[1], other[2], own[3], own[4], own[5], forward_mask, scale=case.scale
        )
        grads = kernel.key_value_gradients(
            other[0], own[1], own[2], other[3], other[4], other[5], backward_mask, scale=case.scale
        )
        dk, dv = dk + grads[0], dv + grads[1]
    for name, x in {"o": merged[0], "lse": merged[1], "dq": dq, "dk": dk, "dv": dv}.items():
        assert_close(np.array(x), truth[name][:, :, mine], f"{name}, {layout}")
    assert emulator.findings == []


def test_padded_head_dimension_rows_without_keys_and_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, emulator = emulate(monkeypatch)
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.standard_normal((2, 1, 20, 50), dtype=np.float32)) for _ in range(3))
    k[1, 0, 3] = float("nan")
    at = np.arange(20, dtype=np.int32)
    o, lse = (np.array(x) for x in kernel.forward(q, k, v, Block(at - 5, at, causal=True), scale=0.2))
    assert o.shape == (2, 1, 20, 50)
    assert not o[:, :, :5].any()
    assert (lse[:, :, :5] == -np.inf).all()
    assert np.isfinite(o[0]).all()
    assert np.isfinite(o[1, 0, :8]).all()  # position 2 and before: the key with NaN is hidden
    assert np.isnan(o[1, 0, 8:]).all()
    nothing, hidden = mx.full((2, 1, 20), -mx.inf), Block(at, at + 100, causal=True)
    for mask in (hidden, Block(at, at)):  # also where only the log-sum-exp of all blocks shows that no key is visible
        grads = kernel.backward(q, q, q, q, nothing, mx.zeros((2, 1, 20)), mask, scale=0.2)
        assert [x.shape for x in grads] == [(2, 1, 20, 50)] * 3
        assert not any(np.array(x).any() for x in grads)
    assert emulator.findings == []


def test_hidden_tiles_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal over equal positions: half of the tiles and a half of the diagonal's are read."""
    q = mx.zeros((1, 1, 256, 64))
    at = np.arange(256, dtype=np.int32)
    counted = []
    for block in (Block(at, at), Block(at, at, causal=True)):
        kernel, emulator = emulate(monkeypatch)
        kernel.forward(q, q, q, block, scale=1.0)
        counted.append(emulator.counts["ringattn_forward"]["multiply_accumulate"])
    assert counted[1] / counted[0] == (2 + 4 + 6 + 8) / 32  # tiles of 64 queries and 32 keys


@pytest.mark.skipif(CLANG is None, reason="no clang: the syntax check with address spaces was not made")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_clang_reads_the_kernels_as_cpp14_with_address_spaces(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, emulator = emulate(monkeypatch, runs=False)
    q = mx.zeros((1, 1, 8, 64), dtype=dtype)
    at = np.arange(8, dtype=np.int32)
    _, lse = kernel.forward(q, q, q, Block(at, at), scale=1.0)
    kernel.backward(q, q, q, q, lse, lse, Block(at, at), scale=1.0)
    assert sorted(emulator.generated) == [f"ringattn_{name}" for name in sorted(KERNELS)]
    for generated in emulator.generated.values():
        check_syntax(generated)


def test_harness_takes_the_signature_from_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Address spaces by size, shapes where the body names them, attributes: as mlx prints them in a process of its own."""
    script = """
import mlx.core as mx
kernel = mx.fast.metal_kernel(name="t", input_names=["q", "few"], output_names=["o"],
    source="o[thread_index_in_simdgroup] = q[q_shape[0]] + few[0];", header="// header\\n")
def call(q, few):
    return kernel(inputs=[q, few], template=[("D", 64)], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)],
        output_dtypes=[mx.float32], verbose=True)[0]
"""
    printed = subprocess.run(
        [sys.executable, "-c", script + "mx.export_function('/dev/null', call, mx.zeros((32, 2), mx.bfloat16), mx.zeros(3))"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    ).stdout  # fmt: skip
    scope: dict[str, Any] = {}
    exec(script, scope)
    generated = generate(lambda arrays: scope["call"](*arrays), [mx.zeros((32, 2), mx.bfloat16), mx.zeros(3)])
    assert generated.text in printed
    assert [(p.name, p.space, p.type, p.const) for p in generated.parameters] == [
        ("q", "device", "bfloat16_t", True),
        ("q_shape", "constant", "int", True),
        ("few", "constant", "float", True),
        ("o", "device", "float", False),
    ]
    assert generated.attributes == ("thread_index_in_simdgroup",)
