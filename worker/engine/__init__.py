"""Run leases on an engine of the user's: any `concurrent.futures.Executor`, of Dask, Parsl, executorlib, Ray or the standard library."""

import os

# Before numpy is imported: an engine starts a process for each core, and none of them may start a thread for each core too.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
