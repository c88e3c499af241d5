"""One coordinator a data folder: a flock on `<data>/.lock`, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from types import TracebackType

from ingest.errors import UsageError
from ingest.files import storage_errors


class FolderLocked(UsageError):
    """Another coordinator runs on this folder."""


class FolderLock:
    """`with FolderLock(data_dir):` — FolderLocked names the process that holds the folder."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / ".lock"
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        with storage_errors(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            "Look at it with `coordinator status`, or name another folder with --data."
        )
