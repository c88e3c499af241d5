"""One rank on a leash: `python -m worker.process.rank_main SECONDS script.py args…`, started by `worker.training.rank_runner` and by nobody else.

Runs the script as `__main__`, as `python script.py` would. The rank ends with its worker, and also when its worker has
said nothing on stdin for SECONDS: a rank that its coordinator has lost sight of must not write to a run that goes on elsewhere.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from worker.process.parent_death import exit_with_parent


def main() -> None:
    """`python leash.py SECONDS PROGRAM ARGUMENT…`"""
    exit_with_parent(watchdog_s=float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as with `python script.py`
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
