"""`coordinator start --hostfile` over ssh: workers on every host, the series of a local run, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.cluster.bed import Bed
from tests.cluster.fleet import Fleet
from tests.e2e.conftest import SMALL, command, environment, series_digest


def test_a_run_over_ssh_ends_with_the_series_of_a_local_one_and_leaves_no_process(bed: Bed, tmp_path: Path) -> None:
    local = subprocess.Popen(
        command("start", "--extract", "--data", tmp_path, *SMALL, "--quiet"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    fleet = Fleet(bed)
    slowly = ("--extract", *SMALL, "--rate", "4")
    fleet.start(*slowly)
    fleet.await_workers()
    keys = [path.read_text() for path in (fleet.home / ".ring-attention-energy" / "keys" / "workers").glob("*.key")]
    lines = [word for host in bed.hosts for process in host.processes() for word in process.cmdline()]
    assert len(keys) == 5 and not any(json.loads(key)["secret"] in word for key in keys for word in lines)
    fleet.kill()
    fleet.start(*slowly)
    fleet.await_workers()
    fleet.signal(signal.SIGINT)
    assert fleet.end()[0] == 130, fleet.narration()
    fleet.start("--extract", *SMALL)
    code, summary = fleet.end()
    assert (code, summary["status"], summary["proved"]) == (0, "done", 4), fleet.narration()
    assert local.wait(60) == 0
    assert series_digest(fleet.data) == series_digest(tmp_path)
    assert not any((host.home / "data" / "series").exists() for host in bed.hosts)


def test_what_keeps_a_host_from_being_used_is_told_for_all_at_once(bed: Bed, tmp_path: Path) -> None:
    fleet = Fleet(bed)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    bed.hosts[3].kill()
    pythons = f"host1=/no/python,host2={bare}/bin/python,{sys.executable}"
    fleet.start("--extract", *SMALL, "--host-python", pythons)
    code, _ = fleet.end()
    said = fleet.narration()
    assert code == 2 and "host0:" not in said
    for words in (
        "host1: no Python at /no/python",
        "host2: " + str(bare),
        "lacks the project",
        "host3: ",
        "ssh -o BatchMode",
    ):
        assert words in said, said
