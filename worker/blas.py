"""Which BLAS multiplies MLX's matrices on this host. MLX's Linux wheel carries the reference BLAS, some 30 times slower."""

from __future__ import annotations

import ctypes.util
import functools
import sys

REFERENCE = "mlx's own reference BLAS (slow: install OpenBLAS, e.g. Debian's libopenblas0-pthread)"
ACCELERATE = "Accelerate"


@functools.cache
def openblas() -> str | None:
    """The name by which the loader finds OpenBLAS, to be preloaded; None where there is none, or no need of it."""
    return ctypes.util.find_library("openblas") if sys.platform == "linux" else None


def name() -> str:
    """In words, for a person."""
    if sys.platform == "darwin":
        return ACCELERATE
    return openblas() or REFERENCE
