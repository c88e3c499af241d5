"""`coordinator start --hostfile` over ssh: workers on every host, the series of a local run, and nothing left behind."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.testbed.bed import Bed
from tests.support.cluster_fleet import Fleet
from tests.support.program import PLAN, SMALL, command, environment, series_digest
from tests.support.training_data import SMALL as SMALL_MODEL
from tests.support.training_data import TRAIN, make
from tests.support.waiting import end_of, footprint, until

OTHER_KERNEL = (
    "Nehalem" if platform.machine() == "x86_64" else "ARMV8"
)  # every CPU of the kind runs it, none chooses it


def local_series(folder: Path) -> dict[str, str]:
    """Those of the same plan, made on this machine alone."""
    start = command("start", "--extract", "--data", folder, *PLAN, "--quiet")
    subprocess.run(start, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return series_digest(folder)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_run_leaves_no_process_and_resumes(bed: Bed, tmp_path: Path) -> None:
    fleet = Fleet(bed)
    stages = ("--extract", "--train", "--ranks", "2", *PLAN)
    toml = fleet.training(steps=4, validate_every=4)
    fleet.start(*stages, "--train-config", toml, "--rate", "4")
    fleet.await_workers()
    first = fleet.workers()["host0"][0]  # whose host bears the name of the coordinator's own workers' host
    first.kill()
    fleet.until(lambda: "host0: its worker ended" in fleet.log_text(), "the end of a worker to be noticed")
    fleet.await_workers()
    keys = [path.read_text() for path in (fleet.home / ".ring-attention-energy" / "keys" / "workers").glob("*.key")]
    lines = [word for host in bed.hosts for process in host.processes() for word in process.cmdline()]
    assert len(keys) == 5 and not any(json.loads(key)["secret"] in word for key in keys for word in lines)
    fleet.kill()
    fleet.start(*stages, "--train-config", toml)
    code, summary = fleet.end()
    assert code == 0, (summary, fleet.log_text())
    assert (summary["extract"]["status"], summary["train"]["status"]) == ("done", "done"), fleet.log_text()
    assert summary["extract"]["proved"] == 6 and summary["train"]["result"]["steps"] == 4
    assert [step["step"] for step in fleet.steps()] == [1, 2, 3, 4]
    assert series_digest(fleet.data) == local_series(tmp_path)
    mirrors = [host.data / "mirror" / "series" for host in bed.hosts]
    assert sum(mirror.exists() for mirror in mirrors) >= 2  # the two that came first


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_training_on_four_hosts_resumes_from_its_checkpoint(bed: Bed) -> None:
    fleet = Fleet(bed)
    stages = ("--extract", "--train", *PLAN, "--train-config", fleet.training(steps=16, validate_every=8))
    fleet.start(*stages)
    fleet.until(lambda: len(fleet.steps()) >= 4, "a checkpoint that came back")
    fleet.kill()
    until(lambda: not any(host.running("worker/train.py") for host in bed.hosts), "the end of every rank")
    fleet.start(*stages)
    fleet.until(lambda: len(fleet.steps()) >= 8, "more checkpoints")
    fleet.signal(signal.SIGINT)
    code, summary = fleet.end()
    assert code == 130, fleet.log_text()
    before = len(fleet.steps())
    fleet.start(*stages)
    code, summary = fleet.end()
    assert (code, summary["train"]["status"]) == (0, "done"), fleet.log_text()
    assert [step["step"] for step in fleet.steps()] == list(range(1, 17)) and before >= 8
    assert {step["ranks"] for step in fleet.steps()} == {4}
    fleet.start(*stages)
    assert fleet.end()[1]["train"]["message"] == "nothing was left to do"


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_pipeline_on_four_hosts_gives_the_policy_of_one_host(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator's environment names a kernel of OpenBLAS, those of the hosts' sshd do not: it is carried to them."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", OTHER_KERNEL)
    fleet = Fleet(bed)
    stages = ("--train-config", fleet.training(steps=8, validate_every=8), "--control-config", fleet.control(24))
    fleet.start("--extract", "--train", "--rollouts", *PLAN, *stages)
    code, summary = fleet.end()
    ended = [summary[stage]["status"] for stage in ("extract", "train", "rollouts")]
    assert (code, ended) == (0, ["done"] * 3), fleet.log_text()
    assert "results agree to rounding" not in fleet.log_text(), "the hosts differ in their arithmetic"
    players = [host for host in bed.hosts if list((host.data / "control" / "tables").glob("*.table"))]
    assert len(players) >= 2, "tables came to too few hosts"
    alone = tmp_path / "alone"
    shutil.copytree(fleet.data, alone, ignore=shutil.ignore_patterns("control", "journal.sqlite*"))
    start = command("start", "--rollouts", "--data", alone, "--control-config", fleet.control(24), "--quiet")
    subprocess.run(start, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, check=True)
    ours, theirs = (json.loads((data / "control" / "result.json").read_text()) for data in (alone, fleet.data))
    assert ours["arithmetic"] == theirs["arithmetic"]
    assert OTHER_KERNEL.upper() in str(ours["arithmetic"]).upper()
    for name in ("policy.npz", "tables.json", "metrics.jsonl"):
        assert (fleet.data / "control" / name).read_bytes() == (alone / "control" / name).read_bytes(), name


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_mlx_launch_trains_over_ssh_without_coordinator(bed: Bed) -> None:
    first, folder = bed.hosts[0], Path("training")
    for host in bed.hosts:
        make(host.home / folder / "data")
    launched = first.popen(
        str(Path(sys.executable).parent / "mlx.launch"),
        *("--hostfile", str(bed.hostfile), "--cwd", "training", "--", TRAIN),
        *("--data", "data", "--run", "run", *SMALL_MODEL, "--steps", "6"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out, _ = end_of(launched, "the end of mlx.launch", lambda: footprint(*(host.home for host in bed.hosts)))
    # mlx.launch always exits with 0: the files of the run show whether it succeeded.
    result = json.loads((first.home / folder / "run" / "result.json").read_text())
    assert result["steps"] == 6 and len(result["peak_mb"]) == 4, out
    for host in bed.hosts:
        until(lambda host=host: not host.processes(), f"the end of all processes of {host.name}")  # type: ignore[misc]


def test_problems_of_all_hosts_are_reported_at_once(bed: Bed, tmp_path: Path) -> None:
    fleet = Fleet(bed)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    bed.hosts[3].kill()
    pythons = f"host1=/no/python,host2={bare}/bin/python,{sys.executable}"
    fleet.start("--extract", *SMALL, "--host-python", pythons)
    code, _ = fleet.end()
    said = fleet.log_text()
    assert code == 2 and "host0:" not in said
    for words in (
        "host1: no Python at /no/python",
        "host2: " + str(bare),
        "lacks the project",
        "host3: ",
        "ssh -o BatchMode",
    ):
        assert words in said, said
