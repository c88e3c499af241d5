"""A fault put into effect: on rows before they are rendered, on a finished answer, or in place of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ingest.emulator.eia.pages import Rows
from ingest.emulator.faults.plan import Fault
from ingest.emulator.http.responses import (
    BAD_GATEWAY,
    KEY_INVALID,
    NOT_FOUND,
    NOTICE,
    OVER_RATE_LIMIT,
    SUSPENDED,
    Answer,
    Delivery,
)

_INSTEAD = {
    "429": OVER_RATE_LIMIT,
    "403-suspend": SUSPENDED,
    "403-invalid": KEY_INVALID,
    "500-404": NOT_FOUND,
    "502": BAD_GATEWAY,
    "html": NOTICE,
}
ON_ROWS = ("short", "repeated", "nulls", "total", "case")


def instead(fault: Fault) -> Answer | None:
    """The answer that takes the place of the real one; None for other kinds."""
    answer = _INSTEAD.get(fault.kind)
    if answer and fault.params.get("retry_after") is not None:
        answer = replace(answer, headers=(("Retry-After", str(fault.params["retry_after"])),))
    return answer and replace(answer, fault=fault.kind)


def on_rows(fault: Fault, rows: Rows, total: int) -> tuple[Rows, int]:
    """(rows, total) as the faulty page has them."""
    rng = np.random.default_rng(fault.seed)
    if fault.kind == "total":
        return rows, max(total + fault.params.get("delta", 100), 0)
    if fault.kind == "short":
        gone = rng.choice(len(rows), min(fault.params.get("rows", 100), len(rows)), replace=False)
        return rows.take(np.setdiff1d(np.arange(len(rows)), gone)), total
    if fault.kind == "repeated":
        count = min(fault.params.get("rows", 50), len(rows) // 2)
        return rows.take(np.concatenate((np.arange(len(rows) - count), np.arange(count)))), total
    if fault.kind == "nulls":
        null = rows.null.copy()
        null[rng.choice(len(rows), min(fault.params.get("rows", 20), len(rows)), replace=False)] = True
        return replace(rows, null=null), total
    return rows, total


def cut_content(fault: Fault, body: bytes) -> bytes:
    """The plain body of a page whose content ends early although the answer is complete."""
    return body[: int(len(body) * fault.params.get("keep", 0.6))] if fault.kind == "truncated" else body


def delivery(fault: Fault) -> Delivery:
    """How the answer goes out."""
    params = fault.params
    if fault.kind == "reset":
        return Delivery(reset=True, keep=params.get("keep", 0.0))
    if fault.kind == "cut":
        return Delivery(keep=params.get("keep", 0.5))
    if fault.kind == "slow":
        return Delivery(delay=params.get("seconds", 2.0))
    if fault.kind == "dribble":
        return Delivery(over=params.get("seconds", 2.0))
    return Delivery()
