"""Block kernels against an fp64 numpy oracle: outputs, log-sum-exp and gradients over masks, groups, lengths and dims."""

import itertools
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn.kernels import Block, Kernel, available, mlx_tiled, select
from ringattn.kernels.native import NativeKernel, isas

TOLERANCE = 2e-5  # absolute, plus the same relative; arithmetic is fp32 except bf16 by dot products
HALF_UNIT = 2.0**-8  # relative error of rounding to bf16


def native_isas() -> list[str]:
    return list(isas()) if available()["native"] is None else []


KERNEL_NAMES = ["reference", "mlx", *(f"native-{isa}" for isa in native_isas())]


def make(name: str) -> Kernel:
    return NativeKernel(isa=name.removeprefix("native-")) if name.startswith("native-") else select(name)


@pytest.fixture(params=KERNEL_NAMES)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(mlx_tiled, "CPU_TILE", 64)  # several tiles at the tests' small lengths
    return make(request.param)


@dataclass(frozen=True)
class Case:
    """One block: sizes, mask, dtype."""

    kv_heads: int = 1
    group: int = 1
    q_len: int = 101
    k_len: int = 229
    dim: int = 16
    causal: bool = False
    window: int | None = None
    segments: int = 0
    dtype: mx.Dtype = mx.float32
    shuffled: bool = False
    leap: int = 0  # between two runs of positions, as in zigzag
    batch: int = 2
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.dim**-0.5


def draw(case: Case) -> tuple[list[mx.array], Block]:
    """q, k, v, do (rounded to the case's dtype) and the block."""
    rng = np.random.default_rng(case.seed)
    q_shape = (case.batch, case.kv_heads * case.group, case.q_len, case.dim)
    k_shape = (case.batch, case.kv_heads, case.k_len, case.dim)
    arrays = [
        mx.array(rng.standard_normal(s, dtype=np.float32)).astype(case.dtype)
        for s in (q_shape, k_shape, k_shape, q_shape)
    ]
    q_pos = np.arange(case.q_len, dtype=np.int32) + max(0, case.k_len - case.q_len) // 2
    k_pos = np.arange(case.k_len, dtype=np.int32)
    q_pos[case.q_len // 3 :] += case.leap
    k_pos[case.k_len // 2 :] += case.leap
    if case.shuffled:
        rng.shuffle(q_pos)
        rng.shuffle(k_pos)
    segs = (
        [np.sort(rng.integers(0, case.segments, (case.batch, n)).astype(np.int32)) for n in (case.q_len, case.k_len)]
        if case.segments
        else [None, None]
    )
    return arrays, Block(q_pos, k_pos, case.causal, case.window, *segs)


def sees(block: Block) -> np.ndarray:
    """The mask's definition, independent of the library's: [B or 1, 1, Tq, Tk]."""
    gap = block.q_pos[:, None].astype(int) - block.k_pos[None, :].astype(int)
    mask = np.ones_like(gap, dtype=bool)
    if block.causal:
        mask &= gap >= 0
    if block.window is not None:
        mask &= np.abs(gap) < block.window
    if block.q_seg is None or block.k_seg is None:
        return mask[None, None]
    return (mask & (block.q_seg[..., :, None] == block.k_seg[..., None, :])).reshape(-1, 1, *mask.shape)


def oracle(arrays: list[mx.array], block: Block, scale: float) -> dict[str, np.ndarray]:
    q, k, v, do = (np.array(x.astype(mx.float32)).astype(np.float64) for x in arrays)
    group = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.where(sees(block), q @ keys.swapaxes(-1, -2) * scale, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    p = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + np.where(np.isinf(top), 0, top))[..., 0]
    p /= np.where(total == 0, 1, total)
    o = p @ values
    delta = (do * o).sum(axis=-1)
    ds = p * (do @ values.swapaxes(-1, -2) - delta[..., None]) * scale

    def by_kv_head(x: np.ndarray) -> np.ndarray:
        return x.reshape(*k.shape[:2], group, *k.shape[2:]).sum(axis=2)

    return {
        "o": o,
        "lse": lse,
        "dq": ds @ keys,
        "dk": by_kv_head(ds.swapaxes(-1, -2) @ q),
        "dv": by_kv_head(p.swapaxes(-1, -2) @ do),
        "delta": delta,
        # Error bounds of rounding P and dS to bf16.
        "o by": HALF_UNIT * p @ abs(values),
        "lse by": np.zeros_like(lse),
        "dq by": HALF_UNIT * abs(ds) @ abs(keys),
        "dk by": HALF_UNIT * by_kv_head(abs(ds).swapaxes(-1, -2) @ abs(q)),
        "dv by": HALF_UNIT * by_kv_head(p.swapaxes(-1, -2) @ abs(do)),
    }


def run(kernel: Kernel, arrays: list[mx.array], block: Block, scale: float, truth: dict) -> dict[str, np.ndarray]:
    q, k, v, do = arrays
    o, own_lse = kernel.forward(q, k, v, block, scale=scale)
    lse, delta = (mx.array(truth[name].astype(np.float32)) for name in ("lse", "delta"))
    dq, dk, dv = kernel.backward(q, k, v, do, lse, delta, block, scale=scale)
    return {name: np.array(x) for name, x in {"o": o, "lse": own_lse, "dq": dq, "dk": dk, "dv": dv}.items()}


def assert_exact(case: Case, *kernels: Kernel) -> None:
    arrays, block = draw(case)
    truth = oracle(arrays, block, case.scale)
    for kernel in kernels:
        for name, got in run(kernel, arrays, block, case.scale, truth).items():
            assert got.dtype == np.float32
            rounded = case.dtype == mx.bfloat16 and "bf16" in getattr(kernel, "isa", "")
            by = truth[f"{name} by"] if rounded else np.zeros(())
            where = f"{name} of {kernel.name} {getattr(kernel, 'isa', '')}, {case}"
            finite = np.isfinite(truth[name])
            np.testing.assert_array_equal(got[~finite], truth[name][~finite], err_msg=where)
            got, wanted, by = got[finite], truth[name][finite], np.broadcast_to(by, got.shape)[finite]
            assert (abs(got - wanted) <= by + TOLERANCE * (1 + abs(wanted))).all(), where


MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "sliding": {"causal": True, "window": 37},
    "band": {"window": 50},
}


@pytest.mark.parametrize("dim", [1, 8, 40, 64, 80, 128, 256])
def test_matches_fp64_over_masks_groups_and_segments(dim: int) -> None:
    """Every kernel; the two in MLX operations, whose code does not depend on D, at one small D only."""
    kernels = [make(name) for name in KERNEL_NAMES if dim == 8 or name.startswith("native")]
    for mask, group, segments in itertools.product(MASKS.values(), (1, 2, 8), (0, 3)):
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
    dtype=st.sampled_from([mx.float32, mx.bfloat16, mx.float16]),
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
    got = run(kernel, [q * 30, k * 30, v, do], block, 1.0, truth)
    assert all(np.isfinite(x).all() or name == "lse" for name, x in got.items())
    np.testing.assert_allclose(got["o"], truth["o"], atol=2e-2)  # scores of 1e4 keep 1e-3 in fp32


def test_strided_inputs(kernel: Kernel) -> None:
    case = Case(kv_heads=2, group=2)
    arrays, block = draw(case)
    strided = [mx.contiguous(x.swapaxes(1, 2)).swapaxes(1, 2) for x in arrays]
    truth = oracle(arrays, block, case.scale)
    got = run(kernel, strided, block, case.scale, truth)
    np.testing.assert_allclose(got["dq"], truth["dq"], atol=TOLERANCE)
    np.testing.assert_allclose(got["o"], truth["o"], atol=TOLERANCE)
