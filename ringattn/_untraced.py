"""Running the ring outside mlx's gradient trace.

While mlx differentiates, its main thread keeps the graph of everything that it evaluates (thread-local `RetainGraph`),
so block after block would stay in memory; and a thread that evaluates anything reachable from a traced array cuts the
trace (`array::detach` in mlx/transforms.cpp: gradients come back as zero, silently). So forward and backward run on one
thread of their own, on `leaf` arrays: the same memory without the graph.
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


def leaf(x: mx.array) -> mx.array:
    """`x`, which must be evaluated, row-contiguous and without a graph; the memory is shared where it fits already.

    Only inside `run_untraced`, and only while the forward pass is traced: the new array is made outside any trace, so mlx
    detaches it after evaluating it; it is evaluated inside one, so that mlx leaves the traced arrays it comes from alone.
    """
    y = mx.contiguous(x)

    def evaluate(unused: mx.array) -> mx.array:
        mx.eval(y)
        return unused

    mx.vjp(evaluate, [mx.zeros(())], [mx.zeros(())])
    return y


def copied(x: mx.array) -> mx.array:
    """A row-contiguous copy of `x` without a graph. For cotangents: in the backward pass mlx marks its tracers no more."""
    raw = mx.contiguous(x).view(mx.uint8)
    mx.eval(raw)
    y = mx.array(np.array(raw, copy=False)).view(x.dtype)
    mx.eval(y)
    return y
