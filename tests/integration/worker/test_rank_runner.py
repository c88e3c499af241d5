"""The rank runner with real processes: each test has a script for the rank, and acts as the coordinator."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from coordinator.wire.payloads import RankSpec
from ingest.errors import Cancelled, UsageError
from tests.support.waiting import WAIT_S, until
from worker.agent.file_transfer import FileTransfer, TransferInbox
from worker.agent.lease import GraceDeadline, LeaseContext, RankProgress
from worker.training import rank_runner
from worker.training.heartbeat_file import HeartbeatFollower
from worker.training.rank_runner import RankDied, RankEnded, RankRunner, RingBroke
from worker.training.replica import HostFull


class Bench:
    """One rank that runs `script`, and its reported progress."""

    def __init__(self, folder: Path, script: str, silence_s: float = 1_000.0) -> None:
        self.data = folder / "data"
        self.script = folder / "script.py"
        self.script.write_text("import json, os, pathlib, signal, sys, time\n" + script)
        self.reports: list[RankProgress] = []
        self.unheard = 0.0
        self.context = LeaseContext(
            data_dir=self.data,
            cancelled=threading.Event(),
            on_progress=lambda rows, requests: None,
            fetch_context=lambda: pytest.fail("a rank fetches nothing"),
            endpoint="tcp://127.0.0.1:5555",
            address=None,
            proof_root=self.data,
            transfer=None,
            silence_s=silence_s,
            seconds_since_contact=lambda: self.unheard,
            grace=GraceDeadline(),
            report=self.reports.append,
            weights=lambda sha256: b"",
        )

    def run(self, *addresses: str, rank: int = 0) -> dict[str, Any]:
        job = RankSpec(1, rank, addresses or ("127.0.0.1:20001",), "train")
        return RankRunner(self.script).run(msgspec.to_builtins(job), self.context)

    def start(self) -> Any:
        """Start the lease. Returns the future of its answer."""
        self.pool = ThreadPoolExecutor(1)
        return self.pool.submit(self.run)

    @property
    def process(self) -> psutil.Process:
        """The process of the rank, once its script runs."""
        return psutil.Process(int(until(lambda: self.read("pid"), "the rank")))

    def read(self, name: str) -> str:
        path = self.data / name
        return path.read_text() if path.exists() else ""


READY = """
data = pathlib.Path(sys.argv[sys.argv.index("--data") + 1])
(data / "pid.part").write_text(str(os.getpid()))
(data / "pid.part").rename(data / "pid")
"""
BEAT = """
beats = open(sys.argv[sys.argv.index("--heartbeat") + 1], "a", buffering=1)
"""
SLEEP = READY + "time.sleep(600)\n"


def test_rank_gets_its_position_cores_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGATTN_THREADS", raising=False)  # a number that the caller sets is kept
    bench = Bench(
        tmp_path, READY + '(data / "seen").write_text(json.dumps([sys.argv[1:], dict(os.environ), sys.path[0]]))'
    )
    proof = bench.run("127.0.0.1:20001", "127.0.0.1:20002", "10.0.0.9:20003", rank=1)
    assert proof == {"rank": 1, "round": 1}
    arguments, environment, first = json.loads(bench.read("seen"))
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (given["--data"], given["--run"]) == (str(bench.data), str(bench.data / "train"))
    assert first == str(tmp_path)
    assert environment["MLX_RANK"] == "1"
    assert not Path(environment["MLX_HOSTFILE"]).exists()  # removed after the rank has ended
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert environment["RINGATTN_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == str(max(1, cores // 2))


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_blames_run_if_files_are_shared_else_host(tmp_path: Path, shares: bool) -> None:
    bench = Bench(tmp_path, READY)
    run = bench.data / "train"
    if not shares:
        bench.context.transfer = FileTransfer(
            "worker", "train/1/1", 1, lambda *word: None, TransferInbox(lambda: False)
        )
        run = bench.data / "mirror" / "run"
    (run / "beats").mkdir(parents=True)
    (run / "beats" / "1-1.hosts.json").symlink_to("/dev/full")
    with pytest.raises(OSError if shares else HostFull, match="No space left"):
        bench.run("127.0.0.1:20001", "127.0.0.1:20002", rank=1)


def test_hostfile_lists_every_address(tmp_path: Path) -> None:
    bench = Bench(tmp_path, READY + '(data / "seen").write_text(open(os.environ["MLX_HOSTFILE"]).read())')
    bench.run("127.0.0.1:20001", "127.0.0.1:20002")
    assert json.loads(bench.read("seen")) == [["127.0.0.1:20001"], ["127.0.0.1:20002"]]


def test_single_rank_joins_no_ring_and_sees_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_RANK", "7")
    monkeypatch.setenv("MLX_HOSTFILE", "/nowhere")
    monkeypatch.setenv("EIA_API_KEY", "very-secret")
    environment = rank_runner.rank_environment(RankSpec(1, 0, ("h:1",), "train"), tmp_path, os.environ)
    assert not {"MLX_RANK", "MLX_HOSTFILE", "EIA_API_KEY"} & environment.keys()


def test_join_reply_has_address_that_can_be_bound(tmp_path: Path) -> None:
    import socket

    offer = RankRunner().join({}, Bench(tmp_path, "").context)
    host, _, port = offer["address"].rpartition(":")
    with socket.create_server((host, int(port))):
        assert host == "127.0.0.1"
    assert offer["blas"].startswith("BLAS: ")


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("print('no series of ERCO', file=sys.stderr); sys.exit(2)", UsageError, "no series of ERCO"),
        ("print('PeerLost: rank 1 left', file=sys.stderr); sys.exit(75)", RingBroke, "PeerLost: rank 1 left"),
        ("print('LaunchError: port in use', file=sys.stderr); sys.exit(2)", RankDied, "port in use"),
        ("raise ZeroDivisionError('at step 3')", RankDied, "at step 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", RankDied, "SIGKILL"),
    ],
)
def test_exit_of_rank_maps_to_error(tmp_path: Path, script: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Bench(tmp_path, script).run()


def test_error_quotes_log_of_this_round_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "sys.exit(2)")
    log = bench.data / "train" / "logs" / "rank-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("== round 0, rank 0 of 1\nan old message\n")
    with pytest.raises(UsageError) as raised:
        bench.run()
    assert "an old message" not in str(raised.value)


def test_heartbeats_are_reported_and_always_the_last_one(tmp_path: Path) -> None:
    lines = 'beats.write(json.dumps({"step": n, "phase": "checkpoint" if n == 30 else "step", "time": 0.0}) + "\\n")'
    bench = Bench(tmp_path, BEAT + f"for n in range(50):\n    {lines}\n")
    bench.run()
    assert bench.reports[-1] == RankProgress(49, "step", 50, 30, False)
    assert [one.heartbeat_count for one in bench.reports] == sorted({one.heartbeat_count for one in bench.reports})


def test_stopped_and_continued_rank_is_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLEEP)
    answer = bench.start()
    bench.process.send_signal(signal.SIGSTOP)
    until(lambda: bench.reports and bench.reports[-1].is_stopped, "the report")
    bench.process.send_signal(signal.SIGCONT)
    until(lambda: not bench.reports[-1].is_stopped, "the report that it runs again")
    bench.context.cancelled.set()
    with pytest.raises(Cancelled):
        answer.result(WAIT_S)


def test_terminated_rank_may_save_a_checkpoint(tmp_path: Path) -> None:
    save = """
def save(*_):
    (pathlib.Path(sys.argv[2]) / "saved").touch()
    os._exit(75)
signal.signal(signal.SIGTERM, save)
"""
    bench = Bench(tmp_path, save + SLEEP)
    answer = bench.start()
    until(lambda: bench.read("pid"), "the rank")
    bench.context.grace.start(WAIT_S)
    with pytest.raises(RankEnded):
        answer.result(WAIT_S)
    assert (bench.data / "saved").exists()


def test_stopped_rank_is_killed_after_grace_period(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP)
    answer = bench.start()
    process = bench.process
    process.send_signal(signal.SIGSTOP)
    bench.context.grace.start(0.3)
    with pytest.raises(RankEnded):
        answer.result(WAIT_S)
    assert not process.is_running()


def test_earliest_grace_deadline_counts() -> None:
    grace = GraceDeadline()
    assert grace.left_s is None
    grace.start(0.0)
    grace.start(100.0)
    assert grace.left_s == 0.0


def test_cancelled_lease_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_runner, "CANCEL_GRACE_S", 0.2)
    child = "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    bench = Bench(tmp_path, child + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP)
    answer = bench.start()
    family = [bench.process, *bench.process.children(recursive=True)]
    bench.context.cancelled.set()
    with pytest.raises(Cancelled):
        answer.result(WAIT_S)
    _, left = psutil.wait_procs(family, timeout=WAIT_S)
    assert not left


def test_watchdog_ends_rank_when_worker_loses_coordinator(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLEEP, silence_s=2.0)
    answer = bench.start()
    process = bench.process
    bench.unheard = 5.0
    with pytest.raises(RingBroke):
        answer.result(WAIT_S)
    assert not process.is_running()


def test_watchdog_spares_rank_while_coordinator_answers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, READY + "time.sleep(2.5)\n", silence_s=4.0)  # a watchdog of 2 s
    assert bench.run() == {"rank": 0, "round": 1}


def test_malformed_heartbeats_are_counted_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "beats"
    beats = HeartbeatFollower(path)
    assert not beats.poll()
    path.write_bytes(b'{"step": 1, "phase": "step", "time": 1.0}\n\xff\xfe\n{"step": -4, "phase": "step", "time": 1}\n')
    assert beats.poll()
    with path.open("ab") as file:
        file.write(b'{"step": 2, "phase": "dance", "time": 1.0}\n{"step": 3, "phase": "checkpoint", "ti')
        file.flush()
        assert not beats.poll()
        file.write(b'me": 1.0}\n' + b"x" * 10_000)
    assert beats.poll()
    assert beats.last is not None
    assert (beats.last.step, beats.count, beats.checkpoint_step, beats.malformed) == (3, 2, 3, 4)
