"""The source that mlx generates for a Metal kernel, taken from mlx itself, and what its signature says."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

REAL_METAL_KERNEL: Any = mx.fast.metal_kernel


@dataclass(frozen=True)
class Parameter:
    """One buffer of the generated signature."""

    name: str
    space: str  # device or constant
    type: str
    const: bool


@dataclass(frozen=True)
class Generated:
    """A kernel as mlx would hand it to Apple's compiler, behind its own prelude (bfloat16_t, `using namespace metal`)."""

    text: str
    function: str
    """with template arguments"""
    parameters: tuple[Parameter, ...]
    attributes: tuple[str, ...]


def generate(make: Callable[[Any], Any], inputs: list[mx.array]) -> Generated:
    """Return the source for `make(inputs)`, which calls a kernel with `verbose=True`.

    mlx generates it while it traces a function for export, which works without a GPU. It prints it, so that descriptor 1 is
    caught here.
    """
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "printed").open("w+") as printed:
        saved = os.dup(1)
        os.dup2(printed.fileno(), 1)
        try:
            mx.export_function(str(Path(folder) / "kernel.mlxfn"), lambda *arrays: make(list(arrays)), *inputs)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        printed.seek(0)
        text = printed.read()
    found = re.search(r"```\n(.*)\n```", text, re.DOTALL)
    if found is None:
        raise AssertionError(f"mlx printed no source: {text[:200]!r}")
    return parse(found.group(1))


def parse(text: str) -> Generated:
    """Read the signature of a generated source."""
    signature = re.search(r"^\[\[kernel\]\] void (\w+)\(\n(.*?)\) \{\n", text, re.DOTALL | re.MULTILINE)
    assert signature is not None, text[:2000]
    parameters, attributes = [], []
    for line in signature.group(2).split(",\n"):
        buffer = re.fullmatch(r"\s*(const )?(device|constant) (\w+)([*&]) (\w+) \[\[buffer\(\d+\)\]\]", line)
        if buffer is not None:
            parameters.append(Parameter(buffer[5], buffer[2], buffer[3], bool(buffer[1])))
            continue
        attribute = re.fullmatch(r"\s*(uint3?) (\w+) \[\[\w+\]\]", line)
        assert attribute is not None, line
        attributes.append(attribute[2])
    instance = re.search(rf"decltype\(({re.escape(signature.group(1))}<[^>]*>)\)", text)
    return Generated(text, instance[1] if instance else signature.group(1), tuple(parameters), tuple(attributes))
