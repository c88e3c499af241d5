#!/usr/bin/env python3
"""Launcher of a training run: one process, or one rank of a ring. Usage, exit codes and design: `worker.training.cli`.

worker/train.py                                                       # this machine alone
python -m ringattn.launch -n 2 worker/train.py                        # two ranks on this machine
mlx.launch -n 2 worker/train.py                                       # the same with MLX's launcher
mlx.launch --hostfile hostfiles/m2x4.json worker/train.py             # four hosts
coordinator start --train                                             # through the workers, supervised
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script that is run by path finds its own folder first on the path, not the project's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from ingest.console import protect
    from ringattn.blas import loader as blas
    from ringattn.macos import refused_python

    protect()
    if reason := refused_python():
        print(f"train.py: {reason}", file=sys.stderr)
        sys.exit(2)  # usage

    blas.prepare()  # sets threads and BLAS, which must happen before numpy and mlx load
    from worker.training.cli import run_rank

    sys.exit(run_rank())
