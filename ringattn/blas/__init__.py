"""A fast BLAS for mlx on Linux with nothing to install, and the name of the library that multiplies.

    loader.py    choose, check and load a BLAS before mlx loads; thread counts of a rank
    library.py   which library answers a function, which implementation, version and kernel it is
    csrc/        the shim: mlx's names on the OpenBLAS of scipy's wheel

`python -m ringattn.blas MODULE args…` runs a module with it.
"""
