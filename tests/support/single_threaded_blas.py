"""Import this first: numpy's BLAS gets one thread, in this process and in those that it starts.

With more threads OpenBLAS spins between the small products of the tests' oracles: 7.6 s of processor time instead of 0.3 s for the
float64 oracle of one kernel test.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
