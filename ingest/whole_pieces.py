"""The pieces of whole files, cut by respondent once in a process: each of its builds takes its own rows from there."""

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Array, Floats, Int32s
from ingest.columns import as_numpy
from ingest.lru_cache import LruCache
from ingest.models import FileEntry
from ingest.store import read_content

LIMIT = 192 << 20  # bytes: the files of a year of every authority on all routes take 170 MB


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
    """Return a piece cut by respondent. The file's bytes are verified at each call; see `read_content` for the errors."""
    content = read_content(data_dir, entry)
    with _lock:
        held = _cut.get(entry.sha256)
        return held or _cut.put(entry.sha256, cut(pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)))


def cut(table: pa.Table) -> CutPiece:
    """Return the table of a piece, cut by respondent."""
    respondents, owner = codes_of(table, "respondent")
    variables, code = codes_of(table, "variable")
    order = np.argsort(owner.astype(_smallest(len(respondents))), kind="stable")  # of 16 bits: a radix sort
    ends = np.cumsum(np.bincount(owner, minlength=len(respondents))).tolist()
    hour, value = (as_numpy(table.column(name).combine_chunks()) for name in ("hour", "value"))
    with np.errstate(over="ignore"):
        short = value.astype(np.float32)
    exact = np.array_equal(short, value, equal_nan=True)
    return CutPiece(
        dict(zip(respondents, zip([0, *ends[:-1]], ends, strict=True), strict=True)) if respondents else {},
        variables,
        hour[order],
        code.astype(_smallest(len(variables)))[order],
        (short if exact else value)[order],
    )


def codes_of(table: pa.Table, name: str) -> tuple[tuple[str, ...], Int32s]:
    """Return the distinct texts of a column and the index of each row among them: int32 [row]."""
    column = table.column(name).combine_chunks()
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return tuple(coded.dictionary.to_pylist()), as_numpy(coded.indices).astype(np.int32)


def _smallest(count: int) -> np.dtype[np.integer]:
    return np.dtype(np.uint16 if count <= 1 << 16 else np.int32)
