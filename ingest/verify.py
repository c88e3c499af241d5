"""Prove everything in a data folder again from the bytes on disk: `coordinator verify`. Reads only; names all it finds."""

from __future__ import annotations

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

from ingest import manifest
from ingest.build_series import year_hours
from ingest.columns import Columns, digest, duplicate_owners, find_gaps, from_table, hour_text, merge
from ingest.errors import SourceError, UsageError, VerificationError
from ingest.models import BuildResult, FetchJob, FileEntry, Gap, ShardResult
from ingest.plan import build_job, open_gaps
from ingest.sources import Source, source

Progress = Callable[[int, int], None]  # manifests proved, manifests in all
NAMED = 20  # duplicates named one by one; the rest are counted


@dataclass(frozen=True)
class Finding:
    """`kind` is one word; `subject` a path or a shard's key."""

    kind: str
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind:<10} {self.subject}: {self.detail}"


@dataclass
class Report:
    """What was proved and what was not. Mismatches make the folder not whole; gaps are the source's own, notes are harmless."""

    data_dir: str
    shards: int = 0
    builds: int = 0
    pages: int = 0
    rows: int = 0  # decoded again from the pages
    total: int = 0
    bytes: int = 0  # hashed
    mismatches: list[Finding] = field(default_factory=list)
    gaps: tuple[Gap, ...] = ()
    notes: list[Finding] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Everything that a manifest says is so on disk: `coordinator verify` exits with 0, else with 1."""
        return not self.mismatches

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, and whether it is whole."""
        return {**asdict(self), "whole": self.whole}

    def to_text(self) -> str:
        """A table of counts, then one line a mismatch, gap and note."""
        counts = [
            ("manifests", f"{self.shards} shards, {self.builds} builds"),
            ("pages", f"{self.pages:,}"),
            ("rows", f"{self.rows:,} of {self.total:,}"),
            ("hashed", f"{self.bytes / 1e6:,.1f} MB"),
            ("mismatches", f"{len(self.mismatches):,}"),
            (
                "gaps",
                f"{len(self.gaps):,} ({sum(gap.hours for gap in self.gaps):,} hours that the source does not have)",
            ),
            ("notes", f"{len(self.notes):,}"),
            ("verdict", "whole" if self.whole else "NOT WHOLE: `coordinator start --extract` fetches what is amiss"),
        ]
        gaps = [
            f"{'gap':<10} {gap.respondent} {gap.variable}: {gap.start} to {gap.end} ({gap.hours} h)"
            for gap in self.gaps
        ]
        lines = [f"{name:<11}{value}" for name, value in counts]
        return "\n".join([*lines, *map(str, self.mismatches), *gaps, *map(str, self.notes)])


def verify(data_dir: Path | str, progress: Progress | None = None) -> Report:
    """Hash, decode and count every page, piece and series again and hold them against their manifests.

    UsageError when there is no manifest at all: an empty folder proves nothing.
    """
    folder = Path(data_dir)
    paths = sorted((folder / "manifests").rglob("*.json"))
    if not paths:
        raise UsageError(f"nothing to verify in {folder}: it has no manifest; `coordinator start --extract` makes some")
    report = Report(str(folder))
    shards: list[ShardResult] = []
    builds: list[BuildResult] = []
    done = 0

    def proved() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(paths))

    for path in paths:
        try:
            if path.is_relative_to(folder / "manifests" / "build"):
                builds.append(manifest.read(path, manifest.BuildManifest).result)
                continue  # proved when all shards are known
            proof = manifest.read(path, manifest.ShardManifest).result
            shards.append(proof)
            _prove_shard(folder, proof, report)
        except VerificationError as error:
            report.mismatches.append(Finding("manifest", path.relative_to(folder).as_posix(), str(error)))
        proved()
    for build in builds:
        _prove_build(folder, build, shards, report)
        proved()
    built = {build.key for build in builds}
    for proof in shards:
        key = f"build/{proof.shard.respondent}/{proof.shard.start[:4]}"
        if proof.rows and proof.shard.respondent != "ALL" and key not in built:
            report.notes.append(Finding("unbuilt", proof.shard.key, f"{key} has no series yet"))
    report.shards, report.builds = len(shards), len(builds)
    report.gaps = open_gaps(shards)
    _prove_summary(folder, shards, builds, report)
    _find_strays(folder, shards, builds, report)
    return report


def _prove_shard(folder: Path, proof: ShardResult, report: Report) -> None:
    """Pages: bytes, rows, totals, keys; then the piece, the gaps and the digest, against what the pages hold."""
    key = proof.shard.key
    reader = source(proof.shard.source)
    piece = _piece(folder, proof, report)
    kept = tuple(dict.fromkeys(respondent for respondent, _ in piece.series)) if piece else ()
    job = FetchJob(proof.shard, "", kept if proof.shard.respondent == "ALL" else ())
    parts: list[Columns] = []
    rows = 0
    for page in proof.pages:
        content = _content(folder, page.file, report)
        if content is None:
            continue
        try:
            decoded = reader.parse(job, content)
        except SourceError as error:
            report.mismatches.append(Finding("page", page.file.path, f"can't be decoded: {error}"))
            continue
        _expect(report, "rows", page.file.path, "rows", decoded.rows, page.rows)
        _expect(report, "total", page.file.path, "total", decoded.total, page.total)
        parts.append(decoded.columns)
        rows += decoded.rows
    report.pages += len(proof.pages)
    report.rows += rows
    report.total += proof.total
    _expect(report, "total", key, "rows against the source's total", proof.rows, proof.total)
    if len(parts) < len(proof.pages):
        return  # said already; what follows could only repeat it
    _expect(report, "rows", key, "rows", rows, proof.rows)
    merged, owners = merge(parts)
    _name_duplicates(key, merged, owners, report)
    _expect(report, "nulls", key, "nulls", merged.nulls(), proof.nulls)
    _expect(report, "digest", key, "digest of the pages' rows", digest(merged), proof.digest)
    if piece is not None:
        _expect(report, "digest", proof.piece.path, "digest of the piece's rows", digest(piece), proof.digest)
    _prove_gaps(reader, job, merged, proof, report)


def _piece(folder: Path, proof: ShardResult, report: Report) -> Columns | None:
    content = _content(folder, proof.piece, report)
    if content is None:
        return None
    try:
        return from_table(pq.read_table(io.BytesIO(content)))
    except (pa.ArrowException, KeyError, OSError) as error:
        report.mismatches.append(Finding("piece", proof.piece.path, f"can't be read: {error}"))
        return None


def _name_duplicates(key: str, merged: Columns, owners: np.ndarray[Any, Any], report: Report) -> None:
    if not duplicate_owners(merged, owners):
        return
    keys = merged.keys()
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    for row in again[:NAMED]:
        respondent, variable = merged.series[merged.index[row]]
        where = f"{respondent} {variable} {hour_text(int(merged.hour[row]))}"
        report.mismatches.append(Finding("duplicate", key, where))
    if len(again) > NAMED:
        report.mismatches.append(Finding("duplicate", key, f"and {len(again) - NAMED} more"))


def _prove_gaps(reader: Source, job: FetchJob, merged: Columns, proof: ShardResult, report: Report) -> None:
    found, named = set(find_gaps(merged, reader.spans(job, merged))), set(proof.gaps)
    for gap in sorted(found - named, key=lambda gap: (gap.variable, gap.start)):
        detail = f"{gap.respondent} {gap.variable} {gap.start} to {gap.end} is missing and not named"
        report.mismatches.append(Finding("gaps", proof.shard.key, detail))
    for gap in sorted(named - found, key=lambda gap: (gap.variable, gap.start)):
        detail = f"{gap.respondent} {gap.variable} {gap.start} to {gap.end} is named, but the pages have it"
        report.mismatches.append(Finding("gaps", proof.shard.key, detail))


def _prove_build(folder: Path, proof: BuildResult, shards: Iterable[ShardResult], report: Report) -> None:
    """Files: bytes; cells by reason, counted again; and that the build saw every piece there is now."""
    long, _, _ = [_content(folder, file, report) for file in (proof.long, proof.wide, proof.summary)]
    _expect(report, "hours", proof.key, "hours", proof.hours, year_hours(proof.year)[1])
    _expect(report, "duplicate", proof.key, "rows of one key beyond the first", proof.duplicates, 0)
    job = build_job(proof.respondent, proof.year, "", shards)
    if proof.pieces != tuple(piece.file.sha256 for piece in job.pieces):
        detail = (
            "was built from other pieces than the manifests now name; `coordinator start --extract` builds it again"
        )
        report.mismatches.append(Finding("stale", proof.key, detail))
    if long is not None:
        table = pq.read_table(io.BytesIO(long), columns=["value", "reason"])
        reasons = pc.value_counts(table["reason"].cast(pa.string())).to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in reasons}
        _expect(report, "cells", proof.long.path, "cells", len(table), proof.hours * len(proof.variables))
        _expect(report, "cells", proof.long.path, "valid cells", counts.pop("ok", 0), proof.valid)
        _expect(report, "cells", proof.long.path, "values", len(table) - table["value"].null_count, proof.valid)
        masked = {reason: cells for reason, cells in proof.masked.items() if cells}
        _expect(report, "cells", proof.long.path, "masked cells", counts, masked)


def _prove_summary(folder: Path, shards: list[ShardResult], builds: list[BuildResult], report: Report) -> None:
    path = folder / "manifest.json"
    if not path.exists():
        report.notes.append(Finding("unfinished", path.name, "not written yet: the extraction has not come to its end"))
        return
    try:
        written = msgspec.json.decode(path.read_bytes(), type=manifest.Summary)
    except (OSError, ValueError) as error:
        report.mismatches.append(Finding("manifest", path.name, f"can't be read: {error}"))
        return
    for name, value in asdict(manifest.summarise(shards, builds)).items():
        if asdict(written)[name] != value and name not in ("gaps", "format"):
            _expect(report, "summary", path.name, f"{name} over all manifests", value, asdict(written)[name])


def _find_strays(folder: Path, shards: list[ShardResult], builds: list[BuildResult], report: Report) -> None:
    """Files that no manifest names: harmless, but someone may wonder."""
    known = {page.file.path for proof in shards for page in proof.pages}
    known |= {proof.piece.path for proof in shards}
    known |= {file.path for proof in builds for file in (proof.long, proof.wide, proof.summary)}
    proved = {proof.shard.key for proof in shards}
    for top in ("raw", "pieces", "series", "manifests"):
        for path in sorted((folder / top).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() or name in known or (top == "manifests" and path.suffix == ".json"):
                continue
            if path.suffix == ".tmp":
                report.notes.append(Finding("temporary", name, "left by a process that was killed; may be removed"))
            elif path.suffix == ".stale":
                report.notes.append(Finding("set-aside", name, "contradicted by a later answer; may be removed"))
            elif top == "raw" and path.parent.relative_to(folder / "raw").as_posix() not in proved:
                report.notes.append(Finding("unfinished", name, "its shard has no manifest yet; the next run uses it"))
            elif path.name != "origin":
                report.notes.append(Finding("orphan", name, "no manifest names it"))


def _content(folder: Path, proof: FileEntry, report: Report) -> bytes | None:
    """The file's bytes if they are those proved; else a mismatch is named."""
    path = folder / proof.path
    try:
        content = path.read_bytes()
    except OSError as error:
        report.mismatches.append(Finding("missing", proof.path, error.strerror or str(error)))
        return None
    report.bytes += len(content)
    if len(content) != proof.bytes:
        report.mismatches.append(Finding("size", proof.path, f"{len(content)} bytes, the manifest says {proof.bytes}"))
        return None
    if hashlib.sha256(content).hexdigest() != proof.sha256:
        report.mismatches.append(Finding("sha256", proof.path, "the bytes are not those that were proved"))
        return None
    return content


def _expect(report: Report, kind: str, subject: str, what: str, found: object, said: object) -> None:
    if found != said:
        report.mismatches.append(Finding(kind, subject, f"{what}: found {found}, expected {said}"))
