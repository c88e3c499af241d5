"""The journal: every record of the task store in SQLite (WAL, synchronous=FULL), committed before any action is carried out.

One commit a batch. Each row's checksum covers the row before it, so a changed, missing or reordered row is detected. A journal
that has grown long for its tasks is compacted to one record a task, in one commit: a run of any length keeps a bounded journal.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from coordinator.scheduling.records import AnyRecord
from ingest.errors import StorageError, VerificationError
from ingest.files import storage_errors, when_descriptors_free

_SCHEMA = "CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY, crc INTEGER NOT NULL, record TEXT NOT NULL)"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnyRecord).decode


class JournalDamaged(VerificationError):
    """The journal cannot be read, or a record does not follow from those before it."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"the journal {path} is damaged: {cause}. The manifests do not depend on it: "
            "`coordinator start --extract --rebuild` rebuilds it from them."
        )


class Journal:
    """Open or create the journal at `path`. Not thread-safe.

    JournalDamaged is raised when the file is not an intact journal, StorageError when the disk is full or read-only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._crc = 0
        self._seq = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors(path):
            self._db = when_descriptors_free(self._open)

    def _open(self) -> sqlite3.Connection:
        with self._database_errors(), ExitStack() as on_error:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            on_error.callback(db.close)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA fullfsync=ON")  # macOS: a commit also empties the drive's cache; nothing elsewhere
            problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise JournalDamaged(self.path, problem)
            db.execute(_SCHEMA)
            last = db.execute("SELECT seq, crc FROM records ORDER BY seq DESC LIMIT 1").fetchone()
            self._seq, self._crc = last or (0, 0)
            on_error.pop_all()
            return db

    def load(self) -> Iterator[AnyRecord]:
        """Yield every record, oldest first.

        Raises:
            JournalDamaged: A record is missing, was changed or cannot be read.
        """
        crc, expected = 0, 1
        with self._database_errors():
            for seq, stored, text in self._db.execute("SELECT seq, crc, record FROM records ORDER BY seq"):
                blob = text.encode() if isinstance(text, str) else bytes(text)
                crc = zlib.crc32(blob, crc)
                if seq != expected or stored != crc:
                    raise JournalDamaged(self.path, f"record {expected} is missing or was changed")
                try:
                    record = _decode(blob)
                except msgspec.MsgspecError as error:
                    raise JournalDamaged(self.path, f"record {expected}: {error}") from error
                expected += 1
                yield record

    @property
    def length(self) -> int:
        """Number of records."""
        return self._seq

    def append(self, records: Sequence[AnyRecord]) -> None:
        """Append all of `records` in one synced commit, or none. StorageError is raised when the disk is full or read-only."""
        if records:
            with storage_errors(self.path):
                when_descriptors_free(lambda: self._write(records, replace=False))

    def rewrite(self, records: Iterable[AnyRecord]) -> None:
        """Replace the whole content by `records` in one synced commit. After a StorageError the content is unchanged."""
        with storage_errors(self.path):
            self._write(records, replace=True)
        with storage_errors(self.path), self._database_errors():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log of this commit is as large as the journal was

    def _write(self, records: Iterable[AnyRecord], replace: bool) -> None:
        seq, crc = (0, 0) if replace else (self._seq, self._crc)

        def rows() -> Iterator[tuple[int, int, str]]:
            # One at a time: a compacted journal is never in memory as a whole.
            nonlocal seq, crc
            for record in records:
                blob = _encode(record)
                seq, crc = seq + 1, zlib.crc32(blob, crc)
                yield seq, crc, blob.decode()

        with self._database_errors(), self._db:  # commits, or rolls back on an error
            self._db.execute("BEGIN IMMEDIATE")
            if replace:
                self._db.execute("DELETE FROM records")
            self._db.executemany("INSERT INTO records VALUES (?, ?, ?)", rows())
        self._seq, self._crc = seq, crc

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.DatabaseError) -> Exception:
        """Return the error to raise: a full or read-only disk is not damage, and a lack of descriptors is neither."""
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith("SQLITE_CANTOPEN"):
            try:  # SQLite does not say why it cannot open a file
                os.close(os.dup(2))
            except OSError as full:
                return full
        if name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            free = shutil.disk_usage(self.path.parent).free
            remedy = "Free space or repair the disk"
            if self.path.exists() and not os.access(self.path, os.W_OK):
                remedy = "Make the file writable"
            return StorageError(
                f"cannot write the journal {self.path}: {error}; {free / 1e6:.1f} MB are free. "
                f"{remedy}, then run the same command again to resume."
            )
        return JournalDamaged(self.path, str(error))
