"""Block kernels against an fp64 numpy oracle: outputs, log-sum-exp and gradients over masks, groups, lengths and dims."""

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn.kernels import Block, Kernel, available, mlx_tiled, select
from ringattn.kernels.native import NativeKernel, isas
from tests.support.attention import TOLERANCE, Case, assert_exact, draw, oracle, run


def native_isas() -> list[str]:
    return list(isas()) if available()["native"] is None else []


KERNEL_NAMES = ["reference", "mlx", *(f"native-{isa}" for isa in native_isas())]


def make(name: str) -> Kernel:
    return NativeKernel(isa=name.removeprefix("native-")) if name.startswith("native-") else select(name)


@pytest.fixture(params=KERNEL_NAMES)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(mlx_tiled, "CPU_TILE", 64)  # several tiles at the tests' small lengths
    return make(request.param)


MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "sliding": {"causal": True, "window": 37},
    "band": {"window": 50},
}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("dim", [1, 8, 40, 64, 80, 128, 256])
def test_matches_fp64_over_masks_groups_and_segments(dim: int, whole: bool) -> None:
    """Every kernel; the two in MLX operations, whose code does not depend on D, at one small D only.

    The whole product at D = 8; at the others by default one number of groups for each mask and segments, each number with each mask or nearly so.
    """
    kernels = [make(name) for name in KERNEL_NAMES if dim == 8 or name.startswith("native")]
    groups = (1, 2, 8)
    for (i, mask), group, (j, segments) in itertools.product(enumerate(MASKS.values()), groups, enumerate((0, 3))):
        if whole or dim == 8 or (dim + i + j) % 3 == groups.index(group):
            assert_exact(Case(q_len=101, k_len=131, dim=dim, group=group, segments=segments, batch=1, **mask), *kernels)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("q_len", "k_len"), [(1, 1), (1, 300), (300, 1), (5, 7), (96, 192), (97, 193), (191, 389)])
def test_matches_fp64_at_odd_lengths(kernel: Kernel, mask: str, q_len: int, k_len: int) -> None:
    assert_exact(Case(q_len=q_len, k_len=k_len, dim=24, kv_heads=2, group=2, **MASKS[mask]), kernel)


@pytest.mark.parametrize("mask", MASKS)
def test_matches_fp64_with_two_runs_of_positions(kernel: Kernel, mask: str) -> None:
    """A new tile begins at zigzag's second chunk; a tile ends at the last column that a row of it sees (64 of 192)."""
    for q_len, k_len, leap in ((300, 500, 1000), (64, 192, 0), (97, 97, 200), (192, 400, 150)):
        for dtype in (mx.float32, mx.bfloat16):
            assert_exact(Case(q_len=q_len, k_len=k_len, leap=leap, dtype=dtype, batch=1, **MASKS[mask]), kernel)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_sixteen_bit_inputs(kernel: Kernel, dtype: mx.Dtype) -> None:
    for dim, mask in itertools.product((7, 64, 72), MASKS.values()):
        assert_exact(Case(dtype=dtype, dim=dim, group=2, **mask), kernel)


@pytest.mark.parametrize(
    ("dim", "v_dim", "dtype", "mask"),
    [(24, 16, mx.float32, "sliding"), (16, 40, mx.bfloat16, "causal"), (70, 1, mx.float16, "full")],
)
def test_values_of_another_width_than_keys(kernel: Kernel, dim: int, v_dim: int, dtype: mx.Dtype, mask: str) -> None:
    """MLA's values are narrower than its keys."""
    assert_exact(Case(dtype=dtype, dim=dim, v_dim=v_dim, group=2, segments=2, **MASKS[mask]), kernel)


@pytest.mark.parametrize(("softcap", "dtype"), [(0.3, mx.float32), (2.0, mx.bfloat16), (50.0, mx.float16)])
def test_softcap(kernel: Kernel, softcap: float, dtype: mx.Dtype) -> None:
    """Scores far over the cap, about it, and far under it (Gemma 2's)."""
    for mask in ("full", "sliding"):
        assert_exact(Case(softcap=softcap, dtype=dtype, dim=12, k_len=151, group=2, batch=1, **MASKS[mask]), kernel)


def test_softcap_holds_huge_scores(kernel: Kernel) -> None:
    (q, k, v, do), block = draw(Case(causal=True))
    arrays = [q * 1e6, k * 1e6, v, do]
    truth = oracle(arrays, block, 1.0, softcap=3.0)
    got = run(kernel, arrays, block, truth, scale=1.0, softcap=3.0)
    for name, x in got.items():
        np.testing.assert_allclose(x, truth[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)
    assert not got["dq"].any()  # tanh is flat there


def test_fp16_subnormals_and_large_values_convert_exactly(kernel: Kernel) -> None:
    values = np.array([6e-8, -6e-8, 5.9e-5, 65504, -65504, 0.0, 1.0, 2.0**-14] * 8, dtype=np.float16).reshape(
        1, 1, 1, 64
    )
    v = mx.array(values)
    pos = np.zeros(1, dtype=np.int32)
    o, _ = kernel.forward(mx.zeros_like(v), mx.zeros_like(v), v, Block(pos, pos), scale=1.0)
    np.testing.assert_array_equal(np.array(o), values.astype(np.float32))


CASES = st.builds(
    Case,
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    q_len=st.integers(1, 230),
    k_len=st.integers(1, 420),
    dim=st.integers(1, 70),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 300),
    segments=st.integers(0, 4),
    v_dim=st.sampled_from([0, 0, 9, 33]),
    dtype=st.sampled_from([mx.float32, mx.bfloat16, mx.float16]),
    softcap=st.sampled_from([None, None, 0.5, 4.0]),
    shuffled=st.booleans(),
    leap=st.sampled_from([0, 0, 90, 1000]),
    seed=st.integers(0, 99),
)


@pytest.mark.parametrize("name", [n for n in KERNEL_NAMES if n != "native-portable"])
@given(case=CASES)
@settings(max_examples=15)
def test_matches_fp64_on_random_blocks(name: str, case: Case) -> None:
    assert_exact(case, make(name))


def test_merged_blocks_equal_whole_attention(kernel: Kernel) -> None:
    """As the ring does: merge forward by log-sum-exp, sum backward with the global log-sum-exp."""
    case = Case(causal=True, group=2, dim=32)
    (q, k, v, do), block = draw(case)
    truth = oracle([q, k, v, do], block, case.scale)
    cuts = [slice(0, 90), slice(90, 91), slice(91, 229)]
    blocks = [Block(block.q_pos, np.ascontiguousarray(block.k_pos[at]), causal=True) for at in cuts]
    parts = [
        kernel.forward(q, k[:, :, at], v[:, :, at], b, scale=case.scale) for at, b in zip(cuts, blocks, strict=True)
    ]
    lses = np.stack([np.array(lse) for _, lse in parts])
    lse = np.logaddexp.reduce(lses)
    o = sum(np.array(part) * np.exp(part_lse - lse)[..., None] for (part, _), part_lse in zip(parts, lses, strict=True))
    np.testing.assert_allclose(o, truth["o"], atol=TOLERANCE)
    delta = mx.array(truth["delta"].astype(np.float32))
    grads = [
        kernel.backward(q, k[:, :, at], v[:, :, at], do, mx.array(lse), delta, b, scale=case.scale)
        for at, b in zip(cuts, blocks, strict=True)
    ]
    np.testing.assert_allclose(sum(np.array(dq) for dq, _, _ in grads), truth["dq"], atol=TOLERANCE)
    for i, name in ((1, "dk"), (2, "dv")):
        whole = np.concatenate([np.array(g[i]) for g in grads], axis=2)
        np.testing.assert_allclose(whole, truth[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_rows_that_see_no_key_are_zero(kernel: Kernel) -> None:
    (q, k, v, do), block = draw(Case())
    later = Block(block.q_pos, block.k_pos + 1000, causal=True)
    o, lse = kernel.forward(q, k, v, later, scale=1.0)
    assert not np.array(o).any()
    assert (np.array(lse) == -np.inf).all()
    for mask in (later, block):  # also where only the global log-sum-exp shows that no key is visible
        grads = kernel.backward(q, k, v, do, lse, mx.zeros(lse.shape), mask, scale=1.0)
        assert all(not np.array(g).any() for g in grads)


def test_nan_input_gives_nan_output(kernel: Kernel) -> None:
    (q, k, v, _), block = draw(Case())
    k[0, 0, 5] = float("nan")
    o, _ = kernel.forward(q, k, v, block, scale=1.0)
    assert np.isnan(np.array(o)[0]).all()
    assert np.isfinite(np.array(o)[1]).all()


def test_large_scores_do_not_overflow(kernel: Kernel) -> None:
    (q, k, v, do), block = draw(Case(causal=True))
    truth = oracle([q * 30, k * 30, v, do], block, 1.0)
    got = run(kernel, [q * 30, k * 30, v, do], block, truth, scale=1.0)
    assert all(np.isfinite(x).all() or name == "lse" for name, x in got.items())
    np.testing.assert_allclose(got["o"], truth["o"], atol=2e-2)  # scores of 1e4 keep 1e-3 in fp32


def test_strided_inputs(kernel: Kernel) -> None:
    case = Case(kv_heads=2, group=2)
    arrays, block = draw(case)
    strided = [mx.contiguous(x.swapaxes(1, 2)).swapaxes(1, 2) for x in arrays]
    truth = oracle(arrays, block, case.scale)
    got = run(kernel, strided, block, truth, scale=case.scale)
    np.testing.assert_allclose(got["dq"], truth["dq"], atol=TOLERANCE)
    np.testing.assert_allclose(got["o"], truth["o"], atol=TOLERANCE)
