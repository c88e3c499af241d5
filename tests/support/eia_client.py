"""Fixtures of the emulator's tests: one running emulator for tests that do not change its state, and a small EIA client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from ingest.emulator.process import Emulator

DATA = Path(__file__).parents[2].parent / "shared" / "data"


# A request for all respondents, such as a bulk file, makes each of them: 0.15 s of computation.
FEW = ("--respondents", "PACW,ERCO,MISO,CISO,BANC,IID,LDWP,TIDC,PACE,BPAT,PGE,NEVP,AVA,IPCO,SWPP,PJM,CAL,TEX")


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """Share one emulator of few respondents for the session."""
    with Emulator(*FEW) as running:
        yield running


@pytest.fixture
def recorded() -> Path:
    """Return the folder of recorded responses, or skip the test."""
    if not DATA.is_dir():
        pytest.skip("no recordings: ../shared/data is absent")
    return DATA


def query(
    respondent: str = "PACW",
    start: str = "2024-01-01T00",
    end: str = "2024-01-31T23",
    *,
    route: str = "region-data",
    sort: tuple[str, ...] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the parameters of a request for one respondent, sorted by a total order unless `sort` names another."""
    code = "fueltype" if route == "fuel-type-data" else "type"
    params: dict[str, Any] = {"frequency": "hourly", "data[0]": "value", "facets[respondent][]": respondent}
    params |= {"start": start, "end": end}
    for number, column in enumerate(("period", "respondent", code) if sort is None else sort):
        params |= {f"sort[{number}][column]": column, f"sort[{number}][direction]": "asc"}
    return params | more


def ask(emulator: Emulator, route: str = "region-data", **more: Any) -> requests.Response:
    """Request one page."""
    return requests.get(
        f"{emulator.url}/v2/electricity/rto/{route}/data/", params=query(route=route, **more), timeout=20
    )


def pages(emulator: Emulator, route: str = "region-data", length: int = 1000, **more: Any) -> tuple[list[dict], int]:
    """Return (rows of every page, total), paging by offset."""
    rows: list[dict] = []
    while True:
        body = ask(emulator, route, offset=len(rows), length=length, **more).json()["response"]
        rows += body["data"]
        if not body["data"] or len(rows) >= int(body["total"]):
            return rows, int(body["total"])
