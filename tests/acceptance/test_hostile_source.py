"""A run against a source that attacks on most respondents: named quarantines, bounded memory, the honest respondent complete."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from tests.support.hostile_server import OK, SLOW, Hostility, endless, endless_chunks, hostile, length_10_gb
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


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Sample the resident memory of each process below this one every 50 ms; yield the highest value of each, in MB."""
    peaks: dict[str, float] = {}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    name = f"{process.pid} {' '.join(process.cmdline()[1:4])}"
                    peaks[name] = max(peaks.get(name, 0.0), process.memory_info().rss / 1e6)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def run_beside_an_honest_respondent(
    program: Coordinator, attacks: dict[str, Callable[[Hostility], None]], timeout: float
) -> dict[str, Any]:
    """Extract a month of one honest respondent and of those that attack; return the result of a run that ended as it should."""
    honest = Stub()

    def act(peer: Hostility) -> None:
        path = peer.request.split(b" ")[1].decode()
        name = re.search(r"respondent%5D%5B%5D=([A-Z]+)", path)
        code = name[1] if name else "PACW"
        if code in attacks:
            attacks[code](peer)
        else:
            reply(peer, honest.answer(path, None).body or b"")

    respondents: Sequence[str] = ("PACW", *attacks)
    with hostile(act) as url, peak_memory() as peaks:
        run = program(
            *("start", "--extract", "--json", "--source", url, "--retries", "1"),
            *("--respondents", ",".join(respondents), "--start", "2024-03", "--end", "2024-03"),
            timeout=timeout,
        )
    assert run.code == 75, run.stderr
    result = run.result
    assert result["proved"] == 2
    assert result["series"] == 1
    assert len(result["quarantined"]) == 2 * len(attacks)
    assert {task.split("/")[2] for task, _, _ in result["quarantined"]} == set(attacks)
    assert {error for _, error, _ in result["quarantined"]} == {"SourceError"}
    assert all(message.isprintable() for _, _, message in result["quarantined"])
    assert len(peaks) > 2, "the coordinator and its workers"
    assert max(peaks.values()) < PEAK_MB, peaks
    print(f"{max(peaks.values()):.0f} MB at most, {result['seconds']:.0f} s")
    return result


@pytest.mark.long
def test_hostile_source_is_quarantined_by_name_within_memory(program: Coordinator) -> None:
    def answer(body: bytes, gzipped: bool) -> Callable[[Hostility], None]:
        return lambda peer: reply(peer, body, gzipped=gzipped)

    floods = {"ERCO": endless, "CISO": length_10_gb, "ISNE": endless_chunks}
    packed = {code: answer(*content) for code, content in bodies().items()}
    run_beside_an_honest_respondent(program, floods | packed, 400)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_slow_source_is_quarantined_by_name_within_its_deadlines(program: Coordinator) -> None:
    """Each kind ends an attempt by the deadline of a response or the limit of an outage, 120 s; none holds up the others."""
    codes = ("ERCO", "CISO", "ISNE", "PJM", "MISO", "NYIS")
    result = run_beside_an_honest_respondent(program, dict(zip(codes, SLOW, strict=True)), 3000)
    causes = [message for _, _, message in result["quarantined"]]
    print(*causes, sep="\n")
    ends = ("over 120 s", "in time", "more than 100 headers")  # headers trickle faster than the deadline comes
    assert not [cause for cause in causes if not any(end in cause for end in ends)]
