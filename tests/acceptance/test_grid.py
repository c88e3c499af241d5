"""The whole synthetic grid, every authority and region on four routes: complete, within memory, linear, and the same after kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.emulator.process import Emulator
from ingest.loader import available
from ingest.verify import verify
from scripts.bench.grid import GRID, digest, extraction, kills

LIMIT_MB = 600
ONE, FEW = ("--start", "2024", "--end", "2024"), ("--start", "2024-01", "--end", "2024-03")


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_year_of_the_whole_grid(tmp_path: Path) -> None:
    grid = (*GRID, *ONE)
    with Emulator("--quirks", "none", "--cache-mb", "1000") as emulator:
        whole = extraction(emulator.url, grid, tmp_path / "whole")  # renders the pages
        again = extraction(emulator.url, grid, tmp_path / "again")
        extraction(emulator.url, (*GRID, *FEW), tmp_path / "render")
        quarter = extraction(emulator.url, (*GRID, *FEW), tmp_path / "quarter")
        met = kills(emulator.url, grid, 4, again["wall_s"], tmp_path / "killed")
    assert whole["rows"] == again["rows"] > 8_000_000
    assert (
        len(list((tmp_path / "whole" / "series").iterdir())) == 80
    )  # neither OVEC, NSB, BHBA nor SWPW reports in 2024
    assert len(available(tmp_path / "whole", "PJM").variables) > 30
    for run in (whole, again, quarter):
        assert 0 < run["worker_mb"] < LIMIT_MB
        assert 0 < run["coordinator_mb"] < LIMIT_MB
    # A quarter has a fourth of the rows, and the same fixed cost: more than linear would be a rate that falls.
    assert again["rows"] / again["s"] > 0.5 * quarter["rows"] / quarter["s"]
    assert met >= 1
    assert digest(tmp_path / "killed") == digest(tmp_path / "again") == digest(tmp_path / "whole")
    assert verify(tmp_path / "killed").whole
