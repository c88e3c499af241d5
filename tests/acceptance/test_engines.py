"""Extraction and control training on engines: the bytes of the project's own workers, and losses that repeat only leases in flight."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from coordinator.stages import fleet
from coordinator.wire.messages import MAX_CAPACITY
from ingest.emulator.process import Emulator
from tests.acceptance.test_kills import LATENCY_MS, KilledRun, committed
from tests.support import control_data
from tests.support.engines import PIDS, ROOT, write_documented
from tests.support.program import MONTH, Coordinator, asked, command, environment, series_digest
from tests.support.waiting import end_of, footprint, until

ENGINES = {
    "pool": "",
    "loky": "loky",
    "dask": "distributed",
    "parsl": "parsl",
    "executorlib": "executorlib",
    "ray": "ray",
}
NAMES = [pytest.param(name, id=name) for name in ENGINES]


def need(name: str) -> None:
    if (module := ENGINES[name]) and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: uv run --group engines pytest")


def next_pid(run: KilledRun, path: Path, killed: int) -> int | None:
    """Return the process of the newest engine, when there is one after the `killed` first; None when the run ended before.

    The first engine of the file is that of the check before the run.
    """

    def found() -> list[str]:
        return path.read_text().split()[1 + killed :] if path.exists() else []

    until(lambda: found() or run.process.poll() is not None, "an engine", run.progress)
    return int(found()[-1]) if found() else None


def killed_schedulers(folder: Path, engine: str, kills: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run an extraction whose engine is killed at random moments. Returns the number of kills; asserts that nothing is asked again."""
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    draw, killed, frozen = random.Random(seed), 0, []
    with Emulator("--latency-ms", LATENCY_MS) as emulator:
        run = KilledRun(folder, emulator, "--engine", f"tests.support.engines:{engine}", "--workers", "1")
        while killed < kills and run.await_requests(run.requests() + draw.randint(1, 4)):
            pid = next_pid(run, folder / PIDS, killed)
            if pid is None:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed += 1
            frozen.append((run.requests(), committed(run.data)))
        run.end()
        log = asked(emulator.requests())
    for requests, held in frozen:
        again = held.intersection(log[requests:])
        assert not again, f"asked for again after it was committed: {sorted(again)}"
    return killed


def test_killed_pool_repeats_only_what_was_in_flight(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert killed_schedulers(tmp_path / "run", "pool", 1, 1, monkeypatch) == 1
    assert series_digest(tmp_path / "run" / "data") == undisturbed


def test_wrong_engine_is_refused_before_the_run(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "absent_engine.py").write_text("")
    wrong = coordinator("start", "--extract", "--engine", "absent_engine:build")
    assert wrong.code == 2 and "absent_engine has no function build. Correct --engine." in wrong.stderr


@pytest.mark.parametrize(
    ("factory", "problem"),
    [
        ("boom", "my_engines:boom raised RuntimeError: scheduler refused"),
        ("notexec", "my_engines:notexec returned int, not a concurrent.futures.Executor"),
    ],
)
def test_factory_that_cannot_be_used_is_refused_in_one_line(
    factory: str, problem: str, program: Coordinator, tmp_path: Path
) -> None:
    (tmp_path / "my_engines.py").write_text(
        'def boom():\n    print("a word")\n    raise RuntimeError("scheduler refused")\n\n\ndef notexec():\n    return 42\n'
    )
    refused = program("start", "--extract", *MONTH, "--engine", f"my_engines:{factory}", "--workers", "1", timeout=40)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        f"coordinator: --engine {problem}; correct it, then run the same command again."
    ]


LOST = """
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path


class Broken(Executor):
    def submit(self, function, /, *arguments, **named):
        raise RuntimeError("the scheduler went away")


def leaves():
    with Path("calls.txt").open("a") as calls:
        calls.write("x")
    calls = Path("calls.txt").stat().st_size
    if calls > 2:
        raise RuntimeError("scheduler refused")
    return Broken() if calls == 2 else ThreadPoolExecutor(1)  # the first call is the check before the run
"""


def test_loss_of_an_engine_is_printed_once_and_sigterm_ends_the_run_that_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "my_engines.py").write_text(LOST)
    err = tmp_path / "stderr.txt"
    arguments = ("start", "--extract", *MONTH, "--engine", "my_engines:leaves", "--workers", "1")
    with err.open("w") as written:
        process = subprocess.Popen(command(*arguments), cwd=tmp_path, env=environment(), stderr=written)
    try:
        until(lambda: "waiting for the engine: RuntimeError: scheduler refused" in err.read_text(), "the wait")
        process.terminate()
        assert process.wait(30) == 130  # the engine would be given up after two minutes
    finally:
        process.kill()
        process.wait()
    told = "engine 1 of this run was lost and is made again: RuntimeError: the scheduler went away"
    assert [line for line in err.read_text().splitlines() if "went away" in line] == [told]


def test_engine_of_many_workers_registers_no_more_leases_than_a_message_may_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "check_engine", lambda name, note: None)
    options = fleet.StageOptions(
        data_dir=tmp_path,
        workers=300,
        connections=1,
        bind="tcp://127.0.0.1:0",
        keys=tmp_path,
        retries=5,
        engine="my_engines:dask",
    )
    command = fleet.build_fleet(options, print).worker_command
    assert command[-2:] == ("--capacity", str(MAX_CAPACITY))


HANGS = """
import os
import signal
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path


def hangs(calls):
    with Path("pids.txt").open("a") as pids:
        print(os.getpid(), file=pids)
    if len(Path("pids.txt").read_text().split()) == calls:
        time.sleep(600)
    return ThreadPoolExecutor(1)


def at_first():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as some libraries do
    return hangs(1)


def in_the_run():
    return hangs(2)
"""


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("at_first", "--engine my_engines:at_first: its factory and a first task are waited for"),
        pytest.param("in_the_run", "waiting for the engine: its factory has not returned", marks=pytest.mark.long),
    ],
)
def test_sigterm_ends_a_run_whose_factory_hangs(factory: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "my_engines.py").write_text(HANGS)
    err = tmp_path / "stderr.txt"
    arguments = ("start", "--extract", *MONTH, "--engine", f"my_engines:{factory}", "--workers", "1")
    with err.open("w") as written:
        process = subprocess.Popen(command(*arguments), cwd=tmp_path, env=environment(), stderr=written)
    try:
        until(lambda: told in err.read_text(), "the line that says what is waited for")
        process.terminate()
        assert process.wait(30) == 130  # the factory hangs for ten minutes
    finally:
        process.kill()
        process.wait()
    calls = [int(pid) for pid in (tmp_path / "pids.txt").read_text().split()]
    until(lambda: not any(map(psutil.pid_exists, calls)), "the end of the processes that called the factory")


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_twenty_killed_schedulers_repeat_only_what_was_in_flight(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("dask")
    done, seed = 0, 0
    while done < 20:
        seed += 1
        done += (killed := killed_schedulers(tmp_path / str(seed), "dask_apart", 20 - done, seed, monkeypatch))
        print(f"run {seed}: {killed} kills", flush=True)
        assert series_digest(tmp_path / str(seed) / "data") == undisturbed


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_extraction_has_the_same_bytes(name: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    need(name)
    write_documented(tmp_path)
    with Emulator() as emulator:
        run = KilledRun(tmp_path, emulator, "--engine", f"my_engines:{name}")
        run.end()
    assert series_digest(run.data) == undisturbed


SRUN = """#!/bin/sh
printf '%s\\n' "$*" >> "$SRUN_CALLS"
while [ "$1" != "${1#-}" ]; do
    case "$1" in -n|-D) shift;; esac
    shift
done
exec "$@"
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_slurm_recipe_runs_with_a_stub_in_place_of_srun(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stub drops srun's options and runs the program: no cluster was at hand."""
    need("executorlib")
    write_documented(tmp_path)
    stub = tmp_path / "bin" / "srun"
    stub.parent.mkdir()
    stub.write_text(SRUN)
    stub.chmod(0o755)
    for name, value in {
        "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}",
        "SRUN_CALLS": str(tmp_path / "calls.txt"),
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with Emulator() as emulator:
        run = KilledRun(tmp_path, emulator, "--engine", "my_slurm:slurm", "--workers", "2")
        run.end()
    assert series_digest(run.data) == undisturbed
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert len(calls) == 4 and all("-n 1" in call and "--exact" in call for call in calls)  # check and run, two each


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Train a control policy on an engine, or with "" on workers; return the sha256 of each file that tells what was learned."""
    source = control_data.make(tmp_path_factory.mktemp("series") / "data")

    def train(name: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp(name or "workers")
        shutil.copytree(source, folder / "data")
        write_documented(folder)
        config = control_data.config(folder / "control.toml", 6)
        command = [
            sys.executable,
            "-m",
            "coordinator",
            "start",
            "--rollouts",
            "--json",
            "--control-config",
            str(config),
        ]
        engine = ["--engine", f"my_engines:{name}"] if name else []
        process = subprocess.Popen(
            [*command, *engine],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = end_of(process, f"a training on {name}", lambda: footprint(folder / "data"))
        assert process.returncode == 0, err.decode()
        assert json.loads(out)["put_out"] == []
        run = folder / "data" / "control"
        files = [*sorted((run / "versions").glob("*.npz")), run / "metrics.jsonl", run / "policy.npz"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return train


@pytest.fixture(scope="module")
def on_workers(trained: Callable[[str], dict[str, str]]) -> dict[str, str]:
    return trained("")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_control_training_has_the_same_bytes(
    name: str, trained: Callable[[str], dict[str, str]], on_workers: dict[str, str]
) -> None:
    need(name)
    assert trained(name) == on_workers
