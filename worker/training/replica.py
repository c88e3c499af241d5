"""Replicate a training's files on a host that does not share the coordinator's file system (stage-in), and upload checkpoints (stage-out).

`<data>/mirror/` holds `series/` and `run/` exactly as the coordinator listed them. Files that it did not list are removed, so that all
ranks resume from the same checkpoint with the same series. Nothing else in the data folder is changed.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled, IngestError, VerificationError
from ingest.files import DISK_FULL, visible
from worker.agent.file_transfer import FileTransfer, file_ref

FOLDER = "mirror"
LOCAL = ("logs", "beats")  # folders in run/ that belong to this host
AT_END = ("metrics.jsonl", "config.json", "result.json")  # in this order: a result implies the other files


class HostFull(IngestError):
    """This host's disk is full or read-only; other hosts can run the rank."""


def sync_replica(folder: Path, files: Sequence[FileRef], transfer: FileTransfer, on_chunk: Callable[[], None]) -> None:
    """Make a folder hold the listed files and nothing else.

    Args:
        folder: the replica.
        files: files that the coordinator listed, relative to `folder`.
        transfer: downloads missing files.
        on_chunk: called for each chunk that arrives.

    A full disk of this host is HostFull, a file that is not as the coordinator listed it VerificationError, a lease that was
    taken back Cancelled.
    """
    with local_disk_errors(folder):
        _drop_others(folder, {file.path for file in files})
        for file in files:
            transfer.download(folder, file, on_chunk)


@contextmanager
def local_disk_errors(folder: Path) -> Iterator[None]:
    """Raise HostFull when the disk is full inside the context.

    A StorageError would end the run, as an error of the coordinator's disk does; this disk is another host's.

    Raises:
        HostFull: if this host's disk is full or read-only.
        OSError: any other error of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise HostFull(f"{folder}: {error.strerror}; free space on this host, and it rejoins the training") from error


def _drop_others(folder: Path, listed: set[str]) -> None:
    """Remove all files that are not listed, and the folders that become empty."""
    found = [path for name in ("series", "run") for path in (folder / name).rglob("*")]
    for path in sorted(found, reverse=True):  # a folder's content before the folder
        relative = path.relative_to(folder)
        if relative.parts[1] in LOCAL and relative.parts[0] == "run":
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(relative) not in listed and not _is_part(relative, listed):
            path.unlink()


def _is_part(relative: Path, listed: set[str]) -> bool:
    """Return whether a file is the partial download of a listed file."""
    return relative.suffix == ".part" and str(relative).rsplit(".", 2)[0] in listed


class CheckpointUploader:
    """Upload rank 0's checkpoints as they are written, in a separate thread, so that the rank is watched meanwhile.

    Attributes:
        saved: step of the newest checkpoint that the coordinator holds.
        error: why the thread ended, if it failed.
    """

    def __init__(self, folder: Path, transfer: FileTransfer) -> None:
        self._folder, self._transfer = folder, transfer
        self.saved = 0
        self._sent: dict[str, int] = {}  # checkpoint → mtime of its state.json, ns
        self._notified, self._ended = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint-uploader", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Notify the thread of a new checkpoint."""
        self._notified.set()

    def finish(self) -> None:
        """Upload the remaining files and end the thread. Raises Cancelled if the lease was taken back meanwhile."""
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
        """Upload the best checkpoint that the newest one names, then the newest one."""
        found = sorted((self._folder / "run" / "checkpoints").glob("[0-9]*/state.json"))
        if not found:
            return
        newest = found[-1].parent
        try:
            best = json.loads(found[-1].read_text("utf-8")).get("best_step", 0)
            for step in (newest.with_name(f"{best:06d}"), newest):
                if (step / "state.json").exists():
                    self._send_folder(step)
            self._send("run/metrics.jsonl", frozen=True)
        except FileNotFoundError:
            return  # pruned meanwhile, so there is a newer one
        self.saved = max(self.saved, int(newest.name))

    def _send_folder(self, folder: Path) -> None:
        """Upload a checkpoint, state.json last: a coordinator that holds it holds the whole checkpoint."""
        state = folder / "state.json"
        stamp = state.stat().st_mtime_ns
        if self._sent.get(folder.name) == stamp:
            return
        for path in [*sorted(path for path in visible(folder.iterdir(), folder) if path != state), state]:
            self._send(str(path.relative_to(self._folder)))
        self._sent[folder.name] = stamp

    def _send(self, path: str, frozen: bool = False) -> None:
        """Upload a file that exists; with `frozen` a copy of it, as the file grows meanwhile."""
        if not (self._folder / path).exists():
            return
        if not frozen:
            self._transfer.upload(self._folder, file_ref(self._folder, path))
            return
        copy = self._folder / "copies"
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._folder / path, copy / path)
        self._transfer.upload(copy, file_ref(copy, path))

    def final_files(self) -> list[FileRef]:
        """Return the files of a run that ended well, the result last. The lease's result names them, so they are uploaded before it."""
        run = self._folder / "run"
        return [file_ref(self._folder, f"run/{name}") for name in AT_END if (run / name).exists()]
