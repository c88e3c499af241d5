"""Generation over the ring, on real ranks: the tokens and log-probabilities of plain mlx-lm, even shares, and lost ranks."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (extra lm)")

from ringattn import launch
from tests.support.language_models import FAMILIES

RANKS = Path(__file__).parents[2] / "support" / "ranks"
LOGPROBS = 1e-4
DEADLINE = 4.0  # seconds, of the ranks' timeout
SLACK = 30.0  # seconds for Python to start and end on a busy machine


def case(family: str, prompt: int, chunk: int, temp: float, tokens: int = 10) -> dict:
    return {"family": family, "prompt": prompt, "chunk": chunk, "temp": temp, "tokens": tokens}


def compare(n: int, cases: list[dict], folder: Path) -> None:
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    reports = [json.loads(lines[-1]) for lines in launch.run(n, [str(RANKS / "generate.py"), str(path)], timeout=500)]
    for i, of_case in enumerate(cases):
        for rank, report in enumerate(reports):
            found = report[i]
            where = (n, rank, of_case, found)
            assert found["tokens"] == found["wanted"] == reports[0][i]["tokens"], where
            assert found["error"] <= LOGPROBS, where
            assert found["seen"] == of_case["prompt"] + of_case["tokens"], where
            # A token more or less is what remains of 2% with so few.
            assert max(found["held"]) - min(found["held"]) <= 1, where
            assert set(found["rows"]) <= {found["held"][rank]}, where  # of layers without a window


def test_two_ranks_generate_what_one_process_does(tmp_path: Path) -> None:
    cases = [case("llama", 61, 16, 0.0), case("llama sliding", 61, 13, 1.0), case("llama", 30, 3, 1.0)]
    compare(2, cases, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_generation_of_every_family(n: int, tmp_path: Path) -> None:
    temps = itertools.cycle([0.0, 1.0])
    cases = [case(family, 61, chunk, next(temps), tokens=8) for family in FAMILIES for chunk in (17, 2048)]
    # Every small chunk; long prompts, of which sliding layers drop pages; a prompt of one token.
    cases += [case("llama", 40, chunk, next(temps), tokens=6) for chunk in range(1, 20)]
    cases += [case("llama sliding", 2500, 301, temp) for temp in (0.0, 1.0)] + [case("llama", 1, 8, 1.0)]
    compare(n, cases, tmp_path)


def lose(n: int, victim: int, how: str, doing: str, times: int, folder: Path) -> dict[int, dict]:
    """Return the report of every rank but the victim. The test ends a stopped victim; the others must end by themselves."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in launch.free_ports(n)]))
    command = [sys.executable, str(RANKS / "generate_fail.py"), str(victim), how, doing, str(times)]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | launch.rank_environment(r, n, hosts)
        )
        for r in range(n)
    ]
    try:
        limit = time.monotonic() + n * DEADLINE + 2 * SLACK
        seen = {}
        for rank, process in enumerate(processes):
            if rank != victim:
                out, _ = process.communicate(timeout=max(0.1, limit - time.monotonic()))
                seen[rank] = json.loads(out.splitlines()[-1])
        return seen
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def check_lost(seen: dict[int, dict], n: int, doing: str) -> None:
    assert len(seen) == n - 1
    for report in seen.values():
        assert report["error"] in ("PeerLost", "PeerStalled"), report
        assert report["seconds"] < n * DEADLINE + SLACK, report
        assert (report["tokens"] > 0) == (doing == "decode attention"), report


def test_a_rank_killed_while_it_generates_is_an_error_on_the_others(tmp_path: Path) -> None:
    check_lost(lose(2, 1, "kill", "decode attention", 20, tmp_path), 2, "decode attention")


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize(
    ("doing", "times"), [("prefill hop 1", 4), ("agreeing on a pass", 1), ("decode attention", 20)]
)
def test_a_rank_lost_at_any_time_is_an_error_on_the_others(
    n: int, how: str, doing: str, times: int, tmp_path: Path
) -> None:
    for victim in range(n):
        check_lost(lose(n, victim, how, doing, times, tmp_path), n, doing)
