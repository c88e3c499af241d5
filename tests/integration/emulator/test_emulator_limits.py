"""Rate limits: the token bucket and the suspension as a state machine, and over HTTP on a scaled clock."""

from __future__ import annotations

import json

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from ingest.emulator.clock import Clock
from ingest.emulator.policy import FORMS, Limits, Policy
from ingest.emulator.process import Emulator
from tests.support.eia_client import ask, query
from tests.support.waiting import WAIT_S

gaps = st.lists(st.floats(0, 3), min_size=1, max_size=60)


@given(gaps, st.integers(0, 3))
def test_admitted_requests_stay_under_rate_and_burst(steps: list[float], seed: int) -> None:
    limits = Limits(rate=2.5, burst=5, suspend=20)
    policy, now, admitted = Policy(limits, seed), 0.0, []
    for step in steps:
        now += step
        if policy.admit("key", now) is None:
            admitted.append(now)
    for i, start in enumerate(admitted):
        ends_by = [end for end in admitted[i:] if policy.accounts["key"].suspensions == 0]
        for count, end in enumerate(ends_by, 1):
            assert count <= limits.burst + limits.rate * (end - start) + 1e-6


@given(st.floats(0.4, 2.0), st.integers(1, 300))
def test_client_within_the_rate_is_never_suspended(gap: float, count: int) -> None:
    policy = Policy(Limits(rate=2.5, burst=5), 0)
    assert all(policy.admit("key", i * gap) is None for i in range(count))


@given(st.integers(0, 50))
def test_suspension_lasts_as_drawn_and_concerns_one_key(seed: int) -> None:
    policy, form = Policy(Limits(rate=2.5, burst=5, suspend=20), seed), None
    asked = 0
    while form is None:
        form = policy.admit("greedy", 0.0)
        asked += 1
    assert (asked, form) == (6, FORMS[0])
    until = policy.accounts["greedy"].until
    assert 10 <= until <= 40
    assert policy.admit("greedy", until - 0.1) == form
    assert policy.admit("modest", 1.0) is None
    assert policy.admit("greedy", until) is None
    assert (policy.accounts["greedy"].suspensions, policy.accounts["greedy"].refused) == (1, 2)


def test_clock_scales_and_only_goes_forward() -> None:
    real = [100.0]
    clock = Clock(0, scale=60, real=lambda: real[0])
    real[0] += 2
    assert clock.now() == 120
    clock.advance(3600)
    assert clock.now() == 3720
    assert clock.hour() == 1
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_each_http_suspension_uses_another_form_and_ends() -> None:
    # The emulated clock runs at a thousandth of real time, so that no bucket fills during the test.
    with Emulator("--policy", "eia", "--clock-scale", "0.001") as emulator:
        url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
        forms = []
        for _ in range(3):
            responses = [requests.get(url, params=query(api_key="greedy"), timeout=WAIT_S) for _ in range(8)]
            assert [response.status_code for response in responses[:5]] == [200] * 5
            assert {response.status_code for response in responses[5:]} <= {403, 429}
            assert len({response.content for response in responses[5:]}) == 1
            forms.append((responses[5].status_code, responses[5].headers["Content-Type"]))
            assert requests.get(url, params=query(api_key="modest"), timeout=WAIT_S).status_code == 200
            emulator.advance(60)
        assert forms == [(403, "application/json"), (429, "application/json"), (403, "text/html")]
        stats = emulator.stats()
        assert (stats["suspensions"], stats["while_suspended"]) == (3, 9)
        assert sorted(key["suspensions"] for key in stats["keys"].values()) == [0, 3]
        assert "greedy" not in json.dumps(stats)


def test_scaled_clock_scales_the_rate_limit() -> None:
    with Emulator("--policy", "eia", "--clock-scale", "100000") as emulator:
        assert [ask(emulator, offset=i).status_code for i in range(40)] == [200] * 40
        assert emulator.stats()["suspensions"] == 0


def test_oasis_requires_five_seconds_between_requests() -> None:
    with Emulator("--policy", "eia", "--clock-scale", "0.001") as emulator:
        url = f"{emulator.url}/oasisapi/SingleZip?queryname=SLD_FCST&resultformat=6&version=1&market_run_id=DAM"
        url += "&startdatetime=20240101T08:00-0000&enddatetime=20240102T08:00-0000"
        first, second = requests.get(url, timeout=WAIT_S), requests.get(url, timeout=20)
        assert (first.status_code, second.status_code) == (200, 429)
        assert "Please retry your request after 5 seconds" in second.text
        emulator.advance(5)
        assert requests.get(url, timeout=WAIT_S).status_code == 200
