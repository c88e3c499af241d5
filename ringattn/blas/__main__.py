"""Run a module as `python -m MODULE` does, with a fast BLAS for mlx: `python -m ringattn.blas MODULE args…`."""

from __future__ import annotations

import runpy
import sys

from ringattn.blas import loader

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    loader.prepare()  # before numpy and mlx load, which the module's package may do
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
