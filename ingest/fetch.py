"""Fetch one shard and verify it: retry each page until it is complete, store it as received, merge all into one piece.

A page that fails a check is requested again, up to `ATTEMPTS` times, with back-off; an outage of the source is waited out
(`ingest.outage`) and does not count. Pages that an earlier attempt stored are verified again and reused, never requested twice.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ingest import store
from ingest.asked import SETTLE
from ingest.columns import (
    Columns,
    digest,
    drop_repeats_between,
    duplicate_owners,
    find_gaps,
    hour_number,
    merge,
)
from ingest.errors import (
    AuthenticationError,
    Cancelled,
    IngestError,
    SourceError,
    UsageError,
    VerificationError,
)
from ingest.http import jittered_backoff_s, served_hour
from ingest.models import MAX_VARIABLES, FetchJob, FileEntry, Gap, PageEntry, Shard, ShardResult, step_of
from ingest.outage import OVER
from ingest.page_request import FetchContext, PageRequests, Received
from ingest.sources import get_source
from ingest.sources.base import Page

log = logging.getLogger(__name__)

ATTEMPTS = 5  # responses to one page request that may fail a check
ROUNDS = 4  # times that pages may contradict each other before the shard fails
BACKOFF_S = (0.2, 5.0)  # first and longest pause after a fault
MIN_KEY = 8  # characters; EIA's keys have 40
_RETRY = "run `coordinator start --extract` to retry"


class _InconsistentPages(Exception):
    """Complete pages that contradict each other: set `offsets` aside and request them again."""

    def __init__(self, kind: str, message: str, offsets: Iterable[int] = (), total: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.offsets = tuple(offsets)
        self.total = total  # pages with another total are set aside too


@dataclass(frozen=True)
class _VerifiedPage:
    page: Page
    entry: PageEntry
    path: Path


def fetch_shard(job: FetchJob, context: FetchContext) -> ShardResult:
    """Fetch, verify and store one shard.

    Raised by the steps: Cancelled; AuthenticationError; UsageError where the source rejects the parameters; SourceError
    where its responses can't be used; StorageError where the disk refuses.

    Returns:
        The result; every file that it names is durable.
    """
    return _Fetch(job, context).run()


def _known_origin(data_dir: Path, shard: Shard) -> str | None:
    """Return the origin of the shard's stored pages; None before the first page, and where its file is damaged."""
    try:
        return store.read_origin(data_dir, shard)
    except VerificationError as error:
        log.warning("%s", error)
        return None


class _Fetch:
    """The fetch of one shard. Methods marked (pool) run on the pool's threads, all others on the lease's thread."""

    def __init__(self, job: FetchJob, context: FetchContext) -> None:
        self.job = job
        self.context = context
        self.source = get_source(job.shard.source)
        self.key = (context.api_key or "").strip()
        self.pages: dict[int, _VerifiedPage] = {}
        self.reused: set[int] = set()
        self.faults: Counter[str] = Counter()
        self.requests = PageRequests(
            job, context, self.source, self.key, check_cancelled=self._check_cancelled, count=self._count
        )
        self.served: set[str] = set()  # hours in which the pages were served
        self.duplicates = 0  # equal rows beyond the first, which are dropped
        self.doubted: set[int] = set()  # offsets of pages that began with the last row of the page before
        self.origin = _known_origin(context.data_dir, job.shard)
        self.lock = threading.Lock()
        self.stopped = threading.Event()  # this fetch has failed: its other pages end at their next step

    # -- the shard -----------------------------------------------------------------------------------------------------

    def run(self) -> ShardResult:
        """Return the result of the fetch.

        Raises:
            AuthenticationError: the key is malformed; it is not sent.
            SourceError: the pages contradict each other `ROUNDS` times.
        """
        if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise AuthenticationError("the API key contains characters that no key has; set EIA_API_KEY to a valid key")
        if 0 < len(self.key) < MIN_KEY:  # removing a short key from a body would also remove data
            raise AuthenticationError(
                f"the API key has {len(self.key)} characters, EIA's have 40; set EIA_API_KEY to a valid key"
            )
        self._reuse()
        for _ in range(ROUNDS):
            try:
                return self._finish(*self._verified())
            except _InconsistentPages as error:
                last = error
                self._set_aside(error)
        raise SourceError(f"{self.job.shard.key}: {last}, {ROUNDS} times; {_RETRY}", last.kind)

    def _verified(self) -> tuple[Columns, tuple[Gap, ...]]:
        """Return the columns and gaps of all pages, completed and verified together.

        Raises:
            _InconsistentPages: they contradict each other.
            SourceError: kind "foreign": more than `MAX_VARIABLES` variables of one respondent.
        """
        total = self._known_total()
        if total is None:
            self._complete(self.source.offsets(self.job, None), None)
            total = self._known_total()
        if self.source.paged:
            self._complete(self.source.offsets(self.job, total), total)
        columns, owner = merge(self._distinct())
        if max(Counter(name for name, _ in columns.series).values(), default=0) > MAX_VARIABLES:
            raise SourceError(f"{self.job.shard.key}: more than {MAX_VARIABLES} variables of one respondent", "foreign")
        if owners := duplicate_owners(columns, owner):
            offsets = [self._ordered()[part].entry.offset for part in owners]
            raise _InconsistentPages(
                "repeated", f"the pages at offsets {offsets} hold the same hour of the same variable", offsets
            )
        if self.source.paged and len(columns) + self.duplicates != total:
            raise _InconsistentPages("rows", f"{len(columns)} rows, but the source reports {total}", self.pages)
        gaps = find_gaps(columns, self.source.spans(self.job, columns), step_of(self.job.shard.route))
        if self.source.paged and total and any(hour_number(gap.start) <= self._settled_hour() for gap in gaps):
            # Rows beyond the end would mean that `total` is too low: the page there must be empty. Hours that the source may
            # not have published yet are absent without that, and an update asks for them again.
            self._complete((total,), total)
        return columns, gaps

    def _settled_hour(self) -> int:
        """Return the number of the last hour that the source had had time to publish when the pages were served."""
        return hour_number(min(self.served)) - SETTLE

    def _known_total(self) -> int | None:
        """Return the total that all pages report, or None before the first.

        Raises:
            _InconsistentPages: they report different totals.
        """
        if not self.source.paged:
            return None
        totals = {held.page.total for held in self.pages.values()}
        if len(totals) > 1:
            raise _InconsistentPages("total", f"pages report different totals: {sorted(totals)}", self.pages)
        return next(iter(totals), None)

    def _distinct(self) -> list[Columns]:
        """Return the columns of all pages without equal rows beyond the first, and count these.

        Raises:
            _InconsistentPages: a page begins with the last row of the one before, for the first time. After a second fetch of
                both it is the source that has the row twice, not its paging that was shifted meanwhile.
        """
        held = self._ordered()
        parts, repeated = drop_repeats_between([one.page.columns for one in held])
        if new := {held[i].entry.offset for i in repeated} - self.doubted:
            self.doubted |= new
            offsets = [one.entry.offset for i, one in enumerate(held) if {i, i + 1} & repeated]
            raise _InconsistentPages("repeated", f"pages at offsets {offsets} share a row", offsets)
        self.duplicates = len(repeated) + sum(one.page.duplicates for one in held)
        return parts

    def _ordered(self) -> list[_VerifiedPage]:
        return [self.pages[offset] for offset in sorted(self.pages)]

    def _finish(self, columns: Columns, gaps: tuple[Gap, ...]) -> ShardResult:
        """Return the result, after writing the piece and making all names durable."""
        shard, data_dir = self.job.shard, self.context.data_dir
        self._check_cancelled()
        with self.source.exclusive:
            piece, hashed = store.write_piece(data_dir, shard, columns), digest(columns)
        store.fsync_folders(data_dir, store.page_folder(data_dir, shard), data_dir / "pieces")
        pages = tuple(held.entry for held in self._ordered())
        rows = sum(page.rows for page in pages)
        return ShardResult(
            shard=shard,
            origin=self.origin or "",
            total=pages[0].total if self.source.paged else rows,
            rows=rows,
            nulls=columns.nulls(),
            gaps=gaps,
            pages=pages,
            piece=piece,
            digest=hashed,
            requests=self.requests.sent,
            reused=len(self.reused),
            kept=self.job.respondents,
            faults=dict(sorted((self.faults + Counter(duplicate=self.duplicates)).items())),
            duplicates=self.duplicates,
            asked_at=min(self.served),
            gaps_from=self.job.gaps_from,
        )

    # -- pages of an earlier attempt -----------------------------------------------------------------------------------

    def _reuse(self) -> None:
        """Verify the pages with final names again, keep the complete ones and set the others aside."""
        offsets = self.source.offsets(self.job, None)
        known = self.origin is not None  # else the pages could be of another world
        for stored in store.scan_pages(self.context.data_dir, self.job.shard, self.source.suffix):
            self._check_cancelled()
            try:
                content = store.read_page(stored.path)
                page = self.source.parse(self.job, content)
                self._check(page, stored.offset)
                # Otherwise a page at this offset is already kept, or the source has no page there.
                expected = known and stored.offset not in self.pages and (self.source.paged or stored.offset in offsets)
            except (SourceError, VerificationError):
                expected = False
            if not expected:
                store.set_aside(stored.path)
                self.faults["stale"] += 1
                continue
            file = store.file_entry(self.context.data_dir, stored.path, content)
            fetched = datetime.fromtimestamp(stored.path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
            self._keep(stored.offset, page, file, fetched, 0.0)
            self.served.add(fetched[:13])
            self.reused.add(stored.offset)

    def _set_aside(self, error: _InconsistentPages) -> None:
        offsets = set(error.offsets)
        if error.total is not None:
            offsets |= {offset for offset, held in self.pages.items() if held.page.total != error.total}
        for offset in offsets & self.pages.keys():
            store.set_aside(self.pages.pop(offset).path)
            self.reused.discard(offset)
        self.faults[error.kind] += 1

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _complete(self, offsets: Iterable[int], total: int | None) -> None:
        """Fetch the missing pages of `offsets` concurrently; after all have ended, raise the most informative error."""
        futures = [
            self.context.pool.submit(self._fetch_page, offset, total) for offset in offsets if offset not in self.pages
        ]
        _, pending = wait(futures, return_when=FIRST_EXCEPTION)
        if pending:
            self.stopped.set()
            for future in pending:
                future.cancel()
            wait(futures)
            self.stopped.clear()
        if errors := [error for future in futures if not future.cancelled() and (error := future.exception())]:
            self._check_cancelled()
            cause = min(errors, key=_error_priority)
            raise cause

    def _fetch_page(self, offset: int, total: int | None) -> None:
        """Request one page until it is complete, then store and keep it (pool).

        Args:
            offset: The page's offset in the request.
            total: as the other pages report it.

        Raises:
            SourceError: `ATTEMPTS` responses failed a check, or an outage did not end. `_final` makes it a UsageError where the
                source rejects the parameters.
            _InconsistentPages: two responses agree on another total.
        """
        failures = 0
        other_total: int | None = None
        doubtful: Received | None = None  # nulls, repeats or nothing: accepted when it comes twice
        while True:
            try:
                received = self.requests.receive(offset, doubtful)
                self._note_origin(received.origin)
                page = received.page
                if total is not None and page.total != total:
                    message = f"total was {total}, now {page.total}"
                    if page.total == other_total:
                        raise _InconsistentPages("total", message, total=page.total)
                    other_total = page.total
                    raise SourceError(message, "total")
                self._check(page, offset)
                if self.source.paged and (page.total == 0 or page.columns.nulls() or page.duplicates):
                    before, doubtful = doubtful, received
                    if before is None:
                        continue
                    if not _confirms(page, before.page):
                        raise SourceError("nulls or repeated rows differ from one response to the next", "nulls")
                    doubtful = before
                break
            except SourceError as error:
                failures += 1
                self._count(error.kind)
                if failures >= ATTEMPTS or error.kind == OVER:
                    raise self._final(error, offset, failures) from error
                self.requests.pause(jittered_backoff_s(failures, *BACKOFF_S))
        if doubtful is not None and page.columns.nulls() < doubtful.page.columns.nulls():
            self._count("nulls")
        self._check_cancelled()
        file = store.write_page(self.context.data_dir, self.job.shard, offset, received.content, self.source.suffix)
        self._keep(offset, page, file, received.response.fetched, received.response.seconds)
        self.served.add(served_hour(received.response))

    def _check(self, page: Page, offset: int) -> None:
        """Check a page's number of rows.

        Raises:
            SourceError: kind "short" or "total".
        """
        expected = self.source.expected_rows(offset, page.total)
        if expected is not None and page.rows != expected:
            message = f"{page.rows} rows, expected {expected} of {page.total}"
            raise SourceError(message, "short" if page.rows < expected else "total")

    def _note_origin(self, origin: str) -> None:
        """Record the origin of the pages (pool).

        Raises:
            _InconsistentPages: earlier pages have another origin; one shard never mixes two.
        """
        with self.lock:
            if origin == self.origin:
                return
            store.write_origin(self.context.data_dir, self.job.shard, origin)
            before, self.origin = self.origin, origin
            if self.pages:
                raise _InconsistentPages("origin", f"pages come from {before} and from {origin}", list(self.pages))

    def _keep(self, offset: int, page: Page, file: FileEntry, fetched: str, seconds: float) -> None:
        entry = PageEntry(
            file=file,
            offset=offset,
            rows=page.rows,
            total=page.total,
            fetched=fetched,
            seconds=round(seconds, 4),
            api_version=page.api_version,
            request=self.source.request(self.job, offset),
        )
        with self.lock:
            self.pages[offset] = _VerifiedPage(page, entry, self.context.data_dir / file.path)
        self.context.on_progress(page.rows, 0)

    def _final(self, error: SourceError, offset: int, failures: int) -> IngestError:
        message = f"{self.job.shard.key}, page at {offset}: {error}"
        if error.kind != OVER:
            message += f" (attempts: {failures})"
        if error.kind == "refused":
            return UsageError(f"{message}. Check respondents, routes and period with `--dry-run`")
        return SourceError(f"{message}; {_RETRY}", error.kind)

    def _count(self, kind: str) -> None:
        with self.lock:
            self.faults[kind] += 1

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _check_cancelled(self) -> None:
        """Check the lease and the other pages.

        Raises:
            Cancelled: the lease was withdrawn, or another page of this fetch has failed.
        """
        if self.context.cancelled.is_set() or self.stopped.is_set():
            raise Cancelled(self.job.shard.key)


def _confirms(page: Page, before: Page) -> bool:
    """Return whether all nulls of `page` (or its emptiness) were in `before`: sent twice, they are the source's own."""
    alike = page.total == before.total and page.duplicates <= before.duplicates
    return page is before or (alike and page.columns.null_keys() <= before.columns.null_keys())


def _error_priority(error: BaseException) -> int:
    """Return the order in which errors of concurrent pages explain a failed fetch: causes first, consequences last."""
    order = {_InconsistentPages: 1, SourceError: 2, Cancelled: 3}
    return order.get(type(error), 0)
