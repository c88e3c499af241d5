"""Fault injection: into rows before they are rendered, into a finished response, or in place of the response."""

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
    Delivery,
    Response,
)

_REPLACEMENTS = {
    "429": OVER_RATE_LIMIT,
    "403-suspend": SUSPENDED,
    "403-invalid": KEY_INVALID,
    "500-404": NOT_FOUND,
    "502": BAD_GATEWAY,
    "html": NOTICE,
}
ON_CONTENT = ("short", "repeated", "nulls", "total", "case", "truncated")  # kinds that change the content of a page


def replacement(fault: Fault) -> Response | None:
    """Return the response that takes the place of the real one; None for a kind of fault that keeps the real one."""
    response = _REPLACEMENTS.get(fault.kind)
    if response and fault.params.get("retry_after") is not None:
        response = replace(response, headers=(("Retry-After", str(fault.params["retry_after"])),))
    return response and replace(response, fault=fault.kind)


def alter_rows(fault: Fault, rows: Rows, total: int) -> tuple[Rows, int]:
    """Return (rows, total) of the faulty page."""
    rng = np.random.default_rng(fault.seed)
    limit = len(rows) // 2 if fault.kind == "repeated" else len(rows)
    count = min(fault.params.get("rows", {"short": 100, "repeated": 50}.get(fault.kind, 20)), limit)
    if fault.kind == "total":
        total = max(total + fault.params.get("delta", 100), 0)
    elif fault.kind == "short":
        gone = rng.choice(len(rows), count, replace=False)
        rows = rows.take(np.setdiff1d(np.arange(len(rows)), gone))
    elif fault.kind == "repeated":
        rows = rows.take(np.concatenate((np.arange(len(rows) - count), np.arange(count))))
    elif fault.kind == "nulls":
        null = rows.null.copy()
        null[rng.choice(len(rows), count, replace=False)] = True
        rows = replace(rows, null=null)
    return rows, total


def truncate(fault: Fault, body: bytes) -> bytes:
    """Return the plain body, cut short for the kind whose content ends early although the response is complete."""
    return body[: int(len(body) * fault.params.get("keep", 0.6))] if fault.kind == "truncated" else body


def delivery(fault: Fault) -> Delivery:
    """Return how the response is sent."""
    seconds = fault.params.get("seconds", 2.0)
    return {
        "reset": Delivery(reset=True, keep=fault.params.get("keep", 0.0)),
        "cut": Delivery(keep=fault.params.get("keep", 0.5)),
        "slow": Delivery(delay=seconds),
        "dribble": Delivery(over=seconds),
    }.get(fault.kind, Delivery())
