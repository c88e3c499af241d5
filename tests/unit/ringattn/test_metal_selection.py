"""The choice of the Metal kernel on a GPU, which the harness stands for: parity, a difference, a compiler's error, a dimension."""

import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ringattn import kernels, ring_attention
from ringattn._errors import KernelError
from ringattn.kernels import Block, Kernel, available, select
from ringattn.kernels.metal import kernel as metal_kernel
from tests.support.metal.cases import emulate, needs_compiler
from tests.support.metal.emulator import EmulatedMetal

pytestmark = needs_compiler
GPU = mx.Device(mx.gpu)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> EmulatedMetal:
    """A process that has made no kernel yet, on a host whose Apple GPU is the harness."""
    monkeypatch.delenv("RINGATTN_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "_made", {})
    return emulate(monkeypatch)[1]


def attend(kernel: Kernel, dim: int = 64) -> np.ndarray:
    """A block of four keys with equal scores: the output is the mean of the values, 1.5."""
    q = mx.zeros((1, 1, 4, dim))
    v = mx.broadcast_to(mx.arange(4.0)[:, None], (1, 1, 4, dim))
    at = np.arange(4, dtype=np.int32)
    return np.array(kernel.forward(q, q, v, Block(at, at), scale=1.0)[0])


def wrong_source(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Give the kernels a source with a fault."""
    right = metal_kernel.source
    monkeypatch.setattr(metal_kernel, "source", lambda name: right(name).replace(old, new))


def test_metal_is_chosen_on_a_gpu_and_checks_itself_once(gpu: EmulatedMetal) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = select(device=GPU)
        assert kernel.name == "metal"
        assert gpu.counts == {}  # nothing ran before the first use
        np.testing.assert_array_equal(attend(kernel), np.full((1, 1, 4, 64), 1.5))
    checked = dict(gpu.counts["ringattn_backward_kv"])
    assert select(device=GPU) is kernel
    attend(kernel)
    assert gpu.counts["ringattn_backward_kv"] == checked
    assert available()["metal"] is None
    assert select("metal").name == "metal"


def test_kernel_that_differs_is_replaced_with_one_warning(gpu: EmulatedMetal, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_source(monkeypatch, "* scales[0];", "* scales[1];")
    kernel = select(device=GPU)
    said = r"metal kernel's d[qk] differs from the mlx kernel's by .* allowed; please report it with this: D 64, .*float32.* mlx .*; the mlx kernel is used"
    with pytest.warns(RuntimeWarning, match=said) as caught:
        np.testing.assert_array_equal(attend(kernel), np.full((1, 1, 4, 64), 1.5))
        attend(kernel)
    assert len(caught) == 1


def test_softcap_is_checked_apart_from_the_rest(gpu: EmulatedMetal, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_source(monkeypatch, "1.0f - tanh * tanh", "1.0f - tanh")
    kernel = select(device=GPU)
    q, at = mx.ones((1, 1, 4, 64)), np.arange(4, dtype=np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(kernel)  # without a softcap
    with pytest.warns(
        RuntimeWarning, match=r"metal kernel's d[qk] differs .*D 64, .*float32, softcap, .*; the mlx kernel is used"
    ):
        kernel.forward(q, q, q, Block(at, at), scale=1.0, softcap=2.0)


def test_kernel_that_does_not_compile_is_replaced_with_one_warning(
    gpu: EmulatedMetal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_source(monkeypatch, "const int lane =", "const int lanes =")
    kernel = select(device=GPU)
    with pytest.warns(
        RuntimeWarning, match=r"does not run on this GPU \(.*error: .*lane.*please report it.*mlx kernel is used"
    ) as caught:
        np.testing.assert_array_equal(attend(kernel), np.full((1, 1, 4, 64), 1.5))
        attend(kernel)
    assert len(caught) == 1


def test_head_dimension_over_256_is_computed_by_mlx_with_one_warning(gpu: EmulatedMetal) -> None:
    kernel = select(device=GPU)
    with pytest.warns(RuntimeWarning, match="takes D up to 256: got 320; the mlx kernel is used instead") as caught:
        assert attend(kernel, dim=320).shape == (1, 1, 4, 320)
        attend(kernel, dim=320)
    assert len(caught) == 1
    assert gpu.counts == {}


def test_metal_by_name_never_falls_back(gpu: EmulatedMetal, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_source(monkeypatch, "const int lane =", "const int lanes =")
    monkeypatch.setenv("RINGATTN_KERNEL", "metal")
    for dim, said in ((64, "does not run on this GPU"), (320, "takes D up to 256: got 320")):
        with pytest.raises(KernelError, match=f"{said}.*unset RINGATTN_KERNEL"):
            attend(select(), dim=dim)


def test_gpu_without_metal_takes_mlx_and_says_why_metal_can_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGATTN_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "_made", {})
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert select(device=GPU).name == "mlx"
    with pytest.raises(KernelError, match=r"'metal' cannot be used: mlx has no Metal device.*mlx: usable"):
        select("metal")


def test_ring_attention_trains_on_the_metal_kernel(gpu: EmulatedMetal) -> None:
    """Through `ring_attention` and its gradient, on the ring's thread, as on a Mac."""
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.standard_normal((1, 2, 40, 64), dtype=np.float32)) for _ in range(3))

    def loss(kernel: Any) -> Any:
        return lambda *x: (ring_attention(*x, scale=0.125, mask="causal", kernel=kernel) ** 2).sum()

    results = [mx.value_and_grad(loss(kernel), argnums=(0, 1, 2))(q, k, v) for kernel in ("metal", "reference")]
    for got, wanted in zip((results[0][0], *results[0][1]), (results[1][0], *results[1][1]), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(wanted), rtol=2e-5, atol=2e-5)
    assert gpu.findings == []
    assert gpu.counts["ringattn_forward"]["multiply_accumulate"] > 0
