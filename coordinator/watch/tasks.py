"""Follow the journal of a run read-only, and group its tasks: a page with 100,000 of them has as many cells as one with 400.

Shards have a place, authority by period, and are shown there. Other tasks are shown in the order of the plan.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

CELLS = 400  # of the grid, at most
BATCH = 2_000  # records between two looks at the clock
# A result is shown when it is committed: its record, the longest, is not even fetched.
RECORDS = """SELECT record FROM records WHERE seq > ? AND seq <= ? AND record NOT LIKE '{"r":"Done"%' ORDER BY seq"""
MAX_LISTED = 20  # tasks that were given up, with their errors
PENDING, LEASED, DONE, FAILED, GONE = range(5)
STATES = ("waiting", "leased", "done", "given up", "cancelled")
OF_JOURNAL = {
    "pending": PENDING,
    "blocked": PENDING,
    "leased": LEASED,
    "done": DONE,
    "quarantined": FAILED,
    "dropped": GONE,
}


class Place(NamedTuple):
    """Holds the position of a shard in the grid."""

    respondent: str
    route: str
    start: str  # first hour


class _Shard(msgspec.Struct):
    respondent: str
    route: str
    start: str


class _Job(msgspec.Struct):
    shard: msgspec.Raw = msgspec.Raw()


class _Spec(msgspec.Struct):
    kind: str
    job: msgspec.Raw = msgspec.Raw()


class _Snapshot(msgspec.Struct):
    spec: _Spec
    state: str = "pending"
    error: str = ""
    message: str = ""


class _Line(msgspec.Struct):
    """What the page needs of a record of the journal; the other fields are not decoded."""

    r: str
    task: str
    spec: _Spec | None = None
    was: _Snapshot | None = None
    error: str = ""
    message: str = ""
    quarantined: bool = False


_decode = msgspec.json.Decoder(_Line).decode
_decode_job, _decode_shard = msgspec.json.Decoder(_Job).decode, msgspec.json.Decoder(_Shard).decode
_MOVES = {"Added": PENDING, "Leased": LEASED, "Returned": PENDING, "Committed": DONE, "Dropped": GONE}


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: one task, or several that follow one another in the plan."""

    first: str  # id of the first task
    tasks: int
    state: int  # number of the one that stands out: a task that was given up, else one that runs, else the state of the most


@dataclass(frozen=True)
class KindOfTask:
    """The tasks of one kind."""

    kind: str
    counts: tuple[int, ...]
    cells: tuple[Cell, ...]
    placed: tuple[
        tuple[Place, int], ...
    ] = ()  # (place, number of the state) of the shards; (): the tasks have no places


@dataclass(frozen=True)
class TaskGrid:
    """All tasks of a journal."""

    kinds: tuple[KindOfTask, ...] = ()
    failed: tuple[tuple[str, str, str], ...] = ()  # (task, error, message) of those that were given up, the first ones
    read: float = 1.0  # share of the journal that has been read
    problem: str = ""  # why the journal cannot be read


@dataclass
class _Kind:
    ids: list[str] = field(default_factory=list)
    states: bytearray = field(default_factory=bytearray)
    places: dict[Place, int] = field(default_factory=dict)  # place → index of its newest task


class JournalFollower:
    """Reads the records that were added since the last time. It keeps an id and a byte for each task."""

    def __init__(self, path: Path) -> None:
        """Take the journal's path; the file may not exist yet."""
        self._path = path
        self._reset()

    def _reset(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._where: dict[str, tuple[_Kind, int]] = {}
        self._failed: dict[str, tuple[str, str, str]] = {}
        self._seq = self._crc = 0
        self._problem = ""
        self._inode = 0
        self.read = 1.0

    def poll(self, budget_s: float) -> bool:
        """Read new records for at most `budget_s`; return whether any task changed. What cannot be read keeps what was read before."""
        try:
            inode = self._path.stat().st_ino
        except OSError:
            if self._inode:  # it was removed
                self._reset()
            return False
        try:
            return self._read_new(inode, budget_s)
        except sqlite3.OperationalError:  # its writer is at work, or has not made its table yet
            return False
        except sqlite3.DatabaseError as error:
            self._problem = str(error)
            return False

    def _read_new(self, inode: int, budget_s: float) -> bool:
        with closing(self._open()) as db:
            db.execute("BEGIN")  # one state of the journal, while a run writes it
            row = db.execute("SELECT crc FROM records WHERE seq = ?", (self._seq,)).fetchone() if self._seq else None
            if inode != self._inode or (
                self._seq and (row is None or row[0] != self._crc)
            ):  # another journal, or compacted
                self._reset()
                self._inode = inode
            last = db.execute("SELECT max(seq) FROM records").fetchone()[0] or 0
            before, until = self._seq, time.monotonic() + budget_s
            while self._seq < last and time.monotonic() < until:
                self._take_batch(db)
            self.read, self._problem = self._seq / last if last else 1.0, ""
            return self._seq != before

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=0.5)

    def _take_batch(self, db: sqlite3.Connection) -> None:
        newest = "SELECT max(seq) FROM (SELECT seq FROM records WHERE seq > ? ORDER BY seq LIMIT ?)"
        (end,) = db.execute(newest, (self._seq, BATCH)).fetchone()
        where, moves = self._where, _MOVES
        for (record,) in db.execute(RECORDS, (self._seq, end)).fetchall():
            try:
                line = _decode(record)
            except msgspec.MsgspecError:
                continue
            # Most records move a task that is known and was not given up: thousands a second, so they take the short way.
            if (known := where.get(line.task)) and (state := moves.get(line.r)) is not None and not self._failed:
                known[0].states[known[1]] = state
            else:
                self._take(line)
        self._seq, self._crc = db.execute("SELECT seq, crc FROM records WHERE seq = ?", (end,)).fetchone()

    def _take(self, line: _Line) -> None:
        spec = line.spec or (line.was.spec if line.was else None)
        if line.task not in self._where:
            if spec is None:
                return
            kind = self._kinds.setdefault(spec.kind, _Kind())
            self._where[line.task] = kind, len(kind.ids)
            kind.ids.append(line.task)
            kind.states.append(PENDING)
            if (place := _place(spec.job)) is not None:
                kind.places[place] = len(kind.ids) - 1
        kind, index = self._where[line.task]
        error, message = line.error, line.message
        if line.was is not None:
            state = OF_JOURNAL.get(line.was.state, PENDING)
            error, message = line.was.error, line.was.message
        elif line.r == "Failed":
            state = FAILED if line.quarantined else PENDING
        else:
            state = _MOVES.get(line.r, kind.states[index])
        kind.states[index] = state
        if state == FAILED:
            self._failed[line.task] = line.task, error, message
        else:
            self._failed.pop(line.task, None)

    def grid(self) -> TaskGrid:
        """Return the tasks by kind, as at most `CELLS` cells each."""
        kinds = tuple(_grouped(name, kind) for name, kind in self._kinds.items())
        return TaskGrid(kinds, tuple(self._failed.values())[:MAX_LISTED], self.read, self._problem)


def _place(job: msgspec.Raw) -> Place | None:
    """Return the place of a job's shard; None: it has none."""
    with suppress(msgspec.MsgspecError):
        shard = _decode_shard(_decode_job(job).shard)
        return Place(sys.intern(shard.respondent), sys.intern(shard.route), sys.intern(shard.start))
    return None


def _grouped(name: str, kind: _Kind) -> KindOfTask:
    states = np.frombuffer(bytes(kind.states), np.uint8)
    size = -(-len(states) // CELLS)
    starts = np.arange(0, len(states), size)
    by_state = np.stack([np.add.reduceat(states == state, starts) for state in range(len(STATES))], axis=1)
    most = np.array([DONE, PENDING, GONE])[by_state[:, [DONE, PENDING, GONE]].argmax(axis=1)]
    shown = np.where(by_state[:, FAILED] > 0, FAILED, np.where(by_state[:, LEASED] > 0, LEASED, most))
    sizes = np.diff([*starts, len(states)])
    cells = map(Cell, kind.ids[::size], sizes.tolist(), shown.tolist())
    placed = tuple((place, kind.states[index]) for place, index in kind.places.items())
    return KindOfTask(name, tuple(by_state.sum(axis=0).tolist()), tuple(cells), placed)
