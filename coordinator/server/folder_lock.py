"""Lock a data folder for one coordinator: a flock on `<data>/.lock`, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from ingest.errors import UsageError
from ingest.files import storage_errors

LOOK_S = 0.05  # `running_command` holds the lock for microseconds


class FolderLocked(UsageError):
    """Another coordinator uses this folder."""


def _lock(file: int) -> None:
    """Lock a file; once more after `LOOK_S`, in case `running_command` looked at it just then."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOK_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def running_command(data_dir: Path) -> str:
    """Return the command that holds a folder's lock now; "" if none does. Nothing is written."""
    try:
        file = os.open(data_dir / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return str(json.loads(os.read(file, 65_536))["command"])
        except (ValueError, KeyError, TypeError):
            return "coordinator"
    finally:
        os.close(file)
    return ""


class FolderLock:
    """Hold the lock in a `with` statement. FolderLocked names the process that holds it already."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / ".lock"
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        with storage_errors(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors(self._path if self._path.exists() else self._path.parent):
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(file)
        except BlockingIOError:
            holder = os.read(file, 65_536)
            os.close(file)
            raise FolderLocked(self._refusal(holder)) from None
        with storage_errors(self._path):
            os.ftruncate(file, 0)
            os.write(file, json.dumps({"pid": os.getpid(), "command": " ".join(sys.argv)}).encode())
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _refusal(self, holder: bytes) -> str:
        try:
            known = json.loads(holder)
            who = f"pid {known['pid']}: {known['command']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        return (
            f"{self._path.parent} is in use by a coordinator ({who}). "
            "Run `coordinator status`, or choose another folder with --data."
        )
