"""A run against a source that attacks on most respondents: named quarantines, bounded memory, the honest respondent complete."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest

from tests.support.hostile_server import OK, Hostility, endless, endless_chunks, hostile, length_10_gb
from tests.support.program import Coordinator
from tests.support.stub_server import Stub

PEAK_MB = 600


def reply(peer: Hostility, body: bytes, *, gzipped: bool = False, status: bytes = OK) -> None:
    encoding = b"Content-Encoding: gzip\r\n" if gzipped else b""
    head = status + encoding + b"X-Emulator-World: synthetic\r\nConnection: close\r\n"
    peer.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def bodies() -> dict[str, tuple[bytes, bool]]:
    """Return per respondent the body that it gets, and whether it is gzip."""

    def page(total: int, codes: int) -> bytes:
        rows: list[dict[str, Any]] = [
            {"period": "2024-03-01T00", "respondent": "PJM", "type": f"V{n}", "fueltype": f"V{n}", "value": "1"}
            for n in range(codes)
        ]
        return json.dumps({"response": {"total": total, "data": rows}}).encode()

    return {
        "PJM": (page(10**12, 5), False),
        "MISO": (page(5000, 5000).replace(b"PJM", b"MISO"), False),
        "NYIS": (b"[" * 2_000_000, False),
        "SWPP": (gzip.compress(b"\0" * (1 << 30), 9), True),
        "BPAT": (gzip.compress(b"") * 300_000, True),
        "TVA": (b"\x1b]0;title\x07\x1b[2J\r70 of 70 shards verified\x9b", False),
    }


@pytest.mark.long
def test_hostile_source_is_quarantined_by_name_within_memory(program: Coordinator) -> None:
    honest, packed = Stub(), bodies()
    floods = {"ERCO": endless, "CISO": length_10_gb, "ISNE": endless_chunks}

    def act(peer: Hostility) -> None:
        path = peer.request.split(b" ")[1].decode()
        name = re.search(r"respondent%5D%5B%5D=([A-Z]+)", path)
        code = name[1] if name else "PACW"
        if code in floods:
            floods[code](peer)
        elif code in packed:
            reply(peer, packed[code][0], gzipped=packed[code][1])
        else:
            reply(peer, honest.answer(path, None).body or b"")

    respondents = ("PACW", *floods, *packed)
    with hostile(act) as url:
        run = program(
            *("start", "--extract", "--json", "--source", url, "--retries", "1"),
            *("--respondents", ",".join(respondents), "--start", "2024-03", "--end", "2024-03"),
            timeout=400,
        )
    assert run.code == 75, run.stderr
    result = run.result
    assert result["proved"] == 2
    assert result["series"] == 1
    assert len(result["quarantined"]) == 2 * (len(respondents) - 1)
    assert {task.split("/")[2] for task, _, _ in result["quarantined"]} == set(respondents) - {"PACW"}
    assert {error for _, error, _ in result["quarantined"]} == {"SourceError"}
    assert all(message.isprintable() for _, _, message in result["quarantined"])
    assert result["peak_worker_mb"] < PEAK_MB
    print(result["peak_worker_mb"], result["seconds"])
