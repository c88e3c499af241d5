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
from statistics import median
from typing import Any

from ringattn.blas.library import numpy_blas

SIZE = 512  # rows of the square matrices: a product takes 0.27 GFLOP, 40 ms with the slowest BLAS
BURST_S = 2.0  # seconds to measure both speeds: new threads may share a core for some tenths of a second
PAIRS = 15  # products of each at least, on a host that is busy with something else


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
        of_numpy, of_mlx = _paired_seconds(lambda: draw @ draw, lambda: mx.eval(array @ array))
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
        "numpy_gflops": 2 * SIZE**3 / min(of_numpy) / 1e9,
        "mlx_cpu_gflops": 2 * SIZE**3 / min(of_mlx) / 1e9,
        "mlx_to_numpy": median(one / other for one, other in zip(of_numpy, of_mlx, strict=True)),
        "kernels": reasons,
        "kernel": chosen,
        "kernel_refusal": refusal,
        "isa": native.best_isa() if reasons["native"] is None else "",
    }
    print(json.dumps(facts))


def _paired_seconds(one: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Return the seconds of two products in turn, for `BURST_S` and `PAIRS` times at least, after one of each to warm up.

    What else runs on this host slows the two of a pair alike, so their ratio does not depend on it.
    """
    found: tuple[list[float], list[float]] = [], []
    one(), other()
    until = time.perf_counter() + BURST_S
    while time.perf_counter() < until or len(found[0]) < PAIRS:
        for product, seconds in zip((one, other), found, strict=True):
            began = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main()
