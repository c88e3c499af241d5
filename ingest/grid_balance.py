"""Check and reconcile the series of a data folder across authorities, a year at a time: `coordinator balance`."""

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Floats
from ingest.build_series import PERIOD, year_hours
from ingest.catalog import REGION, RESPONDENTS
from ingest.columns import as_arrow, hour_number
from ingest.errors import UsageError, quoted
from ingest.files import atomic_write, storage_errors, visible
from ingest.loader import read_wide, wide_paths
from ingest.reconcile import Disagreement, disagreements, lacking, reconcile
from ingest.snapshot import read_whole

FOLDER = "reconciled"
SHOWN = 8  # authorities and lines of a year that the text lists
WANTED = ("D", "NG", "TI")
PREFIXES = ("NG.", "ID.")
NONE = {"authorities": "no authority has D, NG and TI on disk", "lines": "no line has both ends on disk"}


@dataclass(frozen=True)
class YearBalance:
    """One year: both checks, worst first, and what reconciling changed."""

    year: int
    authorities: tuple[Disagreement, ...]  # D against NG − TI
    lines: tuple[Disagreement, ...]  # a flow against its counterpart
    hours: int  # hours × authorities that are balanced now
    kept: dict[str, str]  # authority without a balanced hour, whose values are as reported → why
    change: dict[str, float]  # kind (D, NG, TI) → mean |change| of an authority's value in a balanced hour, MWh


def balance(data_dir: Path, progress: Callable[[int, int], None]) -> list[YearBalance]:
    """Check every year on disk, and write reconciled/<authority>/<year>.parquet. A damaged series raises VerificationError.

    Args:
        data_dir: data folder.
        progress: called with years done and years in all.

    Raises:
        UsageError: there is no authority's series, or none that can be balanced; nothing is written then, and what an earlier
            run wrote is removed.
    """
    years = read_whole(data_dir, lambda folder: _years(data_dir, folder))
    if not years:
        raise UsageError(
            f"no authority's series in {data_dir}; run `coordinator start --extract --data {quoted(data_dir)} --routes all` to make some"
        )
    found = []
    for done, (year, paths) in enumerate(sorted(years.items()), 1):
        found.append(_balance_year(data_dir, year, paths))
        progress(done, len(years))
    written = {_file(data_dir, code, one.year) for one in found if one.hours for code in years[one.year]}
    removed = _remove_others(data_dir, written)
    if not any(one.hours for one in found):
        kept = {code: why for one in found for code, why in one.kept.items()}
        raise UsageError(
            f"no authority in {data_dir} can be balanced ({_reasons(kept)}); balancing needs --routes all: "
            f"run `coordinator start --extract --routes all --data {quoted(data_dir)}` with the --respondents and hours wanted"
            + (f". Reconciled files of an earlier balance: {removed} removed." if removed else "")
        )
    return found


def _years(data_dir: Path, folder: Path) -> dict[int, dict[str, Path]]:
    """Return year → authority → its wide file."""
    years: dict[int, dict[str, Path]] = {}
    for path in sorted(visible(folder.glob("*"), folder)):
        known = RESPONDENTS.get(path.name)
        if known is None or known.kind != REGION:
            for year, file in wide_paths(data_dir, folder, path.name, range(0)).items():
                years.setdefault(year, {})[path.name] = file
    return years


def _balance_year(data_dir: Path, year: int, paths: dict[str, Path]) -> YearBalance:
    first, hours = year_hours(year)
    starts = [hour_number(f"{year}-{month:02d}-01T00") - first for month in range(1, 13)]
    months = np.searchsorted(starts, np.arange(hours), side="right").astype(np.int8)
    series = {code: _read(path) for code, path in paths.items()}
    authorities, lines = disagreements(series)
    solved = reconcile(series, months)
    kept = {code: _why(series[code]) for code, hours_of in solved.balanced.items() if not hours_of.any()}
    if len(kept) < len(series):
        for code, own in solved.values.items():
            atomic_write(_file(data_dir, code, year), _parquet(first, own))
    change = {}
    for kind in WANTED:
        parts = [
            np.abs(own[kind] - series[code][kind])[solved.balanced[code]]
            for code, own in solved.values.items()
            if kind in own and kind in series[code]
        ]
        given = np.concatenate([part[~np.isnan(part)] for part in parts] or [np.zeros(0)])
        change[kind] = round(float(given.mean()), 3) if given.size else 0.0
    balanced = sum(int(hours_of.sum()) for hours_of in solved.balanced.values())
    return YearBalance(year, tuple(authorities), tuple(lines), balanced, kept, change)


def _file(data_dir: Path, authority: str, year: int) -> Path:
    return data_dir / FOLDER / authority / f"{year}.parquet"


def _remove_others(data_dir: Path, written: Collection[Path]) -> int:
    """Remove the reconciled files that this run did not write, which an earlier one did; return their number."""
    old = [path for path in sorted((data_dir / FOLDER).glob("*/*.parquet")) if path not in written]
    for path in old:
        with storage_errors(path):
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return len(old)


def _why(own: dict[str, Floats]) -> str:
    missing = lacking(own)
    return f"no {', '.join(missing)} of its own" if missing else "no hour with all values valid"


def _reasons(kept: dict[str, str]) -> str:
    """Return the authorities by reason: `CISO, PACW: no flows of its own`."""
    by_reason: dict[str, list[str]] = {}
    for code, why in kept.items():
        by_reason.setdefault(why, []).append(code)
    return "; ".join(f"{', '.join(codes)}: {why}" for why, codes in by_reason.items())


def _read(path: Path) -> dict[str, Floats]:
    known = read_wide(path, ())[0]
    wanted = sorted(name for name in known if name in WANTED or name.startswith(PREFIXES))
    return {name: values for name, (values, _) in read_wide(path, wanted)[1].items()}


def _parquet(first: int, own: dict[str, Floats]) -> bytes:
    hours = len(next(iter(own.values()), ()))
    period = np.arange(first, first + hours, dtype=np.int64) * 3_600_000
    columns = {"period": as_arrow(period, PERIOD)}
    columns |= {name: as_arrow(own[name], pa.float64(), np.isnan(own[name])) for name in sorted(own)}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=1)
    return sink.getvalue()


def describe(found: list[YearBalance], data_dir: Path) -> str:
    """Return the checks as text."""
    lines = []
    for one in found:
        changes = ", ".join(f"{kind} {value:,.1f}" for kind, value in one.change.items())
        lines.append(f"{one.year}: {one.hours:,} hours of authorities balanced; mean change, MWh: {changes}")
        if one.kept:
            lines.append(
                f"  not balanced, kept as reported: {_reasons(one.kept)}; `--routes all` asks for all that is needed"
            )
        for title, noun, rows in (
            ("D against NG − TI", "authorities", one.authorities),
            ("the two ends of a line", "lines", one.lines),
        ):
            if not rows:
                lines.append(f"  {title}: {NONE[noun]}")
                continue
            over = [row for row in rows if row.over]
            lines.append(f"  {title}: {len(over)} of {len(rows)} {noun} differ by more than 1 % in an hour")
            lines += [
                f"    {row.subject:<12} {row.over:>6,} of {row.hours:>6,} hours, mean {row.mean_abs:>10,.1f}, max {row.max_abs:>10,.0f} MWh"
                for row in over[:SHOWN]
            ]
    lines.append(f"reconciled values: {data_dir / FOLDER}/<authority>/<year>.parquet")
    return "\n".join(lines)
