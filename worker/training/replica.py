"""What a training needs, on a host that does not share the coordinator's files: brought before the ring starts, checkpoints sent back.

`<data>/mirror/` holds `series/` and `run/` exactly as the coordinator listed them; what it did not list is removed, so that all ranks
go on from the same checkpoint with the same series. Nothing else of the data folder is touched.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled, IngestError, VerificationError
from ingest.files import DISK_FULL
from worker.agent.file_transfer import FileTransfer, file_ref

FOLDER = "mirror"
LOCAL = ("logs", "beats")  # below run/: this host's own
AT_END = ("metrics.jsonl", "config.json", "loss.png", "result.json")  # in this order: the result is believed last


class HostFull(IngestError):
    """This host has no room for a training; others may have."""


def sync_replica(folder: Path, files: Sequence[FileRef], line: FileTransfer, said: Callable[[], None]) -> None:
    """Make `folder` hold `files` and nothing else. HostFull, VerificationError, Cancelled."""
    with local_disk_errors(folder):
        _drop_others(folder, {file.path for file in files})
        for file in files:
            line.download(folder, file, said)


@contextmanager
def local_disk_errors(folder: Path) -> Iterator[None]:
    """HostFull where this host's disk is full, inside: it is not the coordinator's, whose full disk ends a run."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise HostFull(f"{folder}: {error.strerror}; free space on this host, and it takes part again") from error


def _drop_others(folder: Path, listed: set[str]) -> None:
    found = [path for name in ("series", "run") for path in (folder / name).rglob("*")]
    for path in sorted(found, reverse=True):  # what is in a folder before the folder
        relative = path.relative_to(folder)
        if relative.parts[1] in LOCAL and relative.parts[0] == "run":
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(relative) not in listed and not _part_of(relative, listed):
            path.unlink()


def _part_of(relative: Path, listed: set[str]) -> bool:
    """A file that is listed and has come in part."""
    return relative.suffix == ".part" and str(relative).rsplit(".", 2)[0] in listed


class CheckpointUploader:
    """Sends rank 0's checkpoints back as they are written, in a thread of its own, so that the rank is watched meanwhile."""

    def __init__(self, folder: Path, line: FileTransfer) -> None:
        self._folder, self._line = folder, line
        self.saved = 0  # step of the newest that the coordinator holds
        self._sent: dict[str, int] = {}  # checkpoint → its state.json's mtime, in ns
        self._notified, self._ended = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="returns", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """There is a new one."""
        self._notified.set()

    def finish(self) -> None:
        """Send what is not sent yet, then the thread's end. Cancelled when the lease was taken back meanwhile."""
        self._ended.set()
        self._notified.set()
        self._thread.join()
        if isinstance(self.error, Cancelled):
            raise self.error

    def _run(self) -> None:
        try:
            while True:
                self._notified.wait()
                self._notified.clear()
                last = self._ended.is_set()
                self._send_newest()
                if last:
                    return
        except (Cancelled, VerificationError, OSError) as error:
            self.error = error

    def _send_newest(self) -> None:
        """The newest checkpoint, after the best one that it names, its state.json last: where that is, all of it is."""
        found = sorted((self._folder / "run" / "checkpoints").glob("[0-9]*/state.json"))
        if not found:
            return
        newest = found[-1].parent
        try:
            best = json.loads(found[-1].read_text()).get("best_step", 0)
            for step in (newest.with_name(f"{best:06d}"), newest):
                if (step / "state.json").exists():
                    self._send_folder(step)
            self._send("run/metrics.jsonl", frozen=True)
        except FileNotFoundError:
            return  # pruned meanwhile: a newer one is there
        self.saved = max(self.saved, int(newest.name))

    def _send_folder(self, folder: Path) -> None:
        state = folder / "state.json"
        stamp = state.stat().st_mtime_ns
        if self._sent.get(folder.name) == stamp:
            return
        for path in [*sorted(path for path in folder.iterdir() if path != state), state]:
            self._send(str(path.relative_to(self._folder)))
        self._sent[folder.name] = stamp

    def _send(self, path: str, frozen: bool = False) -> None:
        """`frozen`: a copy of a file that grows meanwhile."""
        if not (self._folder / path).exists():
            return
        if not frozen:
            self._line.upload(self._folder, file_ref(self._folder, path))
            return
        copy = self._folder / "copies"
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._folder / path, copy / path)
        self._line.upload(copy, file_ref(copy, path))

    def final_files(self) -> list[FileRef]:
        """What a run that ended well has left, the result last. The lease's answer names it, and so it is sent before."""
        run = self._folder / "run"
        return [file_ref(self._folder, f"run/{name}") for name in AT_END if (run / name).exists()]
