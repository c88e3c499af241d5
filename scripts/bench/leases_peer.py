"""Measure no-op tasks per second of a peer on two workers: `PEER-PYTHON scripts/bench/leases_peer.py dask|parsl|ray TASKS`.

Prints one JSON line. Each peer runs with the settings that were fastest on the machine of the benchmark. None of them keeps a journal, so
completed work is lost with their scheduler.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

Run = Callable[[int], Iterable[int]]  # number of tasks → their results


def noop(n: int) -> int:
    """Return the argument."""
    return n


@contextmanager
def dask() -> Iterator[Run]:
    """Yield a run on a local cluster of dask.distributed."""
    import distributed
    from dask import config

    config.set({"distributed.scheduler.work-stealing": False, "distributed.scheduler.worker-saturation": "inf"})
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.ERROR
    )
    with cluster, distributed.Client(cluster) as client:
        yield lambda count: client.gather(client.map(noop, range(count), pure=False))


@contextmanager
def parsl() -> Iterator[Run]:
    """Yield a run on Parsl's executor for high throughput."""
    import parsl as library
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=2,
        prefetch_capacity=64,
        cores_per_worker=0.5,
        provider=LocalProvider(),
    )
    library.load(library.Config(executors=[executor], strategy="none", usage_tracking=0, initialize_logging=False))
    task: Any = library.python_app(noop, cache=False)
    yield lambda count: [future.result() for future in [task(n) for n in range(count)]]
    library.dfk().cleanup()


@contextmanager
def ray() -> Iterator[Run]:
    """Yield a run on Ray."""
    import ray as library

    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    task: Any = library.remote(noop)
    yield lambda count: library.get([task.remote(n) for n in range(count)])
    library.shutdown()


if __name__ == "__main__":
    name, tasks = sys.argv[1], int(sys.argv[2])
    with {"dask": dask, "parsl": parsl, "ray": ray}[name]() as run:
        run(100)  # warm up
        began = time.perf_counter()
        assert sum(run(tasks)) == tasks * (tasks - 1) // 2
        spent = time.perf_counter() - began
    package = "distributed" if name == "dask" else name
    print(json.dumps({"client": name, "version": version(package), "tasks": tasks, "seconds": spent}), flush=True)
