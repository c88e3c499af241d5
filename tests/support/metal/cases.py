"""Blocks on which the Metal kernels are proved: every pair of factors in the default run, every combination in the long one."""

import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ringattn.kernels import Block
from ringattn.kernels.metal import MetalKernel
from ringattn.kernels.metal.tiling import DIMS
from tests.support.attention import Case
from tests.support.metal.compiler import COMPILER
from tests.support.metal.emulator import EmulatedMetal

MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "sliding": {"causal": True, "window": 37},
    "band": {"window": 50},
    "segments": {"causal": True, "segments": 3},
}
LAYOUTS = {"contiguous": 1, "zigzag": 2, "striped": 3}
"""of a ring of 4: the keys are those of this rank, the queries those of rank 1"""
LENGTHS = ((1, 1), (33, 65), (70, 41), (64, 48), (7, 90))
KERNELS = ("forward", "backward_q", "backward_kv")
FACTORS: dict[str, tuple[Any, ...]] = {
    "kernel": KERNELS,
    "dim": DIMS,
    "dtype": (mx.float32, mx.bfloat16, mx.float16),
    "mask": tuple(MASKS),
    "layout": tuple(LAYOUTS),
    "group": (1, 2, 8),
    "lengths": LENGTHS,
}

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: Metal kernels were not run")


def rows() -> list[dict[str, Any]]:
    """Return rows of FACTORS that hold every pair of values, found greedily; few combinations of kernel, dim and dtype."""
    # Each of the 15 pairs of dim and dtype has one kernel, so that all pairs of the three occur with 15 compilations.
    seeds = [
        {"kernel": KERNELS[(i + j) % 3], "dim": dim, "dtype": dtype}
        for i, dim in enumerate(DIMS)
        for j, dtype in enumerate(FACTORS["dtype"])
    ]
    missing = {
        ((a, x), (b, y)): None
        for a, b in itertools.combinations(FACTORS, 2)
        for x, y in itertools.product(FACTORS[a], FACTORS[b])
    }
    found: list[dict[str, Any]] = []
    while missing:
        start = dict(next(iter(missing)))
        row = max(
            ({**seed, **start} for seed in seeds if agree(seed, start)), key=lambda r: len(missing.keys() & pairs(r))
        )
        for name in FACTORS:
            if name not in row:
                row[name] = max(FACTORS[name], key=lambda value: len(missing.keys() & pairs({**row, name: value})))
        found.append({name: row[name] for name in FACTORS})
        for pair in missing.keys() & pairs(row):
            del missing[pair]
    return found


def agree(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[name] == b[name] for name in a.keys() & b.keys())


def pairs(row: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(itertools.combinations([(name, row[name]) for name in FACTORS if name in row], 2))


def product(**fixed: Any) -> Iterator[dict[str, Any]]:
    """Yield every combination that has the fixed values."""
    for values in itertools.product(*FACTORS.values()):
        row = dict(zip(FACTORS, values, strict=True))
        if agree(row, fixed):
            yield row


def case_of(row: dict[str, Any]) -> Case:
    """Return a row's block; two batches where segments differ between them."""
    q_len, k_len = row["lengths"]
    return Case(
        group=row["group"], q_len=q_len, k_len=k_len, dim=row["dim"], dtype=row["dtype"], layout=row["layout"],
        k_rank=LAYOUTS[row["layout"]], softcap=row.get("softcap"), v_dim=row.get("v_dim", 0), batch=2 if row["mask"] == "segments" else 1, **MASKS[row["mask"]],
    )  # fmt: skip


def name_of(row: dict[str, Any]) -> str:
    return "-".join(str(value).removeprefix("mlx.core.").replace(" ", "") for value in row.values())


def emulate(monkeypatch: pytest.MonkeyPatch, seed: int = 0, *, runs: bool = True) -> tuple[MetalKernel, EmulatedMetal]:
    """Return a kernel that runs on the harness, and the harness."""
    emulator = EmulatedMetal(seed, runs=runs)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.fast, "metal_kernel", emulator.metal_kernel)
    return MetalKernel(), emulator


def outputs(
    kernel: MetalKernel, which: str, arrays: list[mx.array], block: Block, truth: dict[str, np.ndarray], **scores: Any
) -> dict[str, mx.array]:
    """Return the results of one kernel; the backward ones take log-sum-exp and delta from `truth`. `scores`: scale and softcap."""
    q, k, v, do = arrays
    if which == "forward":
        return dict(zip(("o", "lse"), kernel.forward(q, k, v, block, **scores), strict=True))
    lse, delta = (mx.array(np.array(truth[name], np.float32)) for name in ("lse", "delta"))
    if which == "backward_q":
        return {"dq": kernel.query_gradient(q, k, v, do, lse, delta, block, **scores)}
    dk, dv = kernel.key_value_gradients(q, k, v, do, lse, delta, block, **scores)
    return {"dk": dk, "dv": dv}
