"""What the emulator counted, and its log. Keys appear only as fingerprints, never as they are."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from ingest.emulator.http.responses import Answer
from ingest.emulator.policy import Policy

_KEY = re.compile(r"(?:^|&)api_key=[^&]*")


@lru_cache(maxsize=256)
def fingerprint(key: str | None) -> str:
    """Eight hex digits of the key's sha256; "none" for no key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8] if key else "none"


class Stats:
    """Counts of requests and answers, and a log of them."""

    def __init__(self, log: Path | None) -> None:
        self._log: IO[bytes] | None = log.open("ab", buffering=0) if log else None
        self.routes: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.keys: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()  # page → requests for it
        self.served: Counter[str] = Counter()  # page → answers under 200 that no fault spoiled
        self.rows = 0
        self.bytes = 0

    def count(self, time: str, path: str, query: str, key: str, route: str, page: str, answer: Answer) -> None:
        """One answer. `page`: its name, "" for none; `key`: its fingerprint."""
        self.routes[route] += 1
        self.statuses[answer.status] += 1
        self.keys[key] += 1
        self.rows += answer.rows
        self.bytes += len(answer.body)
        if page:
            self.asked[page] += 1
        if answer.fault:
            self.faults[answer.fault] += 1
        elif page and answer.status == 200:
            self.served[page] += 1
        if self._log:
            line = {
                "time": time,
                "path": path,
                "query": _KEY.sub("", query).removeprefix("&"),
                "route": route,
                "page": page,
                "key": key,
                "status": answer.status,
                "rows": answer.rows,
                "bytes": len(answer.body),
                "fault": answer.fault,
            }
            self._log.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def report(self, policy: Policy) -> dict[str, Any]:
        """Counts since the start. `pages` and `served` are by page name; `keys` by fingerprint."""
        accounts = {key: asdict(account) for key, account in policy.accounts.items()}
        return {
            "requests": sum(self.routes.values()),
            "rows": self.rows,
            "bytes": self.bytes,
            "routes": dict(self.routes),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "faults": dict(self.faults),
            "keys": {
                key: {
                    "requests": count,
                    "suspensions": accounts.get(key, {}).get("suspensions", 0),
                    "while_suspended": accounts.get(key, {}).get("refused", 0),
                    "first": accounts.get(key, {}).get("first"),
                    "last": accounts.get(key, {}).get("last"),
                }
                for key, count in self.keys.items()
            },
            "suspensions": sum(account["suspensions"] for account in accounts.values()),
            "while_suspended": sum(account["refused"] for account in accounts.values()),
            "pages": dict(self.asked),
            "served": dict(self.served),
        }
