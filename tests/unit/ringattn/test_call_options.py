"""Options of ring_attention on a group of one, and the needs that follow from segments and positions."""

from typing import Any

import hypothesis.strategies as st
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings

from ringattn import ring_attention
from ringattn._handshake import Options, _fields, _plan, check_arguments
from ringattn.kernels import select
from ringattn.ring import merge_sinks

SCALE = 0.5


def normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32))


@st.composite
def divisions(draw: st.DrawFn) -> dict[str, Any]:
    """Queries and keys anywhere in a sequence, divided over ranks in any way."""
    size = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    lengths = [[draw(st.integers(0, 6)) for _ in range(size)] for _ in range(2)]
    return {
        "positions": [[rng.integers(-20, 40, n).astype(np.int32) for n in of_side] for of_side in lengths],
        "segments": [[rng.integers(0, 4, n).astype(np.int32) for n in of_side] for of_side in lengths]
        if draw(st.booleans())
        else None,
        "mask": draw(st.sampled_from([None, "causal"])),
        "window": draw(st.none() | st.integers(1, 12)),
    }


@given(case=divisions())
@settings(max_examples=30)
def test_needs_of_explicit_positions_never_miss_a_visible_key(case: dict[str, Any]) -> None:
    (at, keys_at), ids = case["positions"], case["segments"] or [[None] * 9, [None] * 9]
    size = len(at)
    calls = []
    for r in range(size):
        q, k = (mx.zeros((1, 1, len(of_side[r]), 1)) for of_side in (at, keys_at))
        options = Options(SCALE, case["mask"], case["window"], ids[0][r], ids[1][r], at[r], keys_at[r])
        calls.append(check_arguments(q, k, k, options))
    rows = [_fields(call) for call in calls]
    plan = _plan(calls[0], rows, 0)
    for mine in range(size):
        for theirs in range(size):
            gap = at[mine][:, None] - keys_at[theirs][None, :]
            seen = np.ones(gap.shape, bool)
            if case["mask"]:
                seen &= gap >= 0
            if case["window"]:
                seen &= (gap if case["mask"] else abs(gap)) < case["window"]
            if case["segments"]:
                seen &= case["segments"][0][mine][:, None] == case["segments"][1][theirs][None, :]
            assert plan.needs[mine][theirs] or not seen.any()
            assert gap.size or not plan.needs[mine][theirs]  # nothing to compute, nothing to send


@pytest.mark.parametrize("kernel", ["native", "mlx"])
def test_calls_with_disjoint_keys_merge_to_one_with_its_gradient(kernel: str) -> None:
    """By their log-sum-exps, as a user may; some queries see nothing of a part, one sees nothing at all (NaN in mx.logaddexp's gradient)."""
    q, k, v = normal(1, 4, 9, 8), normal(1, 2, 14, 8), normal(1, 2, 14, 6)
    at, keys_at = np.arange(9) * 2, np.arange(14) + 1
    parts = [np.arange(0, 5), np.arange(5, 14)]
    options: dict[str, Any] = {"scale": SCALE, "mask": "causal", "positions": at, "kernel": kernel}

    def whole(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (ring_attention(q, k, v, key_positions=keys_at, **options) ** 2).sum()

    def merged(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        found = []
        for part in parts:
            rows = mx.array(part)
            found.append(
                ring_attention(q, k[:, :, rows], v[:, :, rows], key_positions=keys_at[part], return_lse=True, **options)
            )
        (o_1, lse_1), (o_2, lse_2) = found
        lse = mx.logaddexp(lse_1, lse_2)
        weights = [mx.where(lse == -mx.inf, 0.0, mx.exp(x - lse))[..., None] for x in (lse_1, lse_2)]
        return ((o_1 * weights[0] + o_2 * weights[1]) ** 2).sum()

    wanted = mx.value_and_grad(whole, argnums=(0, 1, 2))(q, k, v)
    got = mx.value_and_grad(merged, argnums=(0, 1, 2))(q, k, v)
    for a, b in zip((got[0], *got[1]), (wanted[0], *wanted[1]), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-5, atol=2e-5)


def test_gradient_of_the_log_sum_exp_alone() -> None:
    """D lse / d q = scale * sum of p k, and nothing of v."""
    q, k, v = normal(1, 1, 3, 4), normal(1, 1, 5, 4), normal(1, 1, 5, 4)

    def total(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return ring_attention(q, k, v, scale=SCALE, return_lse=True)[1].sum()

    dq, dk, dv = mx.grad(total, argnums=(0, 1, 2))(q, k, v)
    p = mx.softmax(SCALE * q @ k.swapaxes(-1, -2), axis=-1)
    np.testing.assert_allclose(np.array(dq), np.array(SCALE * p @ k), atol=2e-6)
    np.testing.assert_allclose(np.array(dk), np.array(SCALE * p.swapaxes(-1, -2) @ q), atol=2e-6)
    assert not np.array(dv).any()


def test_no_keys_at_all_give_zeros_and_their_gradients() -> None:
    q, none = normal(1, 2, 3, 4), mx.zeros((1, 1, 0, 4))
    o, lse = ring_attention(q, none, none, scale=SCALE, return_lse=True)
    assert o.shape == (1, 2, 3, 4) and not np.array(o).any()
    assert np.isneginf(np.array(lse)).all()
    dq, dk = mx.grad(lambda q, k: ring_attention(q, k, none, scale=SCALE).sum(), argnums=(0, 1))(q, none)
    assert not np.array(dq).any() and dk.shape == none.shape


def test_sinks_of_a_large_logit_take_everything_and_of_minus_infinity_nothing() -> None:
    q, k, v = normal(1, 2, 5, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    plain, lse = ring_attention(q, k, v, scale=SCALE, mask="causal", return_lse=True)
    o, with_sinks = ring_attention(
        q, k, v, scale=SCALE, mask="causal", sinks=mx.array([-mx.inf, 100.0]), return_lse=True
    )
    np.testing.assert_array_equal(np.array(o)[:, 0], np.array(plain)[:, 0])
    np.testing.assert_array_equal(np.array(with_sinks)[:, 0], np.array(lse)[:, 0])
    assert not np.array(o)[:, 1].any()
    nothing = mx.full((1, 1, 2), -mx.inf)
    o, lse = merge_sinks(mx.zeros((1, 1, 2, 3)), nothing, mx.array([-mx.inf]))
    assert not np.array(o).any() and np.isneginf(np.array(lse)).all()


def test_kernel_that_knows_no_softcap_is_used_without_one() -> None:
    mlx = select("mlx")

    class Plain:
        name = "plain"

        def forward(self, q: Any, k: Any, v: Any, block: Any, *, scale: float) -> Any:
            return mlx.forward(q, k, v, block, scale=scale)

        def backward(self, *tensors: Any, scale: float) -> Any:
            return mlx.backward(*tensors, scale=scale)

    q = normal(1, 1, 4, 4)
    kernel: Any = Plain()
    o, wanted = (ring_attention(q, q, q, scale=SCALE, kernel=x) for x in (kernel, "mlx"))
    np.testing.assert_array_equal(np.array(o), np.array(wanted))
