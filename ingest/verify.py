"""Verify a data folder again from the bytes on disk: `coordinator verify`. It only reads, and reports everything it finds.

Not covered: logs, `journal.sqlite` (its reader checks each record), and locks. Files that no manifest names (`checksums`) are
covered from the end of the first finished stage on.
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest import checksums, daily, manifest, snapshot, store
from ingest.asked import open_gaps
from ingest.build_series import year_hours
from ingest.columns import Columns, digest, drop_repeats_between, find_gaps, from_table, hour_text, merge
from ingest.console import printable
from ingest.errors import SourceError, UsageError, VerificationError, quoted
from ingest.files import visible
from ingest.models import (
    ALL_RESPONDENTS,
    DAY,
    BuildResult,
    FetchJob,
    FileEntry,
    RouteGap,
    ShardResult,
    build_key,
    is_daily,
    step_of,
)
from ingest.plan import build_job
from ingest.sources import get_source
from ingest.sources.base import Source

OnProgress = Callable[[int, int], None]  # manifests verified, manifests in all
NAMED = 20  # duplicates named one by one; the rest are counted


@dataclass(frozen=True)
class Finding:
    """One line of a report. `kind` is one word; `subject` a path or a shard's key."""

    kind: str
    subject: str
    detail: str

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.kind:<10} {self.subject}: {self.detail}"


@dataclass
class Report:
    """The outcome of a verification. Mismatches make a folder not whole; gaps are the source's own, notes are harmless."""

    data_dir: str
    shards: int = 0
    builds: int = 0
    pages: int = 0
    rows: int = 0  # decoded again from the pages
    total: int = 0
    bytes: int = 0  # hashed
    mismatches: list[Finding] = field(default_factory=list)
    gaps: tuple[RouteGap, ...] = ()
    notes: list[Finding] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the disk agrees with every manifest: `coordinator verify` exits with 0, otherwise with 1."""
        return not self.mismatches

    def mismatch(self, kind: str, subject: str, detail: str) -> None:
        """Record a mismatch."""
        self.mismatches.append(Finding(kind, subject, detail))

    def note(self, kind: str, subject: str, detail: str) -> None:
        """Record a note."""
        self.notes.append(Finding(kind, subject, detail))

    def expect(self, kind: str, subject: str, what: str, found: object, expected: object) -> None:
        """Record a mismatch unless `found` equals `expected`."""
        if found != expected:
            self.mismatch(kind, subject, f"{what}: found {found}, expected {expected}")

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, with `whole`."""
        return {**asdict(self), "whole": self.whole}

    @property
    def _remedy(self) -> str:
        return (
            "remove the files that the mismatches name, then repeat the extraction, `coordinator start --extract --data "
            f"{quoted(self.data_dir)}` with its respondents and period: it fetches or builds them again"
        )

    def to_text(self, *, quiet: bool = False) -> str:
        """Return one line per note, gap and mismatch (`quiet`: per mismatch), then a table of counts, which ends with the verdict."""
        gap_hours = sum(gap.hours for gap in self.gaps if not is_daily(gap.route))
        gap_days = sum(gap.hours // DAY for gap in self.gaps if is_daily(gap.route))
        days = f" and {gap_days:,} day{'s' * (gap_days != 1)}" if gap_days else ""
        counts = [
            ("manifests", f"{self.shards} shards, {self.builds} builds"),
            ("pages", f"{self.pages:,}"),
            ("rows", f"{self.rows:,} of {self.total:,}"),
            ("hashed", f"{self.bytes / 1e6:,.1f} MB"),
            ("mismatches", f"{len(self.mismatches):,}"),
            (
                "gaps",
                f"{len(self.gaps):,} ({gap_hours:,} hour{'s' * (gap_hours != 1)}{days} that the source does not have)",
            ),
            ("notes", f"{len(self.notes):,}"),
            ("verdict", "whole" if self.whole else f"NOT WHOLE: {self._remedy}"),
        ]
        gaps = [
            f"{'gap':<10} {gap.respondent} {gap.variable} of {gap.route}: {gap.start} to {gap.end} ({gap.length})"
            for gap in self.gaps
        ]
        lines = [f"{name:<11}{value}" for name, value in counts]
        harmless = [] if quiet else [*map(str, self.notes), *gaps]
        return "\n".join(map(printable, [*harmless, *map(str, self.mismatches), *lines]))


def verify(data_dir: Path | str, progress: OnProgress | None = None) -> Report:
    """Hash, decode and count every page, piece and series again, and compare them with their manifests.

    Args:
        data_dir: data folder.
        progress: called after each manifest.

    Returns:
        The report.

    Raises:
        UsageError: there is no manifest, so there is nothing to verify.
    """
    folder = Path(data_dir)
    paths = sorted(visible((folder / "manifests").rglob("*.json"), folder))
    if not paths:
        raise UsageError(
            f"nothing to verify in {folder}: no manifest; run `coordinator start --extract --data {quoted(folder)}` to make some"
        )
    report = Report(str(folder))
    shards: list[ShardResult] = []
    builds: list[BuildResult] = []
    for path in paths:
        try:
            if path.is_relative_to(folder / "manifests" / "build"):
                builds.append(manifest.read(path, manifest.Manifest[BuildResult]).result)
            else:
                shards.append(manifest.read(path, manifest.Manifest[ShardResult]).result)
        except VerificationError as error:
            report.mismatch("manifest", path.relative_to(folder).as_posix(), str(error))
    results: list[ShardResult | BuildResult] = [*shards, *builds]
    for done, result in enumerate(results, len(paths) - len(results) + 1):
        if isinstance(result, ShardResult):
            _verify_shard(folder, result, report)
        else:
            _verify_build(folder, result, shards, report)
        if progress:
            progress(done, len(paths))
    built = {build.key for build in builds}
    for shard in (result.shard for result in shards if result.rows):
        key = build_key(shard.respondent, int(shard.start[:4]))
        if shard.respondent != ALL_RESPONDENTS and not shard.daily and key not in built:
            report.note("unbuilt", shard.key, f"{key} has no series yet")
    report.shards, report.builds = len(shards), len(builds)
    report.gaps = open_gaps(shards)
    _verify_daily(folder, shards, report)
    _verify_summary(folder, shards, builds, report)
    _find_strays(folder, shards, builds, report)
    for name, problem in snapshot.check(folder):
        report.mismatch("snapshot", name, problem)
    _verify_sums(folder, report)
    return report


def _verify_sums(folder: Path, report: Report) -> None:
    """Compare files that no manifest names with the lists of the data folder and of the trainings' folders in it."""
    if not (folder / checksums.NAME).is_file():
        report.note(
            "unsealed",
            checksums.NAME,
            "not there: coverage.png, id, origins, and workers and times in manifests are not checked",
        )
    for path in (folder / checksums.NAME, *sorted(folder.glob(f"*/{checksums.NAME}"))):
        if not path.is_file():
            continue
        run = path.parent
        files = checksums.data_files(run) if run == folder else checksums.run_files(run)
        for kind, name, problem in checksums.check(run, files):
            subject = (run / name).relative_to(folder).as_posix()
            if kind == "sums" and run != folder:  # a program may have added a file after the training
                report.note("unlisted", subject, problem)
            else:
                report.mismatch(kind, subject, problem)
    for result in sorted(folder.glob("*/result.json")):
        if not result.with_name(checksums.NAME).is_file():
            name = result.with_name(checksums.NAME).relative_to(folder).as_posix()
            report.note("unsealed", name, "not there: the files of this training are not checked")


def _verify_shard(folder: Path, result: ShardResult, report: Report) -> None:
    """Verify the pages (bytes, rows, totals, keys), then piece, gaps and digest against the rows of the pages."""
    key = result.shard.key
    try:
        origin = store.read_origin(folder, result.shard)
        if origin is not None:  # the pages of a worker on another file system have none
            report.expect("origin", f"raw/{key}/origin", "origin of the pages", origin, result.origin)
    except VerificationError as error:
        report.mismatch("origin", f"raw/{key}/origin", str(error))
    reader = get_source(result.shard.source)
    piece = _piece(folder, result, report)
    kept = result.kept if result.shard.respondent == ALL_RESPONDENTS else ()
    job = FetchJob(result.shard, "", kept, gaps_from=result.gaps_from)
    if store.is_pruned(folder, result.shard):
        _verify_pruned(key, result, piece, report)
        return
    parts: list[Columns] = []
    rows = duplicates = 0
    for page in result.pages:
        content = _content(folder, page.file, report)
        if content is None:
            continue
        try:
            decoded = reader.parse(job, content)
        except SourceError as error:
            report.mismatch("page", page.file.path, f"can't be decoded: {error}")
            continue
        report.expect("rows", page.file.path, "rows", decoded.rows, page.rows)
        report.expect("total", page.file.path, "total", decoded.total, page.total)
        parts.append(decoded.columns)
        rows += decoded.rows
        duplicates += decoded.duplicates
    report.pages += len(result.pages)
    report.rows += rows
    report.total += result.total
    report.expect("total", key, "rows against the source's total", result.rows, result.total)
    if len(parts) < len(result.pages):
        return  # reported already; all further checks would only repeat it
    report.expect("rows", key, "rows", rows, result.rows)
    parts, repeated = drop_repeats_between(parts)
    report.expect("duplicate", key, "equal rows beyond the first", duplicates + len(repeated), result.duplicates)
    merged, _ = merge(parts)
    _name_duplicates(key, merged, report)
    report.expect("nulls", key, "nulls", merged.nulls(), result.nulls)
    report.expect("digest", key, "digest of the pages' rows", digest(merged), result.digest)
    if piece is not None:
        report.expect("digest", result.piece.path, "digest of the piece's rows", digest(piece), result.digest)
    _verify_gaps(reader, job, merged, result, report)


def _verify_pruned(key: str, result: ShardResult, piece: Columns | None, report: Report) -> None:
    """Verify what is left of a shard whose pages `coordinator clean` has removed: its piece."""
    report.note(
        "pruned", key, "its pages were removed: later fetches cover its hours; its rows are checked in the piece alone"
    )
    report.rows += result.rows
    report.total += result.total
    if piece is not None:
        report.expect("rows", result.piece.path, "rows of the piece", len(piece) + result.duplicates, result.rows)
        report.expect("nulls", result.piece.path, "nulls", piece.nulls(), result.nulls)
        report.expect("digest", result.piece.path, "digest of the piece's rows", digest(piece), result.digest)


def _piece(folder: Path, result: ShardResult, report: Report) -> Columns | None:
    """Return the columns of the piece, or report why there are none."""
    content = _content(folder, result.piece, report)
    if content is None:
        return None
    try:
        return from_table(pq.ParquetFile(io.BytesIO(content)).read(use_threads=False))
    except (pa.ArrowException, KeyError, OSError) as error:
        report.mismatch("piece", result.piece.path, f"can't be read: {error}")
        return None


def _name_duplicates(key: str, merged: Columns, report: Report) -> None:
    keys = merged.keys()
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    for row in again[:NAMED]:
        respondent, variable = merged.series[merged.index[row]]
        report.mismatch("duplicate", key, f"{respondent} {variable} {hour_text(int(merged.hour[row]))}")
    if len(again) > NAMED:
        report.mismatch("duplicate", key, f"and {len(again) - NAMED} more")


def _verify_gaps(reader: Source, job: FetchJob, merged: Columns, result: ShardResult, report: Report) -> None:
    if reader.whole_files and not result.asked_at:
        return  # earlier versions named no gap before the first and after the last hour that a file lists
    found, named = set(find_gaps(merged, reader.spans(job, merged), step_of(job.shard.route))), set(result.gaps)
    for gaps, problem in (
        (found - named, "is missing and not named"),
        (named - found, "is named, but the pages have it"),
    ):
        for gap in sorted(gaps, key=lambda gap: (gap.variable, gap.start)):
            detail = f"{gap.respondent} {gap.variable} {gap.start} to {gap.end} {problem}"
            report.mismatch("gaps", result.shard.key, detail)


def _verify_build(folder: Path, result: BuildResult, shards: Iterable[ShardResult], report: Report) -> None:
    """Verify the files' bytes, the cells by reason, and that the build read every piece that the manifests name now."""
    long, _, _ = [_content(folder, file, report) for file in result.files]
    report.expect("hours", result.key, "hours", result.hours, year_hours(result.year)[1])
    report.expect("duplicate", result.key, "rows of one key beyond the first", result.duplicates, 0)
    job = build_job(result.respondent, result.year, "", shards)
    if result.pieces != tuple(piece.file.sha256 for piece in job.pieces):
        detail = "built from other pieces than the manifests name now; run `coordinator start --extract` to rebuild it"
        report.mismatch("stale", result.key, detail)
    if long is not None:
        table = pq.ParquetFile(io.BytesIO(long)).read(["value", "reason"], use_threads=False)
        reasons = pc.value_counts(table["reason"].cast(pa.string())).to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in reasons}
        path = result.long.path
        report.expect("cells", path, "cells", len(table), result.hours * len(result.variables))
        suspect = counts.pop("suspect", 0)
        report.expect("cells", path, "suspect cells", suspect, result.suspect)
        report.expect("cells", path, "valid cells", counts.pop("ok", 0) + suspect, result.valid)
        report.expect("cells", path, "values", len(table) - table["value"].null_count, result.valid)
        masked = {reason: cells for reason, cells in result.masked.items() if cells}
        report.expect("cells", path, "masked cells", counts, masked)


def _verify_daily(folder: Path, shards: Iterable[ShardResult], report: Report) -> None:
    """Make the daily values again from their pieces, and compare them with the file of each respondent."""
    jobs = {daily.path_of(folder / daily.DAILY, job.respondent): job for job in daily.jobs_of(shards)}
    for path, job in jobs.items():
        name = path.relative_to(folder).as_posix()
        if not path.exists():
            report.note("unbuilt", job.respondent, f"{name} is not there yet")
            continue
        try:
            made, content = daily.contents(folder, job), path.read_bytes()
            table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
        except (OSError, ValueError, pa.ArrowException, VerificationError) as error:
            report.mismatch("daily", name, f"can't be verified: {error}")
            continue
        report.bytes += len(content)
        same = table.equals(made) and table.schema.metadata == made.schema.metadata
        report.expect("daily", name, "equals the rows of its pieces", same, True)
    for path in sorted(visible((folder / daily.DAILY).glob("*"), folder)):
        if path not in jobs:
            report.note("orphan", path.relative_to(folder).as_posix(), "no fetch of daily values has its rows")


def _verify_summary(folder: Path, shards: list[ShardResult], builds: list[BuildResult], report: Report) -> None:
    path = folder / "manifest.json"
    if not path.exists():
        report.note("unfinished", path.name, "not written yet: the extraction has not finished")
        return
    try:
        written = asdict(msgspec.json.decode(path.read_bytes(), type=manifest.Summary))
    except (OSError, ValueError) as error:
        report.mismatch("manifest", path.name, f"can't be read: {error}")
        return
    found = asdict(manifest.summarise(shards, builds))
    if not (folder / checksums.NAME).is_file() and found["shards"] > written["shards"]:  # killed before it wrote both
        report.note(
            "outdated", path.name, "of an earlier run; the run that was interrupted since writes it when it resumes"
        )
        return
    for name, value in found.items():
        if name == "gaps":
            stated = written[name]
            if not any(gap["route"] for gap in stated):  # written by an earlier version
                value = tuple({**gap, "route": ""} for gap in value)
            report.expect("summary", path.name, "list of gaps equals the manifests'", list(stated) == list(value), True)
        else:
            report.expect("summary", path.name, f"{name} over all manifests", value, written[name])


def _find_strays(folder: Path, shards: list[ShardResult], builds: list[BuildResult], report: Report) -> None:
    """Note files that no manifest names: harmless, but unexpected."""
    known = {file.path for result in shards for file in result.files}
    known |= {file.path for result in builds for file in result.files}
    verified = {result.shard.key for result in shards}
    for top in ("raw", "pieces", "series", "manifests"):
        for path in sorted((folder / top).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() or name in known or (top == "manifests" and path.suffix == ".json"):
                continue
            if path.name.startswith(".") and path.suffix != ".tmp":
                continue  # of Finder or the file system
            if path.suffix == ".tmp":
                report.note("temporary", name, "left by a killed process; may be removed")
            elif path.suffix == ".stale":
                report.note("set-aside", name, "contradicted by a later response; may be removed")
            elif top == "raw" and path.parent.relative_to(folder / "raw").as_posix() not in verified:
                report.note("unfinished", name, "its shard has no manifest yet; the next run uses it")
            elif path.name not in ("origin", store.PRUNED):
                report.note("orphan", name, "no manifest names it")


def _content(folder: Path, file: FileEntry, report: Report) -> bytes | None:
    """Return the file's bytes if they match its entry; otherwise report a mismatch."""
    try:
        content = (folder / file.path).read_bytes()
    except OSError as error:
        report.mismatch("missing", file.path, error.strerror or str(error))
        return None
    report.bytes += len(content)
    if len(content) != file.bytes:
        report.mismatch("size", file.path, f"{len(content)} bytes, the manifest says {file.bytes}")
        return None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        report.mismatch("sha256", file.path, "the sha256 differs from the manifest")
        return None
    return content
