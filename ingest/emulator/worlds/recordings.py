"""The recordings world: real hours from files, exactly the hours that the files hold.

`recording_files` describes the files. Where two files hold the same hour, the value of the later file, in the order given, counts.
Nothing is revised, repaired, rounded or invented.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ingest.emulator.worlds.base import ABSENT, NULL, VALUE, Block
from ingest.emulator.worlds.recording_files import RecordingsError, files_of, read_file

Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # hours, values (NaN for null)


class RecordingsWorld:
    """Serve the recorded hours of CSV and Parquet files."""

    name = "recordings"
    note = "Recorded hours served by a local emulator; not an answer of EIA."

    def __init__(self, paths: list[Path]) -> None:
        """Read every file.

        Args:
            paths: Files, or folders of files.

        Raises:
            RecordingsError: A file can't be read, or there is no recorded hour.
        """
        found: dict[tuple[str, str], dict[str, list[Part]]] = defaultdict(lambda: defaultdict(list))
        for path in files_of(paths):
            for (route, respondent, code), hours, values in read_file(path):
                found[route, respondent][code].append((hours, values))
        if not found:
            raise RecordingsError(
                f"no recorded hours in {', '.join(map(str, paths))}; give --recordings FILE or FOLDER"
            )
        self._blocks = {key: _block(columns) for key, columns in found.items()}
        self._first = min(block.first for block in self._blocks.values())
        self._last = max(block.first + len(block.values) - 1 for block in self._blocks.values())

    def respondents(self, route: str) -> tuple[str, ...]:
        """Return the recorded respondents of a route, sorted."""
        return tuple(sorted(respondent for kind, respondent in self._blocks if kind == route))

    def codes(self, route: str) -> tuple[str, ...]:
        """Return the recorded types, fuels or neighbours of a route, sorted."""
        return tuple(
            sorted({code for (kind, _), block in self._blocks.items() if kind == route for code in block.codes})
        )

    def span(self, now: int) -> tuple[int, int]:
        """Return the first and the last recorded hour; `now` has no effect."""
        return self._first, self._last

    def ahead(self, route: str) -> int:
        """Return 0: every recorded hour is served anyway."""
        return 0

    def settled_before(self, now: int) -> int:
        """Return the hour after the last one: nothing is revised."""
        return self._last + 1

    def block(self, route: str, respondent: str, start: int, end: int, now: int) -> Block | None:
        """Return the recorded hours from `start` to `end`; `now` has no effect."""
        block = self._blocks.get((route, respondent))
        return block.between(start, end) if block else None


def _block(columns: dict[str, list[Part]]) -> Block:
    codes = tuple(sorted(columns))
    first = min(int(hours.min()) for parts in columns.values() for hours, _ in parts)
    last = max(int(hours.max()) for parts in columns.values() for hours, _ in parts)
    values = np.zeros((last - first + 1, len(codes)))
    state = np.full(values.shape, ABSENT, np.uint8)
    for column, code in enumerate(codes):
        for hours, recorded in columns[code]:
            null = np.isnan(recorded)
            state[hours - first, column] = np.where(null, NULL, VALUE)
            values[hours - first, column] = np.where(null, 0, recorded)
    if np.abs(values).max() <= np.iinfo(np.int32).max and not (values % 1).any():
        return Block(first, codes, values.astype(np.int32), state)  # whole MWh, as EIA serves them: half the memory
    return Block(first, codes, values, state)
