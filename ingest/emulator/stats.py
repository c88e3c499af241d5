"""Counts and log of the emulator's requests. Keys appear only as fingerprints, never in clear."""

import hashlib
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from ingest.emulator.http.responses import Response
from ingest.emulator.policy import Account, Policy

_KEY = re.compile(r"(?:^|&)api_key=[^&]*")


@lru_cache(maxsize=256)
def fingerprint(key: str | None) -> str:
    """Return eight hex digits of the key's sha256; "none" for no key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8] if key else "none"


class Stats:
    """Count requests and responses, and log them."""

    def __init__(self, log: Path | None) -> None:
        """Start at zero; append to `log`, JSON lines, where there is one."""
        self._log = log.open("ab", buffering=0) if log else None
        self._rows = self._bytes = 0
        # `pages` counts the requests for each page, `served` its responses under 200 without a fault.
        self._counts: dict[str, Counter[Any]] = {
            name: Counter() for name in ("routes", "statuses", "faults", "keys", "pages", "served")
        }

    def count(self, time: str, path: str, query: str, key: str, route: str, page: str, response: Response) -> None:
        """Count one response. `page` is the page's name, "" for none; `key` is the key's fingerprint."""
        self._rows += response.rows
        self._bytes += len(response.body)
        served = page if response.status == 200 and not response.fault else ""
        values = (route, response.status, response.fault, key, page, served)
        for counter, value in zip(self._counts.values(), values, strict=True):
            if value:
                counter[value] += 1
        if self._log:
            line = {
                "time": time,
                "path": path,
                "query": _KEY.sub("", query).removeprefix("&"),
                "route": route,
                "page": page,
                "key": key,
                "status": response.status,
                "rows": response.rows,
                "bytes": len(response.body),
                "fault": response.fault,
            }
            self._log.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def report(self, policy: Policy) -> dict[str, Any]:
        """Return the counts since the start: `pages` and `served` by page name, `keys` by fingerprint."""
        accounts = {key: policy.accounts.get(key, Account()) for key in self._counts["keys"]}
        return {
            "requests": self._counts["routes"].total(),
            "rows": self._rows,
            "bytes": self._bytes,
            **{name: self._counts[name] for name in ("routes", "statuses", "faults")},
            "keys": {
                key: {
                    "requests": self._counts["keys"][key],
                    "suspensions": account.suspensions,
                    "while_suspended": account.refused,
                    "first": account.first,
                    "last": account.last,
                }
                for key, account in accounts.items()
            },
            "suspensions": sum(account.suspensions for account in policy.accounts.values()),
            "while_suspended": sum(account.refused for account in policy.accounts.values()),
            **{name: self._counts[name] for name in ("pages", "served")},
        }
