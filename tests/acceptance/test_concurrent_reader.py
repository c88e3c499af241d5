"""Readers beside a real `--update`: each load is of the run before it or of that run, for every respondent alike."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ingest.emulator.process import Emulator
from ingest.loader import load_series
from tests.support.program import command, environment, run_here

CODES = ["CAL", "ERCO", "MISO", "PACW", "TEX"]
PERIOD = ("--start", "2026-05", "--end", "2026-06")


def load(folder: Path) -> bytes:
    series = load_series(folder / "data", CODES, ["D", "TI"], "2026-05-01", "2026-06-30")
    return np.nan_to_num(series.values, nan=-1.0).tobytes()


@pytest.mark.long
def test_loads_beside_an_update_are_of_one_run(tmp_path: Path) -> None:
    with Emulator("--now", "2026-06-20T06") as emulator:
        start = ("start", "--update", "--quiet", "--source", emulator.url, "--respondents", ",".join(CODES), *PERIOD)
        first = run_here(tmp_path, *start)
        assert first.code == 0, first.stderr
        seen = [load(tmp_path)]
        whole = pd.read_parquet(tmp_path / "data" / "dataset")
        emulator.advance(7 * 86400)
        with (tmp_path / "log").open("w") as log:
            writer = subprocess.Popen(command(*start), cwd=tmp_path, env=environment(), stdout=log, stderr=log)
            while writer.poll() is None:
                seen.append(load(tmp_path))
        assert writer.returncode == 0, (tmp_path / "log").read_text()
    after = load(tmp_path)
    assert after != seen[0]
    assert set(seen) <= {seen[0], after}
    assert len(seen) > 5
    updated = pd.read_parquet(tmp_path / "data" / "dataset")
    assert len(updated) == len(whole)
    assert (whole["vintage"].max(), updated["vintage"].max()) == (0, 1)
    assert run_here(tmp_path, "verify").code == 0
    assert "raw pages" not in run_here(tmp_path, "clean", "--dry-run").stdout  # the first fetch holds hours of May
