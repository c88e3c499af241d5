"""Errors of ingest, drawn as a tree.

IngestError
├── UsageError            the request can't be right: unknown respondent, wrong period            (exit 2)
├── AuthenticationError   the server refuses the key, and it is not a throttle                     (exit 4)
├── ThrottledError             429, 403 suspension or HTML notice: wait, then ask again                 (never final)
├── SourceError           the source's answer can't be used (5xx, truncated, short, wrong total)   (retried, then quarantine)
├── StorageError          the disk refused: full, read-only                                        (exit 75, resumable)
└── VerificationError            what lies on disk is not what its manifest says
"""

from __future__ import annotations


class IngestError(Exception):
    """Base. The message names the subject, the cause and the next command; never a key.

    `exit_code`: of a program that ends by it.
    """

    exit_code = 1


class UsageError(IngestError):
    """The request can't be right."""

    exit_code = 2


class AuthenticationError(IngestError):
    """The server refuses the key, and it is not a throttle."""

    exit_code = 4


class ThrottledError(IngestError):
    """The server asked for a pause. `kind`: "429", "403", "html"; `retry_after`: seconds, when the server said so."""

    def __init__(self, message: str, kind: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class SourceError(IngestError):
    """`kind` counts it in `ShardResult.faults`: "5xx", "reset", "timeout", "json", "html", "short", "repeated", "total", "zip"…"""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class StorageError(IngestError):
    """The disk refused: full, read-only. The same command goes on once it is mended."""

    exit_code = 75


class VerificationError(IngestError):
    """What lies on disk is not what its manifest says."""


class Cancelled(Exception):
    """The lease was taken back; nothing more is written. No error of ingest, so it is outside the tree."""
