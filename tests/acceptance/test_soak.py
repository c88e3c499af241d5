"""The soak, shortened: leases at full rate while workers are killed; nothing is lost, nothing is committed twice, memory is flat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "soak.py"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_minute_of_leases_with_workers_killed_all_along(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK), "--minutes", "1.5", "--kill-every", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=800)
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert (result["lost"], result["committed_twice"]) == (0, 0) and result["kills"] >= 3
    assert result["replay_is_the_live_state"]
