"""Probe of this host's compute: `python -m worker.process.probe [--as-rank]` prints one JSON line for `coordinator doctor`.

`--as-rank` measures as a rank does, which on Linux loads a fast BLAS for mlx.
"""

import sys

from ringattn.blas import loader as blas

if __name__ == "__main__" and "--as-rank" in sys.argv:
    blas.prepare()

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ringattn.blas.library import numpy_blas

SIZE = 512  # rows of the square matrices: a product takes 0.27 GFLOP, 40 ms with the slowest BLAS
BURST_S = 1.0  # seconds to measure each speed: new threads may share a core for some tenths of a second


def main() -> None:
    """Print versions, kernels and the speeds of fp32 matrix products, in GFLOP/s on all cores of this process."""
    import mlx.core as mx
    import numpy as np

    import ringattn
    from ringattn import kernels
    from ringattn.kernels import native

    draw = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    array = mx.array(draw)
    with mx.stream(mx.cpu):
        on_cpu = _gflops(lambda: mx.eval(array @ array))
    reasons = kernels.available()
    try:
        chosen, refusal = kernels.select().name, ""
    except ringattn.RingError as error:
        chosen, refusal = "", str(error)
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(terse=True),
        "device": str(mx.default_device().type).rpartition(".")[2],
        "ring": bool(mx.distributed.is_available("ring")),
        "blas": asdict(blas.in_use()),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", ""),
        "blas_why": blas.choose().why if "--as-rank" in sys.argv else "",
        "numpy_blas": numpy_blas().describe(),
        "numpy_gflops": _gflops(lambda: draw @ draw),
        "mlx_cpu_gflops": on_cpu,
        "kernels": reasons,
        "kernel": chosen,
        "kernel_refusal": refusal,
        "isa": native.best_isa() if reasons["native"] is None else "",
    }
    print(json.dumps(facts))


def _gflops(product: Callable[[], object]) -> float:
    """Return the speed of the fastest of as many products as fit into `BURST_S`, after one to warm up."""
    best, until = float("inf"), time.perf_counter() + BURST_S
    product()
    while time.perf_counter() < until:
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best / 1e9


if __name__ == "__main__":
    main()
