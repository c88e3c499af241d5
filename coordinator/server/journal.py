"""The journal: every record of the ledger, in SQLite (WAL, synchronous=FULL), committed before any action leaves.

One commit a batch. Each row's checksum covers the row before it, so a changed, missing or reordered row is noticed. When it has
grown long for its tasks it is written anew, one record a task, in one commit: a run of any length keeps a bounded journal.
"""

from __future__ import annotations

import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from coordinator.scheduling.task_state import AnyRecord
from ingest.errors import StorageError, VerificationError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY, crc INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnyRecord).decode


class JournalDamaged(VerificationError):
    """The journal can't be read, or its records don't follow from one another."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"the journal {path} is damaged: {cause}. The manifests are whole without it: "
            "`coordinator start --extract --rebuild` makes it again from them."
        )


class Journal:
    """Opens or creates `path`. One thread at a time. JournalDamaged when it is not a whole journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._crc = 0
        self._seq = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise JournalDamaged(path, problem)
            self._db.executescript(_SCHEMA)
            last = self._db.execute("SELECT seq, crc FROM records ORDER BY seq DESC LIMIT 1").fetchone()
            self._seq, self._crc = last or (0, 0)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def load(self) -> Iterator[AnyRecord]:
        """Every record, oldest first. JournalDamaged where one is missing, was changed or can't be read."""
        crc, expected = 0, 1
        try:
            for seq, stored, text in self._db.execute("SELECT seq, crc, record FROM records ORDER BY seq"):
                blob = text.encode() if isinstance(text, str) else bytes(text)
                crc = zlib.crc32(blob, crc)
                if seq != expected or stored != crc:
                    raise JournalDamaged(self.path, f"record {expected} is missing or was changed")
                expected += 1
                yield _decode(blob)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        except msgspec.MsgspecError as error:
            raise JournalDamaged(self.path, f"record {expected - 1}: {error}") from error

    @property
    def length(self) -> int:
        """Records in it, as far as this process wrote or found them."""
        return self._seq

    def append(self, records: Sequence[AnyRecord]) -> None:
        """All of `records` in one synced commit, or none. StorageError when the disk is full or read-only."""
        if records:
            self._write(records, anew=False)

    def rewrite(self, records: Iterable[AnyRecord]) -> None:
        """`records` in place of all that is in it, in one synced commit. StorageError as `append`: it is then as it was."""
        self._write(records, anew=True)
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log of this commit is as large as the journal was
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def _write(self, records: Iterable[AnyRecord], anew: bool) -> None:
        seq, crc = (0, 0) if anew else (self._seq, self._crc)

        def rows() -> Iterator[tuple[int, int, str]]:
            # One at a time: a journal that is written anew is never in memory as a whole.
            nonlocal seq, crc
            for record in records:
                blob = _encode(record)
                seq, crc = seq + 1, zlib.crc32(blob, crc)
                yield seq, crc, blob.decode()

        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if anew:
                    self._db.execute("DELETE FROM records")
                self._db.executemany("INSERT INTO records VALUES (?, ?, ?)", rows())
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        self._seq, self._crc = seq, crc

    @property
    def meta(self) -> dict[str, str]:
        """The run's settings, as `set_meta` left them."""
        try:
            return dict(self._db.execute("SELECT key, value FROM meta"))
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def set_meta(self, **values: str) -> None:
        """Remember settings of the run, in one synced commit."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Nothing is written any more; what was is on disk."""
        self._db.close()

    def _failure(self, error: sqlite3.DatabaseError) -> Exception:
        """A full or read-only disk is not damage."""
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            free = shutil.disk_usage(self.path.parent).free
            return StorageError(
                f"the journal {self.path} can't be written: {error}; {free / 1e6:.1f} MB are free there. "
                "Free space or mend the disk, then run the same command again: it goes on where it stopped."
            )
        return JournalDamaged(self.path, str(error))
