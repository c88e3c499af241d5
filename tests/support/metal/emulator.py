"""A stand-in for `mx.fast.metal_kernel` that compiles mlx's generated source as C++ and runs it on fibers, checked and counted."""

import ctypes
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from tests.support.metal.compiler import compiled
from tests.support.metal.source import REAL_METAL_KERNEL, Generated, generate

COUNTED = (
    *("multiply_accumulate", "arithmetic", "exp2", "log2", "divide", "convert", "shuffle", "barrier"),
    *("threadgroup_load", "threadgroup_load_bytes", "threadgroup_store", "threadgroup_store_bytes"),
    *("device_load", "device_load_bytes", "device_store", "device_store_bytes", "threadgroup_bytes"),
)
REPORT_BYTES = 16384
_sources: dict[Any, Generated] = {}
"""What mlx generated in this process, by all that it depends on."""


class EmulatedMetal:
    """Runs Metal kernels here: `emulator.metal_kernel` takes the place of `mx.fast.metal_kernel`.

    Args:
        seed: of the schedule: which thread runs next, and the order of threadgroups.
        runs: False: only generate the sources, and return outputs of NaN.
    """

    def __init__(self, seed: int = 0, *, runs: bool = True) -> None:
        self.seed, self.runs = seed, runs
        self.findings: list[str] = []
        self.counts: dict[str, Counter[str]] = {}
        """by the kernel's name; threadgroup_bytes is the largest of its launches"""
        self.generated: dict[str, Generated] = {}

    def metal_kernel(
        self, name: str, input_names: Sequence[str], output_names: Sequence[str], source: str, **options: Any
    ) -> Any:
        """Return a callable with the arguments of a kernel of `mx.fast.metal_kernel`."""
        kernel = REAL_METAL_KERNEL(
            name=name, input_names=input_names, output_names=output_names, source=source, **options
        )

        def call(
            *,
            inputs: list[mx.array],
            template: list[tuple[str, Any]],
            grid: tuple[int, int, int],
            threadgroup: tuple[int, int, int],
            output_shapes: list[tuple[int, ...]],
            output_dtypes: list[mx.Dtype],
        ) -> list[mx.array]:
            arguments = {
                "template": template, "grid": grid, "threadgroup": threadgroup, "output_shapes": output_shapes,
                "output_dtypes": output_dtypes, "verbose": True,
            }  # fmt: skip
            signature = tuple((str(x.dtype), x.ndim, x.size < 8) for x in inputs)
            key = (name, source, options.get("header"), tuple(template), signature)
            if key not in _sources:
                _sources[key] = generate(lambda arrays: kernel(inputs=arrays, **arguments), inputs)
            generated = self.generated[name] = _sources[key]
            if any(total % part for total, part in zip(grid, threadgroup, strict=True)):
                self.findings.append(f"grid {grid} is no multiple of the threadgroup {threadgroup}")
            outputs = [np.full(shape, np.nan, np.float32) for shape in output_shapes]
            if not self.runs:
                return [mx.array(x) for x in outputs]
            groups = [total // part for total, part in zip(grid, threadgroup, strict=True)]
            buffers = _buffers(
                generated, dict(zip(input_names, inputs, strict=True)), dict(zip(output_names, outputs, strict=True))
            )
            self._run(name, generated, buffers, groups, threadgroup[0])
            return [mx.array(x) for x in outputs]

        return call

    def _run(
        self, name: str, generated: Generated, buffers: list[tuple[np.ndarray, bool]], groups: list[int], threads: int
    ) -> None:
        library = compiled(generated)
        writers = [np.zeros(x.size, np.int64) if output else None for x, output in buffers]
        pointers = (ctypes.c_void_p * len(buffers))(*(x.ctypes.data for x, _ in buffers))
        sizes = (ctypes.c_long * len(buffers))(*(x.nbytes for x, _ in buffers))
        shadows = (ctypes.c_void_p * len(buffers))(*(x.ctypes.data if x is not None else None for x in writers))
        report = ctypes.create_string_buffer(REPORT_BYTES)
        counts = (ctypes.c_long * len(COUNTED))()
        library.run(
            pointers, sizes, shadows, (ctypes.c_uint * 3)(*groups), ctypes.c_uint(threads), ctypes.c_ulong(self.seed), report, counts
        )  # fmt: skip
        self.findings += [f"{name}: {line}" for line in report.value.decode().splitlines()]
        for (_, output), parameter, shadow in zip(buffers, generated.parameters, writers, strict=True):
            if output and shadow is not None and (missing := int((shadow == 0).sum())):
                self.findings.append(f"{name}: output never written: {parameter.name}, {missing} elements")
        into = self.counts.setdefault(name, Counter())
        largest = max(into["threadgroup_bytes"], counts[-1])
        into.update(dict(zip(COUNTED, counts, strict=True)))
        into["threadgroup_bytes"] = largest


def _buffers(
    generated: Generated, inputs: dict[str, mx.array], outputs: dict[str, np.ndarray]
) -> list[tuple[np.ndarray, bool]]:
    """Return each parameter's memory, and whether it is an output."""
    found: list[tuple[np.ndarray, bool]] = []
    for parameter in generated.parameters:
        if parameter.name in outputs:
            found.append((outputs[parameter.name], True))
        elif parameter.name in inputs:
            found.append((_memory(inputs[parameter.name]), False))
        else:
            assert parameter.name.endswith("_shape"), parameter
            found.append((np.array(inputs[parameter.name.removesuffix("_shape")].shape, np.int32), False))
    return found


def _memory(x: mx.array) -> np.ndarray:
    x = mx.contiguous(x)
    return np.array(x.view(mx.uint16) if x.dtype in {mx.bfloat16, mx.float16} else x)
