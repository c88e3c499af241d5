"""Errors of ingest, drawn as a tree.

IngestError
├── UsageError            invalid request: unknown respondent, wrong period                        (exit 2)
├── AuthenticationError   the server rejects the API key, and it is not a throttle                 (exit 4)
├── ThrottledError        429, 403 suspension, HTML notice, 5xx with Retry-After: wait, then retry  (never final)
├── SourceError           unusable response (5xx, truncated, short, wrong total)                   (retried, then quarantine; exit 75)
├── StorageError          the disk refuses: full, read-only                                        (exit 75, resumable)
└── VerificationError     a file on disk differs from its manifest
"""

import difflib
import shlex
from collections.abc import Iterable


class IngestError(Exception):
    """Base class. The message names the subject, the cause and the next command; never a key.

    Attributes:
        exit_code: exit code of a program that ends by this error.
    """

    exit_code = 1


class UsageError(IngestError):
    """The request is invalid."""

    exit_code = 2


class AuthenticationError(IngestError):
    """The server rejects the API key, and it is not a throttle."""

    exit_code = 4


class ThrottledError(IngestError):
    """The server asked for a pause.

    Attributes:
        kind: "429", "403", "html" or "5xx".
        retry_after: seconds to wait; None where the server names none.
    """

    def __init__(self, message: str, kind: str, retry_after: float | None = None) -> None:
        """Store the kind of throttle and the pause."""
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class SourceError(IngestError):
    """A response of the source can't be used, or it gives none.

    Attributes:
        kind: the fault, as `ShardResult.faults` counts it: "5xx", "reset", "timeout", "json", "html", "short", "repeated",
            "total", "zip"…; "outage": no usable response for too long.
    """

    exit_code = 75  # an outage ends a run in the same way before its first task and after

    def __init__(self, message: str, kind: str) -> None:
        """Store the kind of fault."""
        super().__init__(message)
        self.kind = kind


class StorageError(IngestError):
    """The disk refuses a write: full, read-only. After a fix, the same command resumes."""

    exit_code = 75


class VerificationError(IngestError):
    """A file on disk differs from its manifest."""


class Cancelled(Exception):
    """The lease was withdrawn; nothing more is written. Not an error of ingest, so it is outside the tree."""


def quoted(path: object) -> str:
    """Return a path as a shell takes it: for the command that a message advises."""
    return shlex.quote(str(path))


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """Return ` (did you mean A or B?)` with the near matches of `words` in either case; "" where there are none."""
    folded = {name.casefold(): name for name in known}
    near = [
        folded[match]
        for word in words
        for match in difflib.get_close_matches(word.casefold(), list(folded), n=3, cutoff=0.5)
    ]
    return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""
