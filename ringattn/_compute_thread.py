"""Running the ring outside mlx's gradient trace.

While mlx differentiates, its thread keeps the graph of everything that it evaluates (thread-local `RetainGraph`), so
block after block would stay in memory; and another thread that evaluates anything reachable from a traced array cuts
the trace (`array::detach` in mlx/transforms.cpp): gradients come back as zero, silently. So forward and backward run on
one thread of their own, which builds mlx operations only on `detached_copy` arrays; what it merely reads, as numpy_view, may be
`materialize` arrays of the trace.
"""

from __future__ import annotations

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
    """`work()` on the ring's own thread; its error is raised here.

    One thread serves the whole process, because mlx gives every thread streams that it never frees.
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
    """`x` evaluated and row-contiguous, of the same shape and dtype, still part of the trace.

    Other threads may read its numpy_view, and nothing else.
    """
    y = mx.contiguous(x)
    mx.eval(y)
    return y


def detached_copy(x: mx.array) -> mx.array:
    """A row-contiguous copy of `x`, of the same shape and dtype, without a graph, for any thread and any operation."""
    raw = materialize(materialize(x).view(mx.uint8))
    y = mx.array(np.array(raw, copy=False)).view(x.dtype)
    mx.eval(y)
    return y


def numpy_view(x: mx.array) -> np.ndarray:
    """The memory of a settled float32 array, without a copy and without touching its graph."""
    return np.array(x, copy=False)
