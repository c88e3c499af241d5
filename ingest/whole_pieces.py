"""The pieces of whole files, cut by respondent once in a process: each of its builds takes its own rows from there."""

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Array, Floats, Int32s
from ingest.columns import EMPTY, as_numpy
from ingest.lru_cache import LruCache
from ingest.models import FileEntry
from ingest.store import read_content

LIMIT = 192 << 20  # bytes: the files of a year of every authority on all routes take 170 MB
BATCH = 1 << 16  # rows
_EMPTY: Array = np.empty(0, np.uint8)


@dataclass(frozen=True)
class CutPiece:
    """The rows of a piece by respondent, in the piece's order within each. Hours are hours since 1970-01-01T00 UTC."""

    bounds: dict[str, tuple[int, int]]  # respondent → its rows
    variables: tuple[str, ...]
    hour: Int32s  # [row]
    code: Array  # [row] index into `variables`, of the smallest type that holds it
    value: Array  # [row] MWh; float32 where that holds each value exactly

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.hour.nbytes + self.code.nbytes + self.value.nbytes)

    def rows(self, respondent: str) -> tuple[Int32s, Int32s, Floats]:
        """Return hour, index into `variables` and value of each row of a respondent."""
        low, high = self.bounds.get(respondent, (0, 0))
        code, value = self.code[low:high].astype(np.int32), self.value[low:high].astype(np.float64)
        return self.hour[low:high].copy(), code, value


_cut: LruCache[CutPiece] = LruCache(LIMIT, lambda piece: piece.nbytes)
_lock = (
    threading.Lock()
)  # also while a piece is cut: the leases of a worker want the same one, and its table is held once


def cut_piece(data_dir: Path, entry: FileEntry) -> CutPiece:
    """Return a piece cut by respondent. The file's bytes are verified at the first call, and again where the file has changed since.

    See `read_content` for the errors.
    """
    with _lock:
        key = entry.sha256, *_version(data_dir / entry.path)
        return _cut.get(key) or _cut.put(key, cut(read_content(data_dir, entry)))


def _version(path: Path) -> tuple[Path, int, int, int]:
    """Return what changes with a file: its inode, its bytes and the time of its last change; of a file that cannot be read, zeros."""
    try:
        status = path.stat()
    except OSError:
        return path, 0, 0, 0
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def cut(content: bytes) -> CutPiece:
    """Return the bytes of a piece, cut by respondent; its rows are decoded a batch at a time."""
    respondents: dict[str, int] = {}
    variables: dict[str, int] = {}
    owners, codes, hours, values = [_EMPTY], [_EMPTY], [EMPTY.hour], [EMPTY.value.astype(np.float32)]
    for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(BATCH, use_threads=False):
        table = pa.Table.from_batches([batch])
        for name, known, numbers in (("respondent", respondents, owners), ("variable", variables, codes)):
            names, index = codes_of(table, name)
            place = np.array([known.setdefault(one, len(known)) for one in names] or [0])
            numbers.append(place.astype(np.min_scalar_type(max(len(known), 1)))[index])
        hours.append(as_numpy(batch.column("hour")).copy())  # not a view, which would keep the batch
        values.append(_short(as_numpy(batch.column("value"))))
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")  # of 16 bits: a radix sort
    ends = np.cumsum(np.bincount(owner, minlength=len(respondents))).tolist()
    bounds = dict(zip(respondents, zip([0, *ends[:-1]], ends, strict=True), strict=True)) if respondents else {}
    hour, code, value = (np.concatenate(parts)[order] for parts in (hours, codes, values))
    return CutPiece(bounds, tuple(variables), hour, code, value)


def _short(values: Floats) -> Array:
    """Return a copy as float32 where that holds each value exactly, as it holds whole MWh; as float64 otherwise."""
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    return short if np.array_equal(short, values, equal_nan=True) else values.copy()


def codes_of(table: pa.Table, name: str) -> tuple[tuple[str, ...], Int32s]:
    """Return the distinct texts of a column and the index of each row among them: int32 [row]."""
    column = table.column(name).combine_chunks()
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return tuple(coded.dictionary.to_pylist()), as_numpy(coded.indices).astype(np.int32)
