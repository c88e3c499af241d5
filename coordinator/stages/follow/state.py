"""What a follower leaves on disk beside its results: `follow.json`, so that a restart and `coordinator status` know of it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ingest.files import atomic_write

NAME = "follow.json"


class CycleSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How one cycle ended. The fields are the keys of the JSON line that `coordinator follow --json` prints."""

    at: str  # when it began, by the source's clock: YYYY-MM-DDTHH:MM, UTC
    daily: bool  # hours that operators may have revised were asked for
    shards: int  # verified
    rows: int
    requests: int
    series: int  # built
    failed: tuple[str, ...]  # one line for each shard that was not fetched, or why nothing was
    next: str  # when the next cycle is due, in the same form

    def __str__(self) -> str:
        """Return one line for a log."""
        what = "daily " if self.daily else "hourly"
        parts = [f"{self.shards} fetches", f"{self.rows:,} rows", f"{self.requests} requests", f"{self.series} series"]
        failed = f" · {len(self.failed)} FAILED: {self.failed[0]}" if self.failed else ""
        return f"{self.at}Z {what} {' · '.join(parts)}{failed} · next {self.next[11:]}Z"


class FollowState(msgspec.Struct, frozen=True):
    """The content of `follow.json`."""

    provisional: tuple[str, ...] = ()  # keys of fetches of single hours, which the day's fetch replaces
    last: CycleSummary | None = None
    next: str = ""


def read_state(data_dir: Path) -> FollowState:
    """Return the state on disk; an empty one where there is none, or a damaged one: fetches of single hours then stay."""
    try:
        return msgspec.json.decode((data_dir / NAME).read_bytes(), type=FollowState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return FollowState()


def write_state(data_dir: Path, state: FollowState) -> None:
    """Write the state; the disk's errors are raised as StorageError."""
    atomic_write(data_dir / NAME, msgspec.json.format(msgspec.json.encode(state), indent=1))
