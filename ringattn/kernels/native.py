"""The native kernel: fused C for CPUs (csrc/), called through ctypes on zero-copy views of evaluated arrays.

Forward is online softmax with log-sum-exp, backward is FlashAttention-2 (Dao 2023). Any D to 256, any lengths, fp32,
bf16 and fp16, any number of threads with the same bits. Values of another width than keys are padded with zeros, or the keys are. The same C template is compiled for AVX-512 with bf16 dot
products, AVX-512, AVX2 + FMA, NEON and plain vectors; the first one is used that
this CPU runs and that agrees with the plain one on a small problem. NEON has run under qemu
only, not on hardware.

Inputs of 16 bits are converted to fp32 tile by tile and computed as such, except bf16 where the CPU multiplies pairs of
bf16 (`avx512bf16`): there the products are exact, sums are fp32, and P and dS are rounded to bf16 before they are
multiplied. With u = 2**-8 an element of o is then off by at most u P|V|, of dv by u P^T|dO|, of dq by u scale |dS||K| and
of dk by u scale |dS|^T|Q|, plus the error of fp32; bf16 subnormals count as 0. `NativeKernel(isa="avx512")` avoids it.
"""

import ctypes
import importlib.util
import os
import warnings
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn._errors import KernelError, ShapeError
from ringattn.kernels.base import Block, check
from ringattn.macos import compiler_hint

MAX_DIM = 256
_DTYPE_CODES = {mx.float32: 0, mx.bfloat16: 1, mx.float16: 2}
_ABI = 2
"""RA_ABI of csrc/ringattn.h."""
_REBUILD = "`uv sync --reinstall-package ring-attention-energy` (or `pip install --force-reinstall --no-deps .`)"


class _Problem(ctypes.Structure):
    """`ra_problem` of csrc/ringattn.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("B", "Hq", "Hkv", "Tq", "Tk", "D")),
        *((name, ctypes.c_int32) for name in ("dtype", "do_dtype", "causal", "threads")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q_pos", "k_pos", "q_seg", "k_seg")),
        *((name, ctypes.c_int64) for name in ("q_seg_stride", "k_seg_stride")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "dout", "o", "lse", "delta", "dq", "dk", "dv")),
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the compiled C library.

    Raises:
        KernelError: if it was not built, does not load or is of other sources; the message states how to build it.
    """
    spec = importlib.util.find_spec("ringattn.kernels._native")
    if spec is None or spec.origin is None:
        raise KernelError(
            f"the C library was not built at install (no working C compiler then); {compiler_hint()}, then run {_REBUILD}"
        )
    try:
        lib = ctypes.CDLL(spec.origin)
    except OSError as error:
        raise KernelError(f"the C library does not load ({error}); build it again on this machine") from error
    if not hasattr(lib, "ringattn_abi") or lib.ringattn_abi() != _ABI:
        raise KernelError(f"the C library was built from other sources than these; build it again: {_REBUILD}")
    lib.ringattn_isa_name.restype = ctypes.c_char_p
    lib.ringattn_fma_peak.restype = ctypes.c_double
    lib.ringattn_fma_peak.argtypes = [ctypes.c_double, ctypes.c_int, ctypes.c_int]
    return lib


def isas() -> dict[str, int]:
    """Map the instruction sets that are compiled in and that this CPU runs, best first, to their index in the library.

    Those after the portable one are for tests.
    """
    lib = library()
    names = {lib.ringattn_isa_name(i).decode(): i for i in range(lib.ringattn_isa_count())}
    return {name: i for name, i in names.items() if lib.ringattn_isa_runs(i)}


@cache
def best_isa() -> str:
    """Return the first instruction set that agrees with the portable one on a small problem; warn about a mismatch.

    Raises:
        KernelError: if none runs here.
    """
    for name in isas():
        error = _parity_error(name) if name != "portable" else 0.0
        if error < 1:
            return name
        warnings.warn(
            f"ringattn: the native kernel's {name} code differs from portable code on this CPU, {error:.2g} times what "
            "rounding explains, and is not used; please report it with the CPU's model and the compiler's version",
            RuntimeWarning,
            stacklevel=2,
        )
    raise KernelError("no instruction set of the C library runs on this CPU")


def fma_peak(threads: int | None = None, seconds: float = 0.2) -> float:
    """Measure for `seconds` the FLOP/s that independent fused multiply-adds reach on `threads` threads."""
    return library().ringattn_fma_peak(seconds, threads or default_threads(), isas()[best_isa()])


def default_threads() -> int:
    """Return RINGATTN_THREADS, else the number of cores that this process may use.

    Raises:
        KernelError: if RINGATTN_THREADS is not an integer of 1 or more.
    """
    wanted = os.environ.get("RINGATTN_THREADS")
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise KernelError(
                f"RINGATTN_THREADS must be a number of threads, at least 1: got {wanted!r}; unset it or correct it"
            )
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NativeKernel:
    """Fused CPU kernel; KernelError if the library was not built or does not load.

    Results have the same bits for any number of threads. Scratch is O(tile) a thread, plus packed K and V of some heads
    (16 MB, or one kv head).

    Args:
        threads: None means `default_threads()` at each call.
        isa: instruction set; None means `best_isa()`.
    """

    name = "native"
    max_dim = MAX_DIM

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        if isa is not None and isa not in isas():
            raise KernelError(f"instruction set {isa!r} is not compiled in or this CPU lacks it: {list(isas())}")
        self.threads = threads
        self.isa = isa or best_isa()
        self._isa_index = isas()[self.isa]

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`."""
        check(q, k, v, block)
        width = max(q.shape[3], v.shape[3])
        o, lse = _empty((*q.shape[:3], width)), _empty(q.shape[:3])
        inputs = {name: _widened(x, width) for name, x in (("q", q), ("k", k), ("v", v))}
        self._call("ringattn_forward", inputs, block, (scale, softcap), o=o, lse=lse)
        return _narrowed(o, v), lse

    def backward(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        do: mx.array,
        lse: mx.array,
        delta: mx.array,
        block: Block,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Kernel.backward`.

        Raises:
            ShapeError: if do, lse or delta do not fit q.
        """
        check(q, k, v, block)
        if do.shape != (*q.shape[:3], v.shape[3]) or do.dtype not in _DTYPE_CODES:
            raise ShapeError(
                f"do must have o's shape and a float dtype: got {do.shape} {do.dtype}, q is {q.shape}, v {v.shape}"
            )
        for what, x in (("lse", lse), ("delta", delta)):
            if x.shape != q.shape[:3] or x.dtype != mx.float32:
                raise ShapeError(f"{what} must be float32 {q.shape[:3]}: got {x.dtype} {x.shape}")
        width = max(q.shape[3], v.shape[3])
        dq, dk, dv = (_empty((*x.shape[:3], width)) for x in (q, k, v))
        inputs = {name: _widened(x, width) for name, x in (("q", q), ("k", k), ("v", v))}
        dout = _widened(do, width)
        self._call(
            "ringattn_backward", inputs, block, (scale, softcap), dout=dout, lse=lse, delta=delta, dq=dq, dk=dk, dv=dv
        )
        return _narrowed(dq, q), _narrowed(dk, k), _narrowed(dv, v)

    def _call(
        self,
        function: str,
        inputs: dict[str, mx.array],
        block: Block,
        factors: tuple[float, float | None],
        **arrays: mx.array,
    ) -> None:
        """Call the library with inputs of one width; `factors`: scale and softcap."""
        if inputs["q"].shape[3] > MAX_DIM:
            raise ShapeError(
                f"the native kernel takes D up to {MAX_DIM}: got {inputs['q'].shape[3]}; use the mlx kernel"
            )
        if len({x.dtype for x in inputs.values()}) > 1:
            inputs = {name: x.astype(mx.float32) for name, x in inputs.items()}
        q, k = inputs["q"], inputs["k"]
        views = {name: _view(x) for name, x in {**inputs, **arrays}.items()}
        host = {
            name: np.ascontiguousarray(x)
            for name in ("q_pos", "k_pos", "q_seg", "k_seg")
            if (x := getattr(block, name)) is not None
        }
        problem = _Problem(
            B=q.shape[0],
            Hq=q.shape[1],
            Hkv=k.shape[1],
            Tq=q.shape[2],
            Tk=k.shape[2],
            D=q.shape[3],
            dtype=_DTYPE_CODES[q.dtype],
            do_dtype=_DTYPE_CODES[arrays["dout"].dtype] if "dout" in arrays else 0,
            causal=block.causal,
            threads=self.threads or default_threads(),
            window=block.window or 0,
            scale=factors[0],
            softcap=factors[1] or 0,
            q_seg_stride=_batch_stride(block.q_seg),
            k_seg_stride=_batch_stride(block.k_seg),
            **{name: x.ctypes.data for name, x in {**host, **views}.items()},
        )
        rc = self._invoke(function, problem, host | views)
        if rc:
            raise MemoryError(
                f"{function}: no memory for scratch (q {q.shape}, k {k.shape}, {problem.threads} threads)"
            )

    def _invoke(self, function: str, problem: _Problem, arrays: dict[str, np.ndarray]) -> int:
        """Call the library and return its code. `arrays` is the memory that `problem` points to, by field."""
        return getattr(library(), function)(ctypes.byref(problem), self._isa_index)


def _empty(shape: tuple[int, ...]) -> mx.array:
    """Return a new zeroed fp32 array, for the library to write into."""
    x = mx.zeros(shape, dtype=mx.float32)
    mx.eval(x)
    return x


def _view(x: mx.array) -> np.ndarray:
    """Return the memory of the evaluated array, C-contiguous, with 16-bit floats as uint16."""
    if x.dtype == mx.float32 and (view := np.array(x, copy=False)).flags.c_contiguous:
        # This array needs no MLX operation: ringattn reads traced arrays from another thread this way.
        return view
    x = mx.contiguous(x)
    if x.dtype != mx.float32:
        x = x.view(mx.uint16)
    mx.eval(x)
    return np.array(x, copy=False)


def _widened(x: mx.array, width: int) -> mx.array:
    """[..., n] -> [..., width], with zeros: they change neither scores nor the columns of o that are kept."""
    if x.shape[-1] == width:
        return x
    room = [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]
    # No MLX operation on float32, for the reason that `_view` states.
    return mx.array(np.pad(_view(x), room)) if x.dtype == mx.float32 else mx.pad(x, room)


def _narrowed(x: mx.array, like: mx.array) -> mx.array:
    return x if x.shape[-1] == like.shape[-1] else x[..., : like.shape[-1]]


def _batch_stride(seg: np.ndarray | None) -> int:
    return seg.shape[1] if seg is not None and seg.ndim == 2 else 0


_ALLOWED = {mx.float32: 1e-4, mx.bfloat16: 5e-2}


def _parity_error(isa: str) -> float:
    """Return the largest difference from portable code, over the allowed one, on a small problem with every kind of tile.

    Outputs and gradients count.
    """
    cases = [(dtype, allowed, softcap) for dtype, allowed in _ALLOWED.items() for softcap in (None, 2.0)]
    return max(_difference(isa, dtype, softcap) / allowed for dtype, allowed, softcap in cases)


def _difference(isa: str, dtype: mx.Dtype, softcap: float | None = None) -> float:
    rng = np.random.default_rng(0)
    q, do = (mx.array(rng.standard_normal((1, 2, 131, 40)), dtype=dtype) for _ in range(2))
    k, v = (mx.array(rng.standard_normal((1, 1, 203, 40)), dtype=dtype) for _ in range(2))
    block = Block(np.arange(131, dtype=np.int32) + 72, np.arange(203, dtype=np.int32), causal=True, window=100)
    results = []
    for name in (isa, "portable"):
        kernel = NativeKernel(threads=1, isa=name)
        scores: dict[str, Any] = {"scale": 0.2, "softcap": softcap}
        o, lse = kernel.forward(q, k, v, block, **scores)
        grads = kernel.backward(q, k, v, do, lse, (do * o).sum(axis=-1), block, **scores)
        results.append([o, lse, *grads])
    errors = [float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(*results, strict=True)]
    return max(errors) if np.isfinite(errors).all() else float("inf")
