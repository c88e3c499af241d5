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


def materialize(x: mx.array) -> mx.array:
    """Return `x` evaluated and row-contiguous, with the same shape and dtype, still part of the trace.

    Other threads may only read its memory (`numpy_view`).
    """
    y = mx.contiguous(x)
    mx.eval(y)
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
