"""Compare the hours that EIA's files and its API both gave: the overlap of `--source auto`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest import manifest
from ingest.columns import Columns, from_table, hour_number, hour_text
from ingest.hour_spans import HourSpan, clip
from ingest.models import ALL_RESPONDENTS, ShardResult
from ingest.store import read_piece

SHOWN = 6  # series that a line names
TOLERANCE = 0.5  # MWh: both sources give whole numbers


@dataclass(frozen=True)
class Agreement:
    """Values that both sources have for one hour of one series."""

    start: str  # first hour, YYYY-MM-DDTHH; "": there is none
    end: str
    compared: int
    differing: dict[str, int]  # "<respondent> <variable>" → values that differ, most first

    def __str__(self) -> str:
        """Return one line."""
        if not self.compared:
            return "bulk and eia have no hour in common"
        differ = sum(self.differing.values())
        line = f"bulk and eia agree in {self.compared - differ:,} of {self.compared:,} values of {self.start} to {self.end}"
        if differ:
            named = ", ".join(f"{name} {count}" for name, count in list(self.differing.items())[:SHOWN])
            line += f"; they differ in {named}" + (", …" if len(self.differing) > SHOWN else "")
        return line


def compare(data_dir: Path) -> Agreement:
    """Return how far the two sources agree, from the pieces of a data folder; a damaged one raises VerificationError."""
    own: dict[str, list[ShardResult]] = {"bulk": [], "eia": []}
    for result in manifest.shard_results(data_dir):
        if result.rows and result.shard.generation == 0 and not result.shard.daily and result.shard.source in own:
            own[result.shard.source].append(result)
    compared, differing, hours = 0, Counter[str](), []
    for file in own["bulk"]:
        near = [result for result in own["eia"] if _common(result, file)]
        if not near:
            continue
        bulk = _table(from_table(read_piece(data_dir, file.piece)), _common_of(near, file))
        for result in near:
            for key, value in _table(from_table(read_piece(data_dir, result.piece)), _common(result, file)).items():
                other = bulk.get(key, np.nan)
                if np.isnan(value) or np.isnan(other):
                    continue
                compared += 1
                hours.append(key[0])
                differing[f"{key[1]} {key[2]}"] += abs(value - other) > TOLERANCE
    start, end = (hour_text(min(hours)), hour_text(max(hours))) if hours else ("", "")
    return Agreement(start, end, compared, {name: count for name, count in differing.most_common() if count})


def _span(result: ShardResult) -> HourSpan:
    return hour_number(result.shard.start), hour_number(result.shard.end) + 1


def _common(result: ShardResult, file: ShardResult) -> list[HourSpan]:
    """Return the hours that a shard of the API and a file share; none where the file does not hold its respondent."""
    holds = file.shard.respondent == ALL_RESPONDENTS and result.shard.respondent in file.kept
    return clip([_span(result)], [_span(file)]) if holds else []


def _common_of(results: list[ShardResult], file: ShardResult) -> list[HourSpan]:
    spans = [span for result in results for span in _common(result, file)]
    return [(min(start for start, _ in spans), max(end for _, end in spans))]


def _table(columns: Columns, spans: list[HourSpan]) -> dict[tuple[int, str, str], float]:
    """Return (hour, respondent, variable) → MWh within spans."""
    keep = np.zeros(len(columns), np.bool_)
    for start, end in spans:
        keep |= (columns.hour >= start) & (columns.hour < end)
    rows = zip(columns.hour[keep].tolist(), columns.index[keep].tolist(), columns.value[keep].tolist(), strict=True)
    return {(hour, *columns.series[index]): value for hour, index, value in rows}
