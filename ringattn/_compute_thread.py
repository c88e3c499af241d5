"""Run the ring on a separate thread, outside MLX's gradient trace.

While MLX differentiates, its thread keeps the graph of everything that it evaluates (thread-local `RetainGraph`), so
block after block would stay in memory. Another thread that evaluates anything reachable from a traced array cuts the
trace (`array::detach` in mlx/transforms.cpp): gradients are zero, without an error. So forward and backward run on one
separate thread, which builds MLX operations only on arrays from `detached_copy`. Arrays that it only reads as memory may
be part of the trace, if they come from `materialize`.
"""

import contextvars
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

T = TypeVar("T")

_jobs: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
_start = threading.Lock()
_thread: threading.Thread | None = None


def run_untraced(work: Callable[[], T]) -> T:
    """Return `work()`, run on the ring's thread; an error of it is raised here.

    One thread serves the whole process, because MLX gives every thread streams that it never frees.
    """
    global _thread
    with _start:
        if _thread is None:
            _thread = threading.Thread(target=_serve, name="ringattn-compute", daemon=True)
            _thread.start()
    result: list[Any] = []
    failure: list[BaseException] = []
    context = contextvars.copy_context()

    def job() -> None:
        try:
            result.append(context.run(work))
        except BaseException as error:
            failure.append(error)

    done = threading.Event()
    _jobs.put((job, done))
    done.wait()
    if failure:
        raise failure[0]
    return result[0]


def _serve() -> None:
    while True:
        job, done = _jobs.get()
        job()
        del job
        done.set()


class GradientToken:
    """Held by the graph of a gradient of the ring, until that is evaluated and detached."""

    def __init__(self) -> None:
        _unevaluated_gradients.add(self)


_unevaluated_gradients: weakref.WeakSet[GradientToken] = weakref.WeakSet()


def evaluate_traced(*arrays: mx.array) -> None:
    """Evaluate arrays without a change to what mx.grad sees of them.

    When an inner mx.grad returns, MLX marks the operations that it differentiated as untraced. A later evaluation detaches them even
    inside an outer mx.grad, to which they become constants: a silent zero, where it has to meet the refusal of `first_order`. While
    it applies a function's rule, MLX keeps the graph of all that is evaluated; that costs memory, so it is used only while a
    gradient of the ring is unevaluated.
    """
    if not _unevaluated_gradients:
        mx.eval(*arrays)
        return

    @mx.custom_function
    def nothing(x: mx.array) -> mx.array:
        return x * 1

    @nothing.vjp
    def nothing_vjp(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        mx.eval(*arrays)
        return cotangent

    mx.vjp(nothing, [mx.zeros(1)], [mx.zeros(1)])


def materialize(x: mx.array) -> mx.array:
    """Return `x` evaluated and row-contiguous, with the same shape and dtype, still part of the trace.

    Other threads may only read its memory (`numpy_view`).
    """
    y = mx.contiguous(x)
    evaluate_traced(y)
    return y


def detached_copy(x: mx.array) -> mx.array:
    """Return a row-contiguous copy of `x`, with the same shape and dtype, without a graph, for any thread and operation."""
    raw = materialize(materialize(x).view(mx.uint8))
    y = mx.array(np.array(raw, copy=False)).view(x.dtype)
    mx.eval(y)
    return y


def numpy_view(x: mx.array) -> np.ndarray:
    """Return the memory of a float32 array from `materialize`, without a copy and without a change to its graph."""
    return np.array(x, copy=False)
