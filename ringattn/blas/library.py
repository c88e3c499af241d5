"""Which library multiplies matrices in this process, and with which code: what decides the last bits of a product.

Two hosts compute equal bits where the library's version, its kernel (code for a kind of CPU) and its threads are the same. OpenBLAS
chooses the kernel when it is loaded: by the CPU, or by OPENBLAS_CORETYPE.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CORETYPE = "OPENBLAS_CORETYPE"  # environment variable: OpenBLAS's kernel, e.g. Haswell
THREADS = "OPENBLAS_NUM_THREADS"
# Prefix and suffix of OpenBLAS's names: Debian's, scipy's wheel, numpy's wheel (64-bit integers).
AFFIXES = (("", ""), ("scipy_", ""), ("scipy_", "64_"), ("", "64_"))
# A function that only this implementation has.
OTHERS = {
    "MKL_Get_Version": "MKL",
    "bli_info_get_version_str": "BLIS",
    "ATL_buildinfo": "ATLAS",
    "flexiblas_get_version": "FlexiBLAS",
    "armplversion": "Arm Performance Libraries",
}
REFERENCE = "reference BLAS"


@dataclass(frozen=True)
class Blas:
    """A BLAS library.

    Attributes:
        build: Implementation and version, e.g. "OpenBLAS 0.3.31".
        kernel: OpenBLAS's code for a kind of CPU, e.g. "Haswell"; "" where the library does not tell.
        path: The file; "" where it is not known.
    """

    build: str
    kernel: str = ""
    path: str = ""

    @property
    def fast(self) -> bool:
        """Whether the library has code for this kind of CPU."""
        return self.build != REFERENCE

    def describe(self) -> str:
        """Return implementation, version and kernel in words that are equal on hosts that compute equal bits."""
        return f"{self.build}, kernel {self.kernel}" if self.kernel else self.build


class _DlInfo(ctypes.Structure):
    """`Dl_info` of dladdr(3)."""

    _fields_ = [
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    ]


def file_of(address: int | None) -> str:
    """Return the path of the loaded library that has this address in it; "" if none has."""
    info = _DlInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info))
    return os.fsdecode(info.dli_fname) if found and info.dli_fname else ""


def provider(library: ctypes.CDLL, name: str) -> str:
    """Return the path of the library that answers `name` in the scope of `library`; "" if none does.

    `CDLL(None)` is the process's global scope, in which preloaded libraries are.
    """
    try:
        function = getattr(library, name)
    except AttributeError:
        return ""
    return file_of(ctypes.cast(function, ctypes.c_void_p).value)


def identify(path: str) -> Blas:
    """Return which BLAS the library at `path` is. It is loaded, but its names stay its own.

    Raises:
        OSError: If it does not load.
    """
    library = ctypes.CDLL(path)
    for prefix, suffix in AFFIXES:
        config = f"{prefix}openblas_get_config{suffix}"
        if hasattr(library, config):
            words = _text(library, config).split()
            build = " ".join(words[:2]) if len(words) > 1 else "OpenBLAS"
            return Blas(build, _text(library, f"{prefix}openblas_get_corename{suffix}"), path)
    build = next((words for name, words in OTHERS.items() if hasattr(library, name)), REFERENCE)
    return Blas(build, path=path)


def _text(library: ctypes.CDLL, name: str) -> str:
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    return (function() or b"").decode(errors="replace")


def wheel_library(package: str, pattern: str) -> str:
    """Return the path of a library that a package's wheel carries; "" if there is none.

    Args:
        package: Name of the package, which is not imported.
        pattern: Of the file, from the folder in which packages are installed: "numpy.libs/lib*openblas*".
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = (path for at in folders for path in sorted(Path(at).parent.glob(pattern)))
    return str(next(found, ""))


@cache
def numpy_blas() -> Blas:
    """Return the BLAS of numpy's matrix products, with which workers run policies and the learner audits them."""
    try:
        if path := wheel_library("numpy", "numpy.libs/lib*openblas*"):
            return identify(path)
    except OSError:
        pass  # built for another kind of machine than this interpreter; numpy itself tells
    import numpy as np

    used = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return Blas(f"{used.get('name', 'unknown')} {used.get('version', '')}".strip())


def numpy_arithmetic() -> str:
    """Return what decides the bits of numpy's matrix products in this process: library, kernel and threads."""
    return f"{numpy_blas().describe()}, threads {os.environ.get(THREADS, 'of all cores')}"
