"""Check a TOML file of settings: `python -m worker.check_settings train-config|control-config FILE`.

The coordinator, which loads nothing of a worker, runs it before it starts or writes anything.
"""

import sys
from pathlib import Path

from coordinator.wire.exit_codes import ExitCode
from ingest.errors import UsageError


def problem_of(setting: str, path: Path) -> str:
    """Return what is wrong with the file that the setting names; "": nothing."""
    try:
        if setting == "control-config":
            from worker.control.config import read_config

            read_config(path)
        else:
            from worker.training.config import check_file

            check_file(path)
    except UsageError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    problem = problem_of(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.buffer.write(problem.encode(errors="replace"))  # whatever the locale
    sys.exit(ExitCode.USAGE if problem else ExitCode.DONE)
