"""Files, digests, followed lines, back-off and the LRU cache, which all packages share."""

from __future__ import annotations

import os
from pathlib import Path

from ingest.backoff import backoff_s
from ingest.files import DigestCache, LineFollower, file_sha256
from ingest.lru_cache import LruCache


def test_line_follower_returns_whole_lines_and_restarts_on_new_file(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = LineFollower(path, max_line=8)
    assert lines.poll() == [] and not lines.replaced
    path.write_bytes(b"one\ntw")
    assert lines.poll() == [b"one"] and lines.replaced
    with path.open("ab") as file:
        file.write(b"o\n0123456789")
    assert lines.poll() == [b"two", b"0123456789"] and not lines.replaced
    (tmp_path / "new").write_bytes(b"first\n")
    (tmp_path / "new").replace(path)
    assert lines.poll() == [b"first"] and lines.replaced
    path.write_bytes(b"cut\n")  # the same file, shorter than what was read
    assert lines.poll() == [b"cut"] and lines.replaced


def test_digest_cache_reads_changed_files_again(tmp_path: Path) -> None:
    path, digests = tmp_path / "file", DigestCache()
    path.write_bytes(b"abc")
    assert digests.size_and_sha256(path) == (3, file_sha256(path))
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"abd")
    os.utime(path, ns=(stamp + 1_000_000, stamp + 1_000_000))
    assert digests.size_and_sha256(path) == (3, file_sha256(path))


def test_lru_cache_evicts_least_recently_used_beyond_its_cost() -> None:
    cache: LruCache[bytes] = LruCache(5, len)
    cache.put("a", b"xx")
    cache.put("b", b"xx")
    assert cache.get("a") == b"xx"
    cache.put("c", b"xx")
    assert cache.get("b") is None and cache.get("a") == b"xx"
    assert cache.put("huge", b"x" * 9) == cache.get("huge") and cache.get("a") is None


def test_backoff_doubles_up_to_its_cap() -> None:
    assert [backoff_s(n, 0.5, 3.0) for n in (0, 1, 2, 3, 4, 5_000)] == [0.5, 0.5, 1.0, 2.0, 3.0, 3.0]
