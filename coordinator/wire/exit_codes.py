"""The exit codes of `coordinator`, of the workers and of the ranks. Imports no other module of this project."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a program ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    AUTHENTICATION = 4
    INCOMPLETE = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes
    INTERRUPTED = 130  # 128 + SIGINT

    @classmethod
    def of_status(cls, status: str) -> ExitCode:
        """Return the exit code of a run that ended with this status: "done", "drain", "storage" etc."""
        return cls[_OF_STATUS.get(status, status).upper()]


_OF_STATUS = {"storage": "incomplete", "drain": "interrupted", "stopped": "interrupted"}
