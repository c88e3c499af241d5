#!/usr/bin/env python3
"""Run worker/train.py with one slowed rank (a straggler): `slow_rank.py RANK FACTOR flags of train.py…`, as a rank of a ring.

Every block of the attention kernel of rank RANK takes FACTOR times as long: the rank sleeps for the rest.
"""

import os
import sys
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[2])]

from ringattn import kernels
from scripts.bench.ring_rank import Slowed
from worker.training.cli import run_rank

if __name__ == "__main__":
    if os.environ.get("MLX_RANK") == sys.argv[1]:
        slowed = Slowed(float(sys.argv[2]))
        kernels.select = lambda name=None, device=None: slowed
    run_rank(sys.argv[3:])
