"""Output and gradients against fp64 numpy, on real rank processes, over layouts, masks, GQA, segments, lengths, kernels."""

import itertools
import json
import random
from pathlib import Path

import pytest

from ringattn import launch

RANKS = Path(__file__).parents[2] / "support" / "ranks"
BOUND = 2e-5
LAYOUTS = ("contiguous", "striped", "zigzag", "weighted")
MASKS = ((False, None), (True, None), (True, 9), (False, 9))  # (causal, window)


def product() -> list[dict]:
    """Every combination, with lengths that no number of ranks divides; inputs do not depend on the number of ranks."""
    cases = itertools.product(LAYOUTS, MASKS, (1, 2, 8), (0, 1, 2), (37, 64))
    return [
        {
            "layout": layout,
            "causal": causal,
            "window": window,
            "gqa": gqa,
            "segments": segments,
            "length": length,
            "seed": i,
        }
        for i, (layout, (causal, window), gqa, segments, length) in enumerate(cases)
    ]


def sample(count: int) -> list[dict]:
    """The same part of the product on every call."""
    return random.Random(0).sample(product(), count)


def run(n: int, cases: list[dict], tmp_path: Path, timeout: float = 150.0) -> list[list[list[float]]]:
    """errors[rank][case] = [o, dq, dk, dv]."""
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    outputs = launch.run(n, [str(RANKS / "exact.py"), str(path)], timeout=timeout)
    return [json.loads(lines[-1]) for lines in outputs]


def worst(errors: list[list[list[float]]]) -> float:
    return max(error for of_rank in errors for found in of_rank for error in found)


def check(n: int, cases: list[dict], tmp_path: Path, **options: float) -> float:
    errors = run(n, cases, tmp_path, **options)
    for of_rank in errors:
        for case, found in zip(cases, of_rank, strict=True):
            assert max(found) < BOUND, (n, case, found)
    return worst(errors)


@pytest.mark.parametrize("n", [1, 2])
def test_full_product_native(n: int, tmp_path: Path) -> None:
    check(n, product(), tmp_path)


@pytest.mark.parametrize("n", [2, 3])
def test_kernels_share_one_ring(n: int, tmp_path: Path) -> None:
    check(n, [case | {"kernel": kernel} for case in sample(12) for kernel in ("mlx", "reference", "native")], tmp_path)


def test_error_does_not_grow_with_ranks(tmp_path: Path) -> None:
    cases = sample(10)
    alone = check(1, cases, tmp_path)
    for n in (4, 8):
        # Below a few units in the last place the difference is luck.
        assert check(n, cases, tmp_path) < 2 * max(alone, 1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision_is_as_good_as_its_rounding(dtype: str, bound: float, tmp_path: Path) -> None:
    cases = [case | {"dtype": dtype, "kernel": k} for case in sample(12) for k in ("native", "mlx")]
    errors = run(2, cases, tmp_path)
    assert worst(errors) < bound


def test_head_dimensions(tmp_path: Path) -> None:
    check(2, [case | {"dim": dim} for dim in (1, 40, 128, 256) for case in sample(4)], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", ["native", "mlx", "reference"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_full_product(n: int, kernel: str, tmp_path: Path) -> None:
    check(n, [case | {"kernel": kernel} for case in product()], tmp_path, timeout=1700)
