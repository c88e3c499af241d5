"""BLAS and threads of a process that computes with mlx; `prepare` comes before the imports of numpy and mlx.

On Linux mlx's wheel is linked with the reference BLAS, whose products run at a fifteenth of the speed. scipy's wheel carries
OpenBLAS under names with a prefix; `csrc/shim.c` gives it the names that mlx imports. In order, mlx's products are made by

1. a BLAS that was preloaded by hand (`LD_PRELOAD`);
2. the BLAS that mlx is linked with, if it is another one than the reference BLAS;
3. the OpenBLAS of scipy's wheel, through the shim: the same version on every host that has this project's locked packages;
4. where there is no shim (no C compiler at install) or it fails its check: the system's OpenBLAS, if there is one;
5. the reference BLAS, and one line that says so and why.

macOS has Accelerate, and nothing is loaded there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ringattn.blas.library import Blas, file_of, identify, numpy_arithmetic, provider, wheel_library

THREADS = ("RINGATTN_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
# An idle thread of OpenBLAS spins for 2^n clock ticks before it sleeps. 2^20 are 0.4 ms, longer than between the products of a
# layer. With OpenBLAS's own 2^26 or more, the threads take the cores of the attention kernel: a step took 44 ms instead of 35.
SPIN, SPIN_TICKS = "OPENBLAS_THREAD_TIMEOUT", "20"
SYMBOL = "cblas_sgemm"
SHIM = "ringattn.blas._shim"
SYSTEM_LIBRARY = "libopenblas.so.0"  # Debian's libopenblas0-pthread, Fedora's openblas
FOLDERS = ("/usr/lib/*-linux-gnu/openblas-pthread", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
WIDTH = 40  # columns of the factors in the check
TOLERANCE = 1e-4  # of products of 40 numbers of size 1 in fp32; a wrong argument is off by more than 1
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # of CBLAS


class BlasError(Exception):
    """The OpenBLAS of scipy's wheel cannot be used; the message is the reason and the remedy."""


@dataclass(frozen=True)
class Choice:
    """The BLAS of mlx's products.

    Attributes:
        blas: The library.
        source: Where it is from, in words.
        load: The files to load into the global scope, in this order.
        why: The reason that no fast BLAS is used; "" if one is.
    """

    blas: Blas
    source: str = ""
    load: tuple[str, ...] = ()
    why: str = ""

    def describe(self) -> str:
        """Return one line: library and kernel of mlx's matrix products, and why they are slow if they are.

        It is equal on hosts that compute equal bits with equal threads.
        """
        kernel = f", kernel {self.blas.kernel}" if self.blas.kernel else ""
        words = " ".join(word for word in ("BLAS:", self.blas.build, self.source) if word)
        return f"{words}{kernel}" + (f"; {self.why}" if self.why else "")


def prepare(quiet: bool = False) -> None:
    """Set the threads of this process and load a fast BLAS for mlx.

    Prints one line to stderr if there is none. Does nothing but set the threads where mlx has been loaded: it is bound then.

    Args:
        quiet: Print nothing.
    """
    os.environ.update(thread_settings(os.environ))
    if "mlx.core" in sys.modules:
        return
    choice = choose()
    for path in choice.load:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    if choice.why and not quiet and _place_on_host(os.environ)[0] == 0:
        print(choice.describe(), file=sys.stderr, flush=True)


def thread_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to a rank's environment: its share of this host's cores, and how long an idle thread spins.

    What `environ` already sets is kept.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // _place_on_host(environ)[1]))
    return {
        name: value
        for name, value in {**dict.fromkeys(THREADS, threads), SPIN: SPIN_TICKS}.items()
        if name not in environ
    }


def _place_on_host(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return this rank's number among the ranks that share its address, and how many they are.

    Returns (0, 1) where the environment describes no ring or an invalid one; `ringattn.init` reports what is wrong with it.
    """
    try:
        nodes = [host[0].rpartition(":")[0] for host in json.loads(Path(environ["MLX_HOSTFILE"]).read_text("utf-8"))]
        rank = int(environ["MLX_RANK"])
        return nodes[:rank].count(nodes[rank]), nodes.count(nodes[rank])
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return 0, 1


@cache
def choose() -> Choice:
    """Return the BLAS for mlx's products in this process, checked; nothing enters the global scope."""
    if sys.platform != "linux":
        return Choice(Blas("the system's"))
    if preloaded := provider(ctypes.CDLL(None), SYMBOL):
        return Choice(identify(preloaded), "preloaded")
    linked = wheel_library("mlx", "mlx*.libs/libblas*")
    if not linked:
        return Choice(Blas("as mlx was built"))
    own = identify(linked)
    if own.fast:
        return Choice(own, "of mlx's wheel")
    try:
        shim, path = open_shim()
        check(shim)
        return Choice(identify(path), "of scipy's wheel", (str(shim._name),))
    except (BlasError, OSError) as error:
        reason = str(error)
    if (system := system_openblas()) is not None:
        try:
            return Choice(identify(str(system)), "of the system", (str(system),))
        except OSError as error:
            reason += f"; and the system's does not load: {error}"
    return Choice(own, "of mlx's wheel, which is slow", why=f"scipy's OpenBLAS can't be used: {reason}")


def open_shim() -> tuple[ctypes.CDLL, str]:
    """Return the compiled shim, bound to the OpenBLAS of scipy's wheel, and the path of that OpenBLAS.

    Raises:
        BlasError: If either is missing, or the library lacks a function.
    """
    spec = importlib.util.find_spec(SHIM)
    if spec is None or spec.origin is None:
        raise BlasError(
            "the shim was not built at install (no working C compiler then); install gcc or clang, then run "
            "`uv sync --reinstall-package ring-attention-energy`"
        )
    path = wheel_library("scipy", "scipy.libs/libscipy_openblas-*")
    if not path:
        raise BlasError("this scipy has none; `uv sync --reinstall-package scipy` installs the wheel")
    shim = ctypes.CDLL(spec.origin)
    shim.ringattn_blas_open.restype = ctypes.c_char_p
    reason = shim.ringattn_blas_open(os.fsencode(path))
    if reason is not None:
        raise BlasError(f"{reason.decode(errors='replace')}: {path}")
    return shim, path


def check(library: ctypes.CDLL) -> None:
    """Compare small products and a Cholesky factor of `library` with numpy's.

    Raises:
        BlasError: If one differs by more than rounding.
    """
    import numpy as np

    draw = np.random.default_rng(0)
    for name, dtype in (("sgemm", np.float32), ("dgemm", np.float64), ("cgemm", np.complex64)):
        a, b = (_numbers(draw, rows, dtype) for rows in (17, 23))
        out = np.full((17, 23), np.nan, dtype)
        alpha, beta = np.ones(1, dtype), np.zeros(1, dtype)
        at = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, out, alpha, beta)]
        # CBLAS takes real scalars by value and complex ones by address.
        by_value = {"sgemm": ctypes.c_float, "dgemm": ctypes.c_double}.get(name)
        scalars = (by_value(1), by_value(0)) if by_value else (at[3], at[4])
        sizes = (ROW_MAJOR, PLAIN, TRANSPOSED, 17, 23, WIDTH)
        getattr(library, f"cblas_{name}")(*sizes, scalars[0], at[0], WIDTH, at[1], WIDTH, scalars[1], at[2], 23)
        _compare(name, out, a @ b.T)
    half = draw.standard_normal((9, 9))
    matrix = half @ half.T + np.eye(9)
    factor, info, size = matrix.copy(), ctypes.c_int(-1), ctypes.c_int(9)
    # "U" of Fortran's columns is the lower triangle of C's rows.
    library.dpotrf_(
        b"U", ctypes.byref(size), ctypes.c_void_p(factor.ctypes.data), ctypes.byref(size), ctypes.byref(info),
        ctypes.c_size_t(1),
    )  # fmt: skip
    _compare("dpotrf", np.tril(factor), np.linalg.cholesky(matrix))


def _numbers(draw: Any, rows: int, dtype: Any) -> Any:
    """Return rows of numbers of size 1; complex ones have an imaginary part."""
    import numpy as np

    real, imaginary = draw.standard_normal((2, rows, WIDTH))
    return (real + 1j * imaginary if np.issubdtype(dtype, np.complexfloating) else real).astype(dtype)


def _compare(name: str, found: Any, right: Any) -> None:
    """Raise BlasError if two arrays differ by more than rounding."""
    import numpy as np

    off = float(np.abs(found - right).max())
    if not off <= TOLERANCE * max(1.0, float(np.abs(right).max())):
        raise BlasError(f"its {name} differs from numpy's by {off:.3g}")


def system_openblas() -> Path | None:
    """Return the OpenBLAS that the system has installed; None where there is none."""
    found = (path for folder in FOLDERS for path in sorted(Path("/").glob(f"{folder[1:]}/{SYSTEM_LIBRARY}")))
    return next(found, None)


def in_use() -> Blas:
    """Return the BLAS that answers mlx in this process, after mlx was loaded: found by address, not by what was asked for."""
    import mlx.core as mx

    if sys.platform != "linux":
        return Blas("the system's")
    found = provider(ctypes.CDLL(None), SYMBOL)
    if not found:
        libraries = sorted((Path(mx.__file__).parent / "lib").glob("libmlx.so*"))
        found = provider(ctypes.CDLL(str(libraries[0] if libraries else mx.__file__)), SYMBOL)
    if not found:
        return Blas("as mlx was built")
    if hasattr(shim := ctypes.CDLL(found), "ringattn_blas_sgemm"):
        shim.ringattn_blas_sgemm.restype = ctypes.c_void_p
        found = file_of(shim.ringattn_blas_sgemm())
    return identify(found)


def describe() -> str:
    """Return one line on the BLAS that answers mlx in this process: library, kernel, threads and file."""
    used = in_use()
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "of all cores")
    return f"BLAS: {used.describe()}, threads {threads}" + (f" ({used.path})" if used.path else "")


def record() -> dict[str, str]:
    """Return what decides the bits of this process's matrix products: for the record of a run, after mlx was loaded."""
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "of all cores")
    return {"mlx": f"{in_use().describe()}, threads {threads}", "numpy": numpy_arithmetic()}
