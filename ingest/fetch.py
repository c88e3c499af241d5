"""Fetch one shard and prove it: every page asked for until it is whole, stored as received, merged into one piece.

A page that fails a check is asked again, up to `ATTEMPTS` times; a throttle is waited out without counting. Pages that
an earlier attempt stored are proved again and reused, never requested twice.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import requests

from ingest import store
from ingest.columns import Columns, digest, duplicate_owners, find_gaps, merge
from ingest.errors import (
    AuthenticationError,
    Cancelled,
    IngestError,
    SourceError,
    ThrottledError,
    UsageError,
    VerificationError,
)
from ingest.http import HttpResponse, MinInterval, get, pause_s
from ingest.models import FetchJob, FileEntry, Gap, PageEntry, ShardResult
from ingest.sources import Page, source

ATTEMPTS = 5  # answers to one page request that may fail a check
ROUNDS = 4  # times that pages may contradict each other before the shard is given up
BACKOFF_S = (0.2, 5.0)  # first and longest pause after a fault
THROTTLE_S = (0.5, 30.0)  # first and longest pause after a throttle that names none
THROTTLE_LIMIT_S = 600.0  # a page that is throttled for longer is given back to the scheduler
MIN_KEY = 8  # characters; EIA's keys have 40
KEY_ATTEMPTS = 3  # answers "wrong key" to a key that has never worked, before they are believed
_AGAIN = "`coordinator start --extract` asks again"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")  # an emulator keeps its own clock


class _InconsistentPages(Exception):
    """Whole pages that can't all be true: set `offsets` aside and ask again."""

    def __init__(self, kind: str, message: str, offsets: Iterable[int] = (), total: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.offsets = tuple(offsets)
        self.total = total  # pages that say another total are set aside too


@dataclass
class FetchContext:
    """What a worker lends to all its fetches."""

    data_dir: Path
    api_key: str | None  # from the worker's environment; None is fine for the emulator
    pool: ThreadPoolExecutor  # shared by all leases of the worker: one page each, from request to stored
    connections: threading.Semaphore  # requests at once; pages beyond it are proved and stored meanwhile
    session: requests.Session  # from `ingest.http.make_session`
    acquire_permit: Callable[[str], None]  # blocks until one request may be sent for a bucket; may raise Cancelled
    on_throttle: Callable[[str, str, float | None], None]  # (bucket, kind, retry_after): tell the budget's owner
    on_progress: Callable[[int, int], None]  # (rows verified, requests) increments
    cancelled: threading.Event


@dataclass(frozen=True)
class _VerifiedPage:
    page: Page
    proof: PageEntry
    path: Path


@dataclass(frozen=True)
class _Received:
    answer: HttpResponse
    content: bytes  # to store
    page: Page


def fetch_shard(job: FetchJob, context: FetchContext) -> ShardResult:
    """Fetch, verify and store one shard; returns its proof with every file durable.

    Raises Cancelled; AuthenticationError; UsageError when the source refuses the parameters; SourceError when its
    answers can't be used; StorageError when the disk refuses.
    """
    return _Fetch(job, context).run()


_floor = MinInterval()
_worked: set[tuple[str, str]] = set()  # (base URL, key) that has been accepted in this process; never leaves it


class _Fetch:
    """One shard's fetch. Methods marked (pool) run on the pool's threads, the rest on the lease's."""

    def __init__(self, job: FetchJob, context: FetchContext) -> None:
        self.job = job
        self.context = context
        self.source = source(job.shard.source)
        self.host = urlsplit(job.base_url).hostname or ""
        self.key = (context.api_key or "").strip()
        self.held: dict[int, _VerifiedPage] = {}
        self.reused: set[int] = set()
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.origin = store.read_origin(context.data_dir, job.shard)
        self.lock = threading.Lock()
        self.stopped = threading.Event()  # this fetch has failed: its other pages end at their next step

    # -- the shard -----------------------------------------------------------------------------------------------------

    def run(self) -> ShardResult:
        if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise AuthenticationError("the API key holds characters that no key has; set EIA_API_KEY to a valid key")
        if 0 < len(self.key) < MIN_KEY:  # cutting a short key out of a body would cut the data too
            raise AuthenticationError(
                f"the API key has {len(self.key)} characters, EIA's have 40; set EIA_API_KEY to a valid key"
            )
        self._reuse()
        for _ in range(ROUNDS):
            try:
                columns, gaps = self._prove()
                return self._conclude(columns, gaps)
            except _InconsistentPages as contradiction:
                last = contradiction
                self._set_aside(contradiction)
        raise SourceError(f"{self.job.shard.key}: {last}, {ROUNDS} times over; {_AGAIN}", last.kind)

    def _prove(self) -> tuple[Columns, tuple[Gap, ...]]:
        """Complete the pages and prove them together. _InconsistentPages when they disagree."""
        total = self._known_total()
        if total is None:
            self._complete(self.source.offsets(self.job, None), None)
            total = self._known_total()
        if self.source.paged:
            self._complete(self.source.offsets(self.job, total), total)
        columns, owner = merge([held.page.columns for held in self._ordered()])
        if owners := duplicate_owners(columns, owner):
            offsets = [self._ordered()[part].proof.offset for part in owners]
            raise _InconsistentPages("repeated", f"pages at {offsets} share an hour of one variable", offsets)
        if self.source.paged and len(columns) != total:
            raise _InconsistentPages("rows", f"{len(columns)} rows where the source says {total}", self.held)
        gaps = find_gaps(columns, self.source.spans(self.job, columns))
        if self.source.paged and gaps and total:
            # Rows beyond the end would mean that `total` is too low: the page there must come back empty.
            self._complete((total,), total)
        return columns, gaps

    def _known_total(self) -> int | None:
        if not self.source.paged:
            return None
        totals = {held.page.total for held in self.held.values()}
        if len(totals) > 1:
            raise _InconsistentPages("total", f"pages say different totals: {sorted(totals)}", self.held)
        return next(iter(totals), None)

    def _ordered(self) -> list[_VerifiedPage]:
        return [self.held[offset] for offset in sorted(self.held)]

    def _conclude(self, columns: Columns, gaps: tuple[Gap, ...]) -> ShardResult:
        shard, data_dir = self.job.shard, self.context.data_dir
        self._alive()
        piece = store.write_piece(data_dir, shard, columns)
        store.fsync_folders(data_dir, store.page_folder(data_dir, shard), data_dir / "pieces")
        pages = tuple(held.proof for held in self._ordered())
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
            digest=digest(columns),
            requests=self.requests,
            reused=len(self.reused),
            kept=self.job.respondents,
            faults=dict(sorted(self.faults.items())),
        )

    # -- pages of an earlier attempt -----------------------------------------------------------------------------------

    def _reuse(self) -> None:
        """Prove the pages under final names again and hold those that are whole; set the others aside."""
        offsets = self.source.offsets(self.job, None)
        for stored in store.scan_pages(self.context.data_dir, self.job.shard, self.source.suffix):
            self._alive()
            try:
                if stored.offset in self.held or not (self.source.paged or stored.offset in offsets):
                    raise SourceError("no page is due at this offset, or it is held already", "repeated")
                content = store.read_page(stored.path)
                page = self.source.parse(self.job, content)
                self._check(page, stored.offset)
            except (SourceError, VerificationError):
                store.set_aside(stored.path)
                self.faults["stale"] += 1
                continue
            proof = store.file_entry(self.context.data_dir, stored.path, content)
            fetched = datetime.fromtimestamp(stored.path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
            self._hold(stored.offset, page, proof, fetched, 0.0)
            self.reused.add(stored.offset)

    def _set_aside(self, why: _InconsistentPages) -> None:
        offsets = set(why.offsets)
        if why.total is not None:
            offsets |= {offset for offset, held in self.held.items() if held.page.total != why.total}
        for offset in offsets & self.held.keys():
            store.set_aside(self.held.pop(offset).path)
            self.reused.discard(offset)
        self.faults[why.kind] += 1

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _complete(self, offsets: Iterable[int], total: int | None) -> None:
        """Fetch those of `offsets` that are not held, side by side. Raises the gravest error after all have ended."""
        futures = [
            self.context.pool.submit(self._fetch_page, offset, total) for offset in offsets if offset not in self.held
        ]
        _, pending = wait(futures, return_when=FIRST_EXCEPTION)
        if pending:
            self.stopped.set()
            for future in pending:
                future.cancel()
            wait(futures)
            self.stopped.clear()
        if errors := [error for future in futures if (error := _error_of(future))]:
            self._alive()
            raise min(errors, key=_error_priority)

    def _fetch_page(self, offset: int, total: int | None) -> None:
        """(pool) Ask for one page until it is whole, then store and hold it. `total`: what the other pages say."""
        failures = 0
        other_total: int | None = None
        doubtful: _Received | None = None  # it has nulls, or is empty: believed when the source says so twice
        while True:
            try:
                received = self._receive(offset, doubtful)
                page = received.page
                if total is not None and page.total != total:
                    message = f"total was {total}, now {page.total}"
                    if page.total == other_total:
                        raise _InconsistentPages("total", message, total=page.total)
                    other_total = page.total
                    raise SourceError(message, "total")
                self._check(page, offset)
                if self.source.paged and (page.total == 0 or page.columns.nulls()):
                    before, doubtful = doubtful, received
                    if before is None:
                        continue
                    if not _confirms(page, before.page):
                        raise SourceError("nulls differ from one answer to the next", "nulls")
                    doubtful = before
                break
            except SourceError as error:
                failures += 1
                self._count(error.kind)
                if failures >= ATTEMPTS or error.kind == "throttle":
                    raise self._final(error, offset, failures) from error
                self._pause(pause_s(failures, *BACKOFF_S))
        if doubtful is not None and page.columns.nulls() < doubtful.page.columns.nulls():
            self._count("nulls")
        self._alive()
        proof = store.write_page(self.context.data_dir, self.job.shard, offset, received.content, self.source.suffix)
        self._hold(offset, page, proof, received.answer.fetched, received.answer.seconds)

    def _receive(self, offset: int, before: _Received | None) -> _Received:
        """(pool) The first answer that is not a throttle; those are reported and waited out, up to THROTTLE_LIMIT_S.

        A key that has worked is not wrong when it is refused: it is suspended. An answer that equals `before`'s byte for
        byte is not decoded again.
        """
        credential = (self.job.base_url, self.key)
        give_up = time.monotonic() + THROTTLE_LIMIT_S
        for attempt in count(1):
            answer = self._ask(offset)
            if before is not None and answer.status == 200 and answer.body == before.answer.body:
                return before
            try:
                content, page = self.source.receive(self.job, answer, self.key)
            except ThrottledError as error:
                throttle = error
            except AuthenticationError:
                if credential not in _worked and attempt >= KEY_ATTEMPTS:
                    raise
                throttle = ThrottledError(f"{answer.host} refuses the key for now", "403")
            else:
                _worked.add(credential)
                self._note_origin(answer.origin)
                return _Received(answer, content, page)
            self._count(throttle.kind)
            self.context.on_throttle(self.job.bucket, throttle.kind, throttle.retry_after)
            if time.monotonic() > give_up:
                raise SourceError(f"{throttle}, for {THROTTLE_LIMIT_S:.0f} s", "throttle")
            self._pause(throttle.retry_after or pause_s(attempt, *THROTTLE_S))
        raise AssertionError("unreachable")

    def _ask(self, offset: int) -> HttpResponse:
        """(pool) One request, on a free connection and within its budget."""
        with self.context.connections:
            return self._send(offset)

    def _send(self, offset: int) -> HttpResponse:
        self._alive()
        self.context.acquire_permit(self.job.bucket)
        if self.source.min_interval_s and self.host not in _LOOPBACK:
            self._pause(_floor.reserve(self.host, self.source.min_interval_s, time.monotonic()))
        self._alive()
        with self.lock:
            self.requests += 1
        self.context.on_progress(0, 1)
        headers = {"Accept-Encoding": self.source.accept_encoding}
        if self.source.sends_key and self.key:
            headers["X-Api-Key"] = self.key
        return get(
            self.context.session,
            self.job.base_url.rstrip("/") + self.source.request(self.job, offset),
            headers,
            deadline_s=self.source.deadline_s,
            alive=self._alive,
            pack=self.source.packs,
            follow=not self.source.sends_key,
        )

    def _check(self, page: Page, offset: int) -> None:
        due = self.source.expected_rows(offset, page.total)
        if due is not None and page.rows != due:
            message = f"{page.rows} rows where {due} of {page.total} were due"
            raise SourceError(message, "short" if page.rows < due else "total")

    def _note_origin(self, origin: str) -> None:
        """(pool) Pages of two origins never make one shard."""
        with self.lock:
            if origin == self.origin:
                return
            store.write_origin(self.context.data_dir, self.job.shard, origin)
            before, self.origin = self.origin, origin
            if self.held:
                raise _InconsistentPages("origin", f"pages come from {before} and from {origin}", list(self.held))

    def _hold(self, offset: int, page: Page, file: FileEntry, fetched: str, seconds: float) -> None:
        proof = PageEntry(
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
            self.held[offset] = _VerifiedPage(page, proof, self.context.data_dir / file.path)
        self.context.on_progress(page.rows, 0)

    def _final(self, error: SourceError, offset: int, failures: int) -> IngestError:
        message = f"{self.job.shard.key}, page at {offset}: {error} (asked {failures} times)"
        if error.kind == "refused":
            return UsageError(f"{message}. Check respondents, routes and period with `--dry-run`")
        return SourceError(f"{message}; {_AGAIN}", error.kind)

    def _count(self, kind: str) -> None:
        with self.lock:
            self.faults[kind] += 1

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _alive(self) -> None:
        if self.context.cancelled.is_set() or self.stopped.is_set():
            raise Cancelled(self.job.shard.key)

    def _pause(self, seconds: float) -> None:
        """Sleep, ended by a cancelled lease or a failed sister page."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.context.cancelled.wait(min(left, 0.1))
            self._alive()


def _error_of(future: Future[None]) -> BaseException | None:
    return None if future.cancelled() else future.exception()


def _confirms(page: Page, before: Page) -> bool:
    """Whether all that is null or empty in `page` was so in `before`: said twice, it is the source's own."""
    return page is before or (page.total == before.total and page.columns.null_keys() <= before.columns.null_keys())


def _error_priority(error: BaseException) -> int:
    """The order in which errors of sister pages explain a failed fetch: what only follows from another comes last."""
    order = {_InconsistentPages: 1, SourceError: 2, Cancelled: 3}
    return order.get(type(error), 0)
