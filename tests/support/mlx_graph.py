"""Counts launches and bytes across memory of a graph of mlx operations, without running it: mlx exports it with every shape."""

import io
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unflatten"}
"""Primitives that a GPU does not launch: other shapes and strides of the same memory (with one query head a kv head, no copy)."""


@dataclass
class Traffic:
    """What a graph asks of a GPU."""

    launches: Counter[str] = field(default_factory=Counter)
    """by primitive, views excepted"""
    moved: int = 0
    """bytes that its kernels read and write, each argument once; of a broadcast argument, its source's"""


def traffic(build: Callable[..., Any], *inputs: mx.array) -> Traffic:
    """Return the counts of the graph that `build(*inputs)` makes; it must not evaluate anything."""
    found = Traffic()
    read: dict[str, int] = {}  # bytes behind a broadcast array

    def visit(event: dict[str, Any]) -> None:
        if event["type"] != "primitive":
            return
        if event["name"] == "Broadcast":
            ((name, *source),) = event["inputs"]
            read[event["outputs"][0][0]] = read.get(name, _bytes(*source))
        elif event["name"] not in VIEWS:
            found.launches[event["name"]] += 1
            found.moved += sum(read.get(name, _bytes(*rest)) for name, *rest in event["inputs"])
            found.moved += sum(_bytes(*rest) for _, *rest in event["outputs"])

    mx.export_function(visit, build, *inputs)
    return found


def _bytes(shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    return math.prod(shape) * dtype.size


def launched(*arrays: mx.array) -> int:
    """Return how many primitives, views excepted, unevaluated arrays still need: a function of `mx.compile` counts as it fused."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    names = re.findall(r'label ?= ?"(\w+)", shape=rectangle', text.getvalue())
    return sum(name not in VIEWS for name in names)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stand-in for a compiled function that `traffic` counts as the one launch that it is on a GPU.

    mlx's export would count the operations that are compiled; `launched` shows that they are one.
    """

    def call(*arguments: Any) -> Any:
        given = [x for x in arguments if x is not None]
        made = function(*arguments)
        outputs = [made] if isinstance(made, mx.array) else list(made)
        kernel: Any = mx.fast.metal_kernel(
            name="fused",
            input_names=[f"in{i}" for i in range(len(given))],
            output_names=[f"out{i}" for i in range(len(outputs))],
            source="",
        )
        results = kernel(
            inputs=given, grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[x.shape for x in outputs],
            output_dtypes=[x.dtype for x in outputs],
        )  # fmt: skip
        return results[0] if isinstance(made, mx.array) else results

    return call
