"""What the Metal kernels do on an 8-head block of 4,096, by the harness's counts and a table of published costs: no Mac was measured."""

import itertools
from collections import Counter
from dataclasses import fields
from pathlib import Path

import mlx.core as mx
import pytest

from ringattn.hosts import METAL_SHARES
from tests.support.metal.cases import KERNELS, needs_compiler
from tests.support.metal.costs import Costs, slots
from tests.support.metal.traffic import TILINGS, block_counts, group_counts

pytestmark = needs_compiler
LENGTH, HEADS = 4096, 8
LEAST_SHARE = 0.62
"""Forward plus backward at D 64: what metal-flash-attention's README reports of M1 and M2."""
KB = 1024


def once(which: str, dim: int, size: int) -> int:
    """Bytes that must cross device memory: own rows and results once, the other side's once a tile of own rows."""
    rows, tiles = HEADS * LENGTH, LENGTH // TILINGS[which][dim].own
    matrix, row_numbers = rows * dim, rows * 4
    own = {
        "forward": matrix * size + matrix * 4 + row_numbers,  # q, o, lse
        "backward_q": 2 * matrix * size + matrix * 4 + 2 * row_numbers,  # q, dO, dQ, lse, delta
        "backward_kv": 2 * matrix * size + 2 * matrix * 4,  # k, v, dK, dV
    }[which]
    streamed = 2 * matrix * size + (2 * row_numbers if which == "backward_kv" else 0)
    return own + tiles * streamed


def moved(counts: Counter[str]) -> int:
    return counts["device_load_bytes"] + counts["device_store_bytes"]


@pytest.mark.parametrize("dim", [64, pytest.param(128, marks=pytest.mark.long)])
@pytest.mark.parametrize("which", KERNELS)
def test_device_memory_is_read_once_a_tile(which: str, dim: int) -> None:
    """Within 1.3 of the least."""
    counts = block_counts(which, dim, LENGTH, HEADS)
    assert TILINGS[which][dim].own >= 32
    assert 1.0 <= moved(counts) / once(which, dim, size=4) < 1.3


@pytest.mark.long
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("which", KERNELS)
def test_counts_of_four_tiles_tell_those_of_all(which: str, dim: int) -> None:
    whole = group_counts(which, dim, LENGTH, mx.float32)
    groups = HEADS * LENGTH // TILINGS[which][dim].own
    told = block_counts(which, dim, LENGTH, HEADS)
    for name in whole.keys() - {"threadgroup_bytes"}:
        assert told[name] == groups * whole[name], name


@pytest.mark.parametrize("which", KERNELS)
def test_threadgroup_memory_is_under_32_kb(which: str) -> None:
    """By the declarations, for every head dimension; the harness's runs at each dimension count the same."""
    for tiling in TILINGS[which].values():
        tile = tiling.streamed * (tiling.dim + 4)
        sums = tiling.parts * tiling.own * tiling.streamed * (1 if which == "forward" else 2) if tiling.parts > 1 else 1
        rows = 2 * tiling.streamed if which == "backward_kv" else 0
        assert 4 * (2 * tile + sums + rows) < 32 * KB
        assert tiling.threads <= 256


def shares(dim: int, dtype: mx.Dtype) -> dict[tuple[str, float], float]:
    """Multiply-accumulates' share in the time of the three kernels, by the table and with each cost 30% lower or higher."""
    counted = [block_counts(which, dim, LENGTH, HEADS, dtype) for which in KERNELS]
    found = {}
    for name, factor in [("", 1.0), *((f.name, factor) for f in fields(Costs) for factor in (0.7, 1.3))]:
        bounds = [slots(counts, Costs().scaled(name, factor) if name else Costs()) for counts in counted]
        found[name, factor] = sum(s.multiply_accumulate for s in bounds) / sum(s.bound for s in bounds)
    return found


@pytest.mark.parametrize("dtype", [mx.float32, pytest.param(mx.bfloat16, marks=pytest.mark.long)], ids=str)
def test_multiply_accumulates_fill_the_issue_slots(dtype: mx.Dtype) -> None:
    found = shares(64, dtype)
    assert min(found.values()) >= LEAST_SHARE, found
    assert max(found.values()) <= 1.0


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        pytest.param(dim, dtype, marks=[] if (dim, dtype) == (64, mx.float32) else pytest.mark.long)
        for dim, dtype in itertools.product((64, 128), (mx.float32, mx.bfloat16))
    ],
    ids=str,
)
def test_planner_takes_the_shares_of_these_counts(dim: int, dtype: mx.Dtype) -> None:
    """Of the work that a step needs: an instruction of 18 slots does 16 slots' FLOPs, and backward computes 5 products with 7."""
    forward, *backward = (slots(block_counts(which, dim, LENGTH, HEADS, dtype), Costs()) for which in KERNELS)
    useful = 16 / Costs().multiply_accumulate
    shares = (
        forward.multiply_accumulate * useful / forward.bound,
        sum(s.multiply_accumulate for s in backward) * useful * 5 / 7 / sum(s.bound for s in backward),
    )
    assert METAL_SHARES[dim, dtype.size] == pytest.approx(shares, abs=0.006)


@pytest.mark.long
def test_documented_counts_are_those_of_the_harness() -> None:
    page = (Path(__file__).parents[3] / "docs" / "internals" / "metal_kernel.md").read_text()
    for dim, (dtype, label) in itertools.product((64, 128), ((mx.float32, "fp32"), (mx.bfloat16, "bf16"))):
        found = shares(dim, dtype)
        counted = {which: block_counts(which, dim, LENGTH, HEADS, dtype) for which in KERNELS}
        over = [moved(counts) / once(which, dim, dtype.size) for which, counts in counted.items()]
        threadgroup = max(counts["threadgroup_bytes"] for counts in counted.values())
        row = [dim, label, *(f"{x:.2f}" for x in (found["", 1.0], min(found.values()), max(found.values())))]
        row += [" / ".join(f"{x:.2f}" for x in over), f"{threadgroup:,} bytes"]
        assert f"| {' | '.join(map(str, row))} |" in page
