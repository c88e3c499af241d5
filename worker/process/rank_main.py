"""Rank bootstrap with a watchdog: `python -m worker.process.rank_main SECONDS script.py args…`.

Only `worker.training.rank_runner` starts it. It runs the script as `__main__`, as `python script.py` would. The rank
ends with its worker, and also when its worker has written nothing to stdin for SECONDS: a rank whose coordinator has
lost contact with it must not write to a run that goes on elsewhere.
"""

import runpy
import sys
from pathlib import Path

from worker.process.parent_death import exit_with_parent


def main() -> None:
    """Start the watchdog, then run the script with its arguments."""
    exit_with_parent(watchdog_s=float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as with `python script.py`
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
