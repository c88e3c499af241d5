"""Fault plans: each kind as a client sees it, how often it repeats, and its independence of the request order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from ingest.emulator.faults.plan import FaultPlan, Target, parse_plan
from ingest.emulator.process import Emulator, EmulatorError
from tests.support.eia_client import ask, query

MONTH: dict[str, Any] = {"respondent": "ERCO", "start": "2022-03-01T00", "end": "2022-03-31T23"}


@pytest.fixture(scope="module")
def faulty() -> Iterator[Emulator]:
    with Emulator("--clock-scale", "20", "--quirks", "none") as running:
        yield running


def clean(emulator: Emulator) -> dict[str, Any]:
    emulator.set_faults([])
    return ask(emulator, **MONTH).json()["response"]


def inject(emulator: Emulator, kind: str, **params: Any) -> None:
    emulator.set_faults([{"kind": kind, "params": params}])


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("429", 429, "OVER_RATE_LIMIT"),
        ("403-suspend", 403, "over limit"),
        ("403-invalid", 403, "API_KEY_INVALID"),
        ("500-404", 500, '"code":404'),
        ("502", 502, "Bad Gateway"),
        ("html", 200, "<html>"),
    ],
)
def test_replacement_fault_applies_once(faulty: Emulator, kind: str, status: int, text: str) -> None:
    expected = clean(faulty)
    inject(faulty, kind)
    first, second = ask(faulty, **MONTH), ask(faulty, **MONTH)
    assert first.status_code == status
    assert text in first.text
    assert second.json()["response"] == expected
    assert faulty.requests()[-2]["fault"] == kind


def test_retry_after_of_the_plan_is_sent(faulty: Emulator) -> None:
    inject(faulty, "429", retry_after=7)
    assert ask(faulty, **MONTH).headers["Retry-After"] == "7"


def test_suspension_refuses_the_key_until_it_ends(faulty: Emulator) -> None:
    inject(faulty, "403-suspend", seconds=3600)
    assert ask(faulty, **MONTH).status_code == 403
    assert ask(faulty, **MONTH | {"respondent": "MISO"}).status_code == 403  # another page, which no rule has hit yet
    faulty.set_faults([])
    assert ask(faulty, **MONTH).status_code == 403
    faulty.advance(3600)
    assert ask(faulty, **MONTH).status_code == 200


def test_dropped_repeated_and_null_rows_keep_the_total(faulty: Emulator) -> None:
    whole = clean(faulty)
    faults = {}
    for kind in ("short", "repeated", "nulls"):
        inject(faulty, kind, rows=30)
        faults[kind] = ask(faulty, **MONTH).json()["response"]
        assert faults[kind]["total"] == whole["total"]
    rows = {kind: [json.dumps(row) for row in body["data"]] for kind, body in {**faults, "whole": whole}.items()}
    assert len(rows["short"]) == len(rows["whole"]) - 30
    assert set(rows["short"]) < set(rows["whole"])
    assert len(rows["repeated"]) == len(rows["whole"])
    assert len(set(rows["repeated"])) == len(rows["whole"]) - 30
    assert sum(row["value"] is None for row in faults["nulls"]["data"]) == 30


@pytest.mark.parametrize("delta", [-500, 77])
def test_wrong_total_keeps_the_rows(faulty: Emulator, delta: int) -> None:
    whole = clean(faulty)
    inject(faulty, "total", delta=delta)
    body = ask(faulty, **MONTH).json()["response"]
    assert int(body["total"]) == int(whole["total"]) + delta
    assert body["data"] == whole["data"]


def test_case_fault_changes_names_and_codes_only(faulty: Emulator) -> None:
    whole = clean(faulty)
    inject(faulty, "case")
    rows = ask(faulty, **MONTH).json()["response"]["data"]
    assert {row["respondent"] for row in rows} == {"erco"}
    assert {row["type"] for row in rows} == {"d", "df", "ng", "ti"}
    assert [row["value"] for row in rows] == [row["value"] for row in whole["data"]]


def test_truncated_json_in_a_complete_response(faulty: Emulator) -> None:
    inject(faulty, "truncated")
    response = ask(faulty, **MONTH)
    assert response.status_code == 200
    with pytest.raises(ValueError):
        response.json()


@pytest.mark.parametrize(("kind", "params"), [("reset", {}), ("reset", {"keep": 0.5}), ("cut", {})])
def test_reset_and_cut_break_the_connection_once(faulty: Emulator, kind: str, params: dict[str, Any]) -> None:
    inject(faulty, kind, **params)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        ask(faulty, **MONTH)
    assert ask(faulty, **MONTH).status_code == 200


@pytest.mark.parametrize("kind", ["slow", "dribble"])
def test_slow_response_is_complete_and_exceeds_a_short_timeout(faulty: Emulator, kind: str) -> None:
    whole = clean(faulty)
    inject(faulty, kind, seconds=0.4)
    assert ask(faulty, **MONTH).json()["response"] == whole
    faulty.set_faults([{"kind": "slow", "params": {"seconds": 30}}])
    with pytest.raises(requests.Timeout):
        requests.get(f"{faulty.url}/v2/electricity/rto/region-data/data/", params=query(**MONTH), timeout=0.3)


def test_rule_matches_route_respondent_start_offset_and_nth(faulty: Emulator) -> None:
    match: dict[str, Any] = {
        "route": "region-data",
        "respondent": "ERCO",
        "start": "2022-03-01T00",
        "offset": 1000,
        "nth": [2],
    }
    faulty.set_faults([{"kind": "502", "match": match}])
    hit = MONTH | {"offset": 1000}
    assert [ask(faulty, **hit).status_code for _ in range(3)] == [200, 502, 200]
    assert ask(faulty, "fuel-type-data", **hit).status_code == 200
    assert [ask(faulty, **MONTH).status_code for _ in range(2)] == [200, 200]


def test_concurrency_does_not_change_which_page_gets_a_fault(faulty: Emulator) -> None:
    plan: list[dict[str, Any]] = [
        {"kind": "502", "match": {"probability": 0.3}, "times": 2},
        {"kind": "429", "match": {"probability": 0.3}},
    ]
    months = [f"2023-{month:02d}" for month in range(1, 13)] * 4

    def statuses(workers: int, order: int) -> list[tuple[str, int]]:
        faulty.set_faults(plan)

        def month(text: str) -> tuple[str, int]:
            return text, ask(faulty, start=f"{text}-01T00", end=f"{text}-20T23").status_code

        with ThreadPoolExecutor(workers) as pool:
            return sorted(pool.map(month, months[::order]))

    alone = statuses(1, 1)
    assert {status for _, status in alone} == {200, 429, 502}
    assert statuses(8, -1) == alone


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=60),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_page_gets_the_same_faults_in_any_interleaving(asks: list[tuple[int, int]], seed: int, times: int) -> None:
    rules = parse_plan([{"kind": "short", "match": {"probability": 0.5}, "times": times}, {"kind": "502", "times": 1}])

    def met(order: list[tuple[int, int]]) -> dict[Target, list[str | None]]:
        plan = FaultPlan(rules, seed)
        result: dict[Target, list[str | None]] = {}
        for month, offset in order:
            target = Target("region-data", "PACW", f"2024-0{month}", "", offset)
            fault = plan.next(target)
            result.setdefault(target, []).append(fault.kind if fault else None)
        return result

    assert met(asks) == met(sorted(asks))


@pytest.mark.parametrize("plan", [{"kind": "429"}, [{"kind": "fire"}], [{"kind": "429", "match": {"who": "PACW"}}]])
def test_malformed_plan_is_refused(faulty: Emulator, plan: Any) -> None:
    with pytest.raises(EmulatorError, match=r"rule 0|list of rules"):
        faulty._control("faults", plan)


def test_command_line_refuses_a_malformed_plan() -> None:
    command = [sys.executable, "-m", "ingest.emulator", "--faults", "-"]
    done = subprocess.run(command, input='[{"kind": "fire"}]', capture_output=True, text=True)
    assert done.returncode == 2
    assert "rule 0" in done.stderr
