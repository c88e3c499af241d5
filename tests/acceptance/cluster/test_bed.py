"""The cluster of namespaces itself: hosts are isolated, reach one another, fail as requested, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts.testbed.bed import PLACE, Bed, Host, missing, sweep
from tests.support.waiting import end_of, until

ROOT = Path(__file__).resolve().parents[3]
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1")


def reaches(host: Host, other: Host) -> bool:
    """Return whether its sshd greets within half a second, in one of two attempts."""
    greets = f"read -n 4 < /dev/tcp/{other.address}/22"
    return host.run("timeout", "0.5", "bash", "-c", greets).returncode == 0


def test_hosts_are_isolated_and_faults_take_effect(bed: Bed) -> None:
    one, two = bed.hosts[:2]
    said = one.run(*SSH, two.name, "hostname; pwd; touch here; ps ax | wc -l").stdout.split()
    assert said[:2] == ["host1", str(two.home)]
    assert int(said[2]) < 10, "it sees processes of others"
    assert (two.home / "here").exists() and not (one.home / "here").exists()
    for break_it in (two.cut, lambda: two.lose("to"), lambda: two.lose("from"), two.freeze):
        break_it()
        assert not reaches(one, two)
        two.thaw()
        two.repair_link()
        until(lambda: reaches(one, two), "the link to be restored")
    sleeper = two.popen("sleep", "600")
    until(lambda: any("sleep" in process.name() for process in two.processes()), "a process")
    two.kill()
    end_of(sleeper, "the end of a process of a killed host")
    assert sleeper.returncode and not reaches(one, two)
    two.boot()
    bed.await_ssh(two)
    assert reaches(one, two) and (two.home / "here").exists()


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_bed_of_killed_owner_is_swept() -> None:
    script = "from scripts.testbed.bed import Bed; b = Bed(2).up(); print(b.slot, *(h.init for h in b.hosts), flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert owner.stdout is not None and owner.stdin is not None
    slot, *inits = map(int, owner.stdout.readline().split())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdin.close()
    assert all(psutil.pid_exists(pid) for pid in inits)
    assert slot in sweep()
    assert not any(psutil.pid_exists(pid) for pid in inits) and not (PLACE / str(slot)).exists()
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert f"ringbed{slot}" not in links


def test_testbed_command_line(tmp_path: Path) -> None:
    """`python -m scripts.testbed` is the same cluster; its usage error shows the usage."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.testbed", "exec", "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "scripts.testbed up 4" in done.stderr
