"""Arrays as bytes, without pickle: a checked header, then raw arrays. Datasets, checkpoints and messages between processes use it.

8 bytes (length of the header, little endian) | header, JSON: {"meta": …, "arrays": [[name, dtype, shape], …]} | arrays, each at 64
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.errors import DataError

DTYPES = ("bool", "float32", "float64", "int64", "uint64", "uint8")
ALIGN = 64  # bytes
MAX_HEADER = 4 << 20  # bytes
MAX_DIMENSIONS = 8

Arrays = Mapping[str, NDArray]
Spec = tuple[str, str, tuple[int, ...]]  # an array: name, dtype, shape


def pack(meta: Mapping[str, Any], arrays: Arrays) -> bytes:
    """`meta` must be plain JSON data. DataError for an array whose dtype is not one of `DTYPES`."""
    listed, parts = [], []
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise DataError(f"pack: array {name} is {array.dtype}; there are {', '.join(DTYPES)}")
        listed.append([name, str(array.dtype), list(array.shape)])
        raw = np.ascontiguousarray(array).tobytes()
        parts += [raw, bytes(-len(raw) % ALIGN)]
    header = json.dumps({"meta": meta, "arrays": listed}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGN)
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])


def unpack(content: bytes | mmap.mmap, what: str = "packed arrays") -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Meta, and arrays that look into `content` (read-only), of the shapes and dtypes that it says.

    DataError, naming `what`, for anything that `pack` has not made.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(MAX_HEADER, len(content) - 8):
        raise DataError(f"{what}: no header of {length} bytes in {len(content)}")
    try:
        header = json.loads(content[8 : 8 + length])
        meta, listed = dict(header["meta"]), [(str(n), str(d), [int(x) for x in s]) for n, d, s in header["arrays"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{what}: {error or type(error).__name__} in its header") from error
    arrays, at = {}, 8 + length
    for name, dtype, shape in listed:
        size = _size(name, dtype, shape, what)
        if at + size > len(content):
            raise DataError(f"{what}: {name} ends {at + size - len(content)} bytes beyond its end")
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), at).reshape(shape)
        at += size + -size % ALIGN
    if at != len(content):
        raise DataError(f"{what}: {len(content) - at} bytes too many")
    return meta, arrays


def _size(name: str, dtype: str, shape: Iterable[int], what: str) -> int:
    shape = list(shape)
    if dtype not in DTYPES or len(shape) > MAX_DIMENSIONS or any(not 0 <= n < 1 << 40 for n in shape):
        raise DataError(f"{what}: {name} is {dtype} of {shape}")
    return math.prod(shape) * np.dtype(dtype).itemsize


def mapped(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """`unpack` of a file, mapped: its arrays, of any shape, are read when they are used, once for all processes.

    DataError.
    """
    try:
        with path.open("rb") as file:
            return unpack(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
