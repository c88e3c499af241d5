"""A cgroup of one test whose memory limit kills the processes that are moved into it, as a host does that has no memory left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import until

LIMIT = 4 << 20  # bytes: what a process has allocated before is not counted, the next few pages are
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class MemoryCgroup:
    """The cgroup; `add` moves a process into it."""

    def __init__(self, folder: Path, limit: str, counter: str) -> None:
        self.folder, self._counter = folder, counter
        (folder / limit).write_text(str(LIMIT))

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        lines = (self.folder / self._counter).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup | str]:
    """Yield a cgroup, or the reason why there is none."""
    v1 = (V1 / "memory.limit_in_bytes").exists() or (V1 / "memory.usage_in_bytes").exists()
    if sys.platform != "linux" or os.geteuid() != 0:
        yield "a cgroup needs root on Linux"
        return
    folder = (V1 if v1 else V2) / f"ringattn-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        yield f"no cgroup can be made here: {error}"
        return
    try:
        names = ("memory.limit_in_bytes", "memory.oom_control") if v1 else ("memory.max", "memory.events")
        try:
            made: MemoryCgroup | str = MemoryCgroup(folder, *names)
        except OSError as error:
            made = f"the memory of a cgroup cannot be limited here: {error}"
        yield made
    finally:
        until(lambda: _removed(folder), "the processes of the cgroup to end")


def _removed(folder: Path) -> bool:
    with suppress(OSError):  # busy, until the kernel has forgotten the last process
        folder.rmdir()
    return not folder.exists()
