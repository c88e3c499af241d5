"""No-op tasks a second of a peer, two workers: `PEER-PYTHON scripts/bench/leases_peer.py dask|parsl|ray TASKS`. One JSON line.

Each with the settings that served it best here; none keeps a journal, so what they had done is lost with their scheduler.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib.metadata import version
from typing import Any


def noop(n: int) -> int:
    return n


def dask(count: int) -> float:
    import distributed
    from dask import config

    config.set({"distributed.scheduler.work-stealing": False, "distributed.scheduler.worker-saturation": "inf"})
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.ERROR
    )
    with cluster, distributed.Client(cluster) as client:
        client.gather(client.map(noop, range(100), pure=False))
        began = time.perf_counter()
        assert sum(client.gather(client.map(noop, range(count), pure=False))) == count * (count - 1) // 2
        return time.perf_counter() - began


def parsl(count: int) -> float:
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
    [future.result() for future in [task(n) for n in range(100)]]
    began = time.perf_counter()
    assert sum(future.result() for future in [task(n) for n in range(count)]) == count * (count - 1) // 2
    seconds = time.perf_counter() - began
    library.dfk().cleanup()
    return seconds


def ray(count: int) -> float:
    import ray as library

    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    task: Any = library.remote(noop)
    library.get([task.remote(n) for n in range(100)])
    began = time.perf_counter()
    assert sum(library.get([task.remote(n) for n in range(count)])) == count * (count - 1) // 2
    seconds = time.perf_counter() - began
    library.shutdown()
    return seconds


if __name__ == "__main__":
    name, tasks = sys.argv[1], int(sys.argv[2])
    spent = {"dask": dask, "parsl": parsl, "ray": ray}[name](tasks)
    package = "distributed" if name == "dask" else name
    print(json.dumps({"client": name, "version": version(package), "tasks": tasks, "seconds": spent}), flush=True)
