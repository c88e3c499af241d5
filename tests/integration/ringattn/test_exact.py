"""Output and gradients against fp64 numpy, on real rank processes, over layouts, masks, GQA, segments, lengths, kernels."""

import functools
import itertools
import json
import random
import tempfile
from pathlib import Path

import pytest

from ringattn import launch

RANKS = Path(__file__).parents[2] / "support" / "ranks"
BOUND = 2e-5
LAYOUTS = ("contiguous", "striped", "zigzag", "weighted")
MASKS = ((False, None), (True, None), (True, 9), (False, 9))  # (causal, window)
Errors = list[list[list[float]]]  # [rank][case] = [o, dq, dk, dv]


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


def third() -> list[dict]:
    """Every combination of layout, mask, segments and length, each with one number of groups: every pair of values occurs."""
    levels = {"layout": LAYOUTS, "segments": (0, 1, 2), "length": (37, 64), "gqa": (1, 2, 8)}

    def keep(case: dict) -> bool:
        place = {name: values.index(case[name]) for name, values in levels.items()}
        mask = MASKS.index((case["causal"], case["window"]))
        return (place["layout"] + mask + place["segments"] + place["length"]) % 3 == place["gqa"]

    return list(filter(keep, product()))


def sample(count: int) -> list[dict]:
    """The same part of the product on every call."""
    return random.Random(0).sample(product(), count)


def by_kernel(cases: list[dict], *kernels: str) -> list[dict]:
    return [case | {"kernel": kernel} for case in cases for kernel in kernels]


HALF = by_kernel(sample(6), "native", "mlx")
# The cases of each size of ring: one ring runs all of them, as starting ranks costs more than most cases. Waiting ranks keep cores
# busy, so large rings have few cases; the long test has all of them.
CASES: dict[int, dict[str, list[dict]]] = {
    1: {"product": product(), "sample": sample(4)},
    2: {
        "kernels": by_kernel(sample(12), "mlx", "reference", "native"),
        "bfloat16": [case | {"dtype": "bfloat16"} for case in HALF],
        "float16": [case | {"dtype": "float16"} for case in HALF],
        "dimensions": [case | {"dim": dim} for dim in (1, 40, 128, 256) for case in sample(3)],
    },
    3: {"kernels": by_kernel(sample(6), "mlx", "reference", "native")},
    4: {"sample": sample(4)},
    8: {"sample": sample(4)},
}


def run(n: int, cases: list[dict], timeout: float = 150.0) -> Errors:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.json"
        path.write_text(json.dumps(cases))
        outputs = launch.run(n, [str(RANKS / "exact.py"), str(path)], timeout=timeout)
    return [json.loads(lines[-1]) for lines in outputs]


@functools.cache
def ring(n: int) -> dict[str, Errors]:
    """Run all cases of a ring of n ranks; return the errors by name."""
    names = CASES[n]
    errors = run(n, [case for cases in names.values() for case in cases])
    ends = list(itertools.accumulate(map(len, names.values()), initial=0))
    return {
        name: [of_rank[first:last] for of_rank in errors]
        for name, (first, last) in zip(names, itertools.pairwise(ends), strict=True)
    }


def worst(errors: Errors) -> float:
    return max(error for of_rank in errors for found in of_rank for error in found)


def check(n: int, cases: list[dict], errors: Errors) -> None:
    for of_rank in errors:
        for case, found in zip(cases, of_rank, strict=True):
            assert max(found) < BOUND, (n, case, found)


@pytest.mark.parametrize(
    ("n", "name"),
    [
        (1, "product"),
        (2, "kernels"),
        (3, "kernels"),
        (2, "dimensions"),
    ],
)
def test_matches_fp64(n: int, name: str) -> None:
    check(n, CASES[n][name], ring(n)[name])


@pytest.mark.long
def test_pairs_of_options_match_fp64_on_two_ranks() -> None:
    check(2, third(), run(2, third()))


@pytest.mark.parametrize("n", [4, pytest.param(8, marks=pytest.mark.long)])
def test_error_does_not_grow_with_ranks(n: int) -> None:
    alone, many = ring(1)["sample"], ring(n)["sample"]
    check(1, CASES[1]["sample"], alone)
    check(n, CASES[n]["sample"], many)
    # Below a few units in the last place the difference is luck.
    assert worst(many) < 2 * max(worst(alone), 1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision_error_is_that_of_rounding(dtype: str, bound: float) -> None:
    assert worst(ring(2)[dtype]) < bound


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", ["native", "mlx", "reference"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_matches_fp64_over_all_combinations(n: int, kernel: str) -> None:
    cases = [case | {"kernel": kernel} for case in product()]
    check(n, cases, run(n, cases, timeout=1700))
