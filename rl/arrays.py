"""Files of named arrays with one JSON document of metadata, in the safetensors format. Datasets and the learner's state use it.

Files of format 1, which earlier versions wrote, are read too: 8 bytes (length of the header, little endian) | header, JSON:
{"meta": …, "arrays": [[name, dtype, shape], …]} | arrays, each at a multiple of 64 bytes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rl.errors import DataError

DTYPES = {
    "BOOL": "bool",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "U32": "uint32",
    "U8": "uint8",
}
ALIGN = 64  # bytes; of format 1

Arrays = Mapping[str, NDArray]
Spec = tuple[str, str, tuple[int, ...]]  # an array: name, dtype, shape


def to_bytes(meta: Mapping[str, Any], arrays: Arrays) -> bytes:
    """Serialize `arrays` and plain JSON data `meta`. Equal content gives equal bytes, in any order of the arrays.

    Raises:
        DataError: An array has a dtype that is not one of `DTYPES`.
    """
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES.values():
            raise DataError(f"array {name} is {array.dtype}; supported are {', '.join(DTYPES.values())}")
    # safetensors copies the memory as it lies, so every array must be contiguous.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # One key: safetensors writes several in an order that changes from call to call.
    return safetensors.numpy.save(contiguous, {"meta": json.dumps(meta, separators=(",", ":"))})


def load(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Map a file into memory and return its metadata and its arrays, which are read-only.

    Processes share the mapped pages, and a page is read from disk when it is first used.

    Raises:
        DataError: The file is missing, damaged, or of another format.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        if "__metadata__" not in header:
            return dict(header["meta"]), _arrays_of_format_1(content, start, header["arrays"])
        with safe_open(path, "numpy"):  # checks types, shapes and offsets
            pass
        meta = json.loads(header.pop("__metadata__")["meta"])
        arrays = {
            name: _view(content, DTYPES[array["dtype"]], array["shape"], start + array["data_offsets"][0])
            for name, array in header.items()
        }
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{path}: not a readable array file ({error}). Remove it and run the same command again, which writes it again."
        ) from error
    return meta, arrays


def _view(content: NDArray[np.uint8], dtype: str, shape: Sequence[int], offset: int) -> NDArray:
    return np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape)


def _arrays_of_format_1(content: NDArray[np.uint8], offset: int, listed: Sequence[Any]) -> dict[str, NDArray]:
    arrays = {}
    for name, dtype, shape in listed:
        arrays[name] = _view(content, dtype, shape, offset)
        offset += arrays[name].nbytes + -arrays[name].nbytes % ALIGN
    return arrays
