"""The soak test, shortened: leases at full rate while workers are killed; nothing is lost or committed twice, memory is flat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_workers_lose_no_lease_and_memory_is_flat(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench.soak", "--minutes", "1.5", "--kill-every", "5"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env, timeout=800)
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert (result["lost"], result["committed_twice"]) == (0, 0) and result["kills"] >= 3
    assert result["replay_is_the_live_state"]
