"""The kernel tests on arm64: NEON and portable code of GCC and clang, run by qemu, against the fp64 oracle with the same bounds.

qemu on x86-64 orders memory strongly, so these tests prove results and bounds of memory, not the order between threads, and no speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ringattn.kernels.native import NativeKernel, isas
from tests.support.arm64.kernel import COMPILERS, ForeignKernel, build, why_not
from tests.support.attention import Case, assert_exact, draw
from tests.unit.ringattn import test_kernels as native
from tests.unit.ringattn.test_kernels import CASES, MASKS

pytestmark = pytest.mark.long  # half a minute a compiler; a step of its own in CI


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := why_not(request.param):
        pytest.skip(reason)
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def kernel(program: Path) -> Iterator[ForeignKernel]:
    with closing(ForeignKernel(program, "neon")) as one:
        yield one


# The very tests of this machine's kernels: pytest collects them here with the fixture above.
test_matches_fp64_at_odd_lengths = native.test_matches_fp64_at_odd_lengths
test_matches_fp64_with_two_runs_of_positions = native.test_matches_fp64_with_two_runs_of_positions
test_sixteen_bit_inputs = native.test_sixteen_bit_inputs
test_values_of_another_width_than_keys = native.test_values_of_another_width_than_keys
test_softcap = native.test_softcap
test_softcap_holds_huge_scores = native.test_softcap_holds_huge_scores
test_fp16_subnormals_and_large_values_convert_exactly = native.test_fp16_subnormals_and_large_values_convert_exactly
test_merged_blocks_equal_whole_attention = native.test_merged_blocks_equal_whole_attention
test_rows_that_see_no_key_are_zero = native.test_rows_that_see_no_key_are_zero
test_nan_input_gives_nan_output = native.test_nan_input_gives_nan_output
test_large_scores_do_not_overflow = native.test_large_scores_do_not_overflow
test_strided_inputs = native.test_strided_inputs


@pytest.mark.parametrize("dim", [1, 8, 40, 64, 80, 128, 256])
def test_matches_fp64_over_masks_groups_and_segments(kernel: ForeignKernel, dim: int) -> None:
    groups, q_len = (
        ((1, 2, 8), 101) if dim <= 8 else ((1, 2), 101) if dim < 128 else ((1, 2), 37)
    )  # emulated products are slow
    for mask, group, segments in itertools.product(MASKS.values(), groups, (0, 3)):
        assert_exact(Case(q_len=q_len, k_len=131, dim=dim, group=group, segments=segments, batch=1, **mask), kernel)


@given(case=CASES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_fp64_on_random_blocks(kernel: ForeignKernel, case: Case) -> None:
    assert_exact(case, kernel)


def test_portable_code_matches_fp64(program: Path) -> None:
    with closing(ForeignKernel(program, "portable")) as one:
        for mask, dtype in itertools.product(MASKS.values(), (mx.float32, mx.bfloat16, mx.float16)):
            assert_exact(Case(dim=40, group=2, segments=3, leap=90, dtype=dtype, **mask), one)


def test_any_number_of_threads_gives_the_same_bits(program: Path) -> None:
    case = Case(kv_heads=3, group=2, causal=True, dim=40)
    (q, k, v, do), block = draw(case)
    results = []
    for threads in (1, 2, 4):
        with closing(ForeignKernel(program, "neon", threads)) as one:
            o, lse = one.forward(q, k, v, block, scale=case.scale)
            grads = one.backward(q, k, v, do, lse, mx.zeros(lse.shape), block, scale=case.scale)
            results.append([np.array(x).tobytes() for x in (o, lse, *grads)])
    assert results[0] == results[1] == results[2]


def test_difference_is_found(kernel: ForeignKernel) -> None:
    """The driver computes what it is sent: another scale gives another result."""
    case = Case(dim=40)
    (q, k, v, _), block = draw(case)
    same, other = (
        np.array(kernel.forward(q, k, v, block, scale=scale)[0]) for scale in (case.scale, 1.01 * case.scale)
    )
    here = np.array(NativeKernel(isa="portable").forward(q, k, v, block, scale=case.scale)[0])
    assert "portable" in isas() and abs(same - here).max() < 1e-5 < abs(other - here).max()
