"""Decode over keys that stay sharded: against fp64 numpy on real ranks, and its refusals."""

import itertools
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import ringattn as ra
from ringattn import RankFailed, launch

RANKS = Path(__file__).parents[2] / "support" / "ranks"


def cases() -> list[dict]:
    """Every pair of share, window, sinks and dtype with kernels, group sizes, widths and lengths in turn."""
    turns = itertools.cycle(
        [("native", 1, 16, 1, 61), ("mlx", 4, 16, 3, 700), ("reference", 2, 8, 1, 5), ("native", 8, 16, 6, 700)]
    )
    return [
        {
            "share": share,
            "window": window,
            "sinks": sinks,
            "softcap": 1.5 if seed % 3 == 0 else None,
            "dtype": dtype,
            "kernel": kernel,
            "gqa": gqa,
            "kv_heads": 2,
            "dim": 16,
            "width": width,
            "queries": min(queries, length),
            "length": length,
            "seed": seed,
        }
        for seed, ((share, window, sinks, dtype), (kernel, gqa, width, queries, length)) in enumerate(
            zip(
                itertools.product(("one", "random"), (None, 7), (False, True), ("float32", "bfloat16")),
                turns,
                strict=False,
            )
        )
    ]


def run(n: int, tmp_path: Path) -> list[dict]:
    """Run all cases on n ranks, compare them with fp64, and return every rank's report."""
    (tmp_path / "cases.json").write_text(json.dumps(cases()))
    lines = launch.run(n, [str(RANKS / "decode.py"), str(tmp_path / "cases.json")], timeout=150)
    reports = [json.loads(of_rank[-1]) for of_rank in lines]
    for report in reports:
        for case, error in zip(cases(), report["errors"], strict=True):
            assert error < (2e-5 if case["dtype"] == "float32" else 2e-2), (n, case, error)
    return reports


def test_decode_matches_fp64_on_three_ranks_and_reports_other_calls_on_each(tmp_path: Path) -> None:
    refused = [report["refused"] for report in run(3, tmp_path)]
    unlike = ["MismatchError"] * 3
    # A refused window, another tag, another position; after each of them the ring goes on.
    assert refused == [[*unlike, ""], ["ArgumentError", *unlike[1:], ""], [*unlike, ""]]


@pytest.mark.parametrize(("heads", "dim", "says"), [(2, 4, "head dimension"), (1, 8, "query heads")])
def test_ranks_of_other_shapes_are_told_both(tmp_path: Path, heads: int, dim: int, says: str) -> None:
    """Rank 1, whose message is the shorter one, returned an output of what it had received."""
    (tmp_path / "ranks.py").write_text(
        "import mlx.core as mx, ringattn\n"
        "rank = ringattn.init().rank()\n"
        f"x = mx.ones((1, 2, 1, 8)) if rank == 0 else mx.ones((1, {heads}, 1, {dim}))\n"
        "ringattn.decode_attention(x, x, x, scale=0.3, positions=[9], key_positions=[rank], timeout=20)\n"
    )
    values = "4 on rank 1, 8 on rank 0" if dim == 4 else "1 on rank 1, 2 on rank 0"
    with launch.LocalRing(2, [str(tmp_path / "ranks.py")]) as ring:
        with pytest.raises(RankFailed):
            ring.wait(60)
        last = ring.output(1)[-1]
    assert last.endswith(f"MismatchError: {says} must be the same on every rank, but is {values}"), last


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2, 4])
def test_decode_matches_fp64(n: int, tmp_path: Path) -> None:
    run(n, tmp_path)


def call(**changed: object) -> mx.array:
    arguments: dict = {
        "q": mx.ones((1, 4, 1, 8)),
        "k": mx.ones((1, 2, 5, 8)),
        "v": mx.ones((1, 2, 5, 8)),
        "scale": 0.3,
        "positions": [5],
        "key_positions": range(5),
    } | changed
    return ra.decode_attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


@pytest.mark.parametrize(
    ("changed", "kind", "says"),
    [
        ({"q": np.ones((1, 4, 1, 8))}, ra.DTypeError, "q is ndarray"),
        ({"k": mx.ones((1, 3, 5, 8)), "v": mx.ones((1, 3, 5, 8))}, ra.ShapeError, "4 query heads"),
        ({"v": mx.ones((1, 2, 4, 8))}, ra.ShapeError, "must agree"),
        ({"key_positions": range(4)}, ra.ShapeError, "one position a token"),
        ({"key_positions": np.ones(5)}, ra.DTypeError, "must be integers"),
        ({"window": 0}, ra.ArgumentError, "window 0"),
        ({"softcap": -1.0}, ra.ArgumentError, "softcap -1.0"),
        ({"scale": None}, ra.ArgumentError, "scale None"),
        ({"sinks": mx.ones(3)}, ra.ShapeError, "one score a query head"),
    ],
)
def test_decode_refuses(changed: dict, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        call(**changed)


def test_decode_has_no_silent_zero_gradient() -> None:
    with pytest.raises(ra.TransformError, match="has no derivative"):
        mx.eval(mx.grad(lambda q: call(q=q).sum())(mx.ones((1, 4, 1, 8))))
    with pytest.raises(ra.TransformError, match="cannot be inside"):
        mx.compile(lambda q: call(q=q))(mx.ones((1, 4, 1, 8)))


def test_a_rank_without_keys_and_a_query_without_keys() -> None:
    assert np.array(call(k=mx.ones((1, 2, 0, 8)), v=mx.ones((1, 2, 0, 8)), key_positions=[])).max() == 0
    assert np.array(call(key_positions=range(6, 11))).max() == 0  # all keys are later
