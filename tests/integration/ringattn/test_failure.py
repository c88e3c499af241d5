"""A rank is killed, stopped or never started: every other rank raises a typed error within its deadline and does not hang."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringattn import launch, schedule

SCRIPT = str(Path(__file__).parents[2] / "support" / "ranks" / "fail.py")
DEADLINE = 4.0  # seconds that a rank may wait for a neighbour
SLACK = 30.0  # seconds for Python to start and end on a busy machine
PYTHON = [sys.executable, SCRIPT]


def run(n: int, victim: int, how: str, phase: str, hop: int, folder: Path, *, started: bool = True) -> dict[int, dict]:
    """Return the report of every rank but the victim. The test ends the victim; the others must end by themselves."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in launch.free_ports(n)]))
    # Slow imports on a busy machine are not a failure of the ring.
    join = SLACK if started else DEADLINE
    arguments = [str(victim), how, phase, str(hop), str(DEADLINE), str(join)]
    processes = {
        rank: subprocess.Popen(
            [*PYTHON, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | launch.rank_environment(rank, n, hosts),
        )
        for rank in range(n)
        if started or rank != victim
    }
    try:
        # Distant ranks notice only after nearer ones: at worst a deadline each.
        limit = time.monotonic() + n * DEADLINE + SLACK
        seen = {}
        for rank, process in processes.items():
            if rank != victim:
                out, err = process.communicate(timeout=max(0.1, limit - time.monotonic()))
                assert process.returncode == 0, err
                seen[rank] = json.loads(out.splitlines()[-1])
        return seen
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def check(seen: dict[int, dict], n: int) -> None:
    assert len(seen) == n - 1
    for rank, report in seen.items():
        assert report["error"] in ("PeerLost", "PeerStalled"), (rank, report)
        assert report["again"] == report["error"]  # the group stays unusable, at once
        assert report["seconds"] < n * DEADLINE + SLACK


def hops(n: int) -> list[tuple[str, int]]:
    """Every (phase, hop) at which all ranks of a causal zigzag ring use the links."""
    needs = ((True,) * n,) * n
    rows = {"forward": schedule.forward(needs)[0], "backward": schedule.backward(needs)[0]}
    return [(phase, i) for phase, row in rows.items() for i, hop in enumerate(row) if hop.kv or hop.grad]


@pytest.mark.parametrize(
    ("n", "how"), [(2, "kill"), (2, "stop"), (3, "kill"), pytest.param(4, "stop", marks=pytest.mark.long)]
)
def test_peers_fail_if_a_rank_fails_at_a_random_hop(n: int, how: str, tmp_path: Path) -> None:
    phase, hop = random.choice(hops(n))
    seen = run(n, random.randrange(n), how, phase, hop, tmp_path)
    check(seen, n)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_peers_fail_if_a_rank_fails_at_any_hop(tmp_path: Path) -> None:
    for n in (2, 3, 4):
        for phase, hop in hops(n):
            for how in ("kill", "stop"):
                check(run(n, hop % n, how, phase, hop, tmp_path), n)


@pytest.mark.parametrize("victim", [0, 2])
def test_peers_fail_if_a_rank_never_starts(victim: int, tmp_path: Path) -> None:
    seen = run(3, victim, "kill", "forward", 0, tmp_path, started=False)
    assert len(seen) == 2
    assert all(
        report["error"] in ("PeerStalled", "PeerLost") and report["doing"] == "joining the ring"
        for report in seen.values()
    )
    assert "PeerStalled" in {report["error"] for report in seen.values()}
