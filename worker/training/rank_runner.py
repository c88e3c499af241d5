"""Run ranks of a training: a `port` lease offers this host's address (rendezvous), a `train` lease runs `worker/train.py` as one rank.

A rank is a separate process with a log in the run folder. Its heartbeats are reported to the coordinator. Its exit code becomes
the lease's result: 0 done, 75 the ring broke or the rank was asked to end, 2 usage error, any other code is the rank's own failure.
"""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from coordinator.wire.auth import local_address_towards
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.failures import LAUNCH_ERROR
from coordinator.wire.messages import MAX_NAME
from coordinator.wire.payloads import JoinReply, JoinRequest, RankSpec
from ingest.errors import Cancelled, IngestError, UsageError
from ringattn.blas import loader as blas
from worker.agent.lease import LeaseContext, RankProgress
from worker.training import replica
from worker.training.heartbeat_file import HeartbeatFollower

log = logging.getLogger(__name__)

TRAIN = Path(__file__).parents[1] / "train.py"
POLL_S = 0.05  # between polls of a rank's heartbeat file
REPORT_S = 0.2  # between reports to the coordinator, at least
STATUS_S = 0.25  # between checks of the process's state, and writes to its watchdog
CANCEL_GRACE_S = 2.0  # for a lease that was taken back: its checkpoint is not needed
# Shares of the silence after which the coordinator counts this worker as lost. A rank whose worker writes nothing for the first
# share ends; the worker writes while it heard from the coordinator within the second. So the rank ends before the worker is lost.
WATCHDOG, CONTACT = 0.5, 0.25
TAIL = 4_000  # bytes of a log that an error quotes
# Variables of a worker's environment that a rank must not inherit: the place in another ring, the API key, and the thread counts
# of a worker, which are 1.
NOT_FOR_RANKS = (
    *("MLX_RANK", "MLX_HOSTFILE", "EIA_API_KEY"),
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)


class RankError(IngestError):
    """A rank failed. `worker.agent.handlers.FAILURES` maps each kind to what is reported."""


class RankDied(RankError):
    """The rank ended by a signal or with an exit code that no other class covers: a failure of the rank itself."""


class RingBroke(RankError):
    """The rank ended with exit code 75: a neighbour was lost or too slow."""


class RankEnded(RankError):
    """The rank ended because it was asked to."""


class RankRunner:
    """Handlers of `port` and `train` leases.

    Args:
        script: program to run; it keeps the contract of `worker/train.py`: its flags, its heartbeat file, its exit codes.
    """

    def __init__(self, script: Path = TRAIN) -> None:
        self._script = script

    def join(self, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
        """Offer an address of this host for the ring, after the training's files are on this host.

        Args:
            job: a JoinRequest.
            context: The lease's context.

        Returns:
            A JoinReply with this host's address and a free port.
        """
        files, chunks = msgspec.convert(job, JoinRequest).files, 0
        if context.transfer is not None:
            next_report = time.monotonic()

            def on_chunk() -> None:
                nonlocal chunks, next_report
                chunks += 1
                if time.monotonic() >= next_report:
                    next_report = time.monotonic() + REPORT_S
                    context.report(RankProgress(heartbeat_count=chunks))

            replica.sync_replica(context.data_dir / replica.FOLDER, files, context.transfer, on_chunk)
        host = context.address or local_address_towards(context.endpoint)
        bracketed = f"[{host}]" if ":" in host else host
        words = blas.choose().describe()[:MAX_NAME]
        return msgspec.to_builtins(JoinReply(f"{bracketed}:{free_port(host)}", words))

    def run(self, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
        """Run one rank to its end.

        Args:
            job: a RankSpec.
            context: The lease's context.

        Returns:
            Rank, round, and the files of the finished run where this host has its own file system. A rank that does not
            end well raises RankError, UsageError or HostFull; Cancelled means that the lease was cancelled.
        """
        rank = msgspec.convert(job, RankSpec)
        if context.transfer is None:
            return self._run(rank, context.data_dir, context)
        folder = context.data_dir / replica.FOLDER
        with replica.local_disk_errors(folder):
            return self._run(rank, folder, context)

    def _run(self, rank: RankSpec, data: Path, context: LeaseContext) -> dict[str, Any]:
        transfer = context.transfer
        run = data / (rank.run if transfer is None else "run")
        log_path = run / "logs" / f"rank-{rank.rank}.log"
        heartbeat = run / "beats" / f"{rank.round}-{rank.rank}.jsonl"
        for folder in (log_path.parent, heartbeat.parent):
            folder.mkdir(parents=True, exist_ok=True)
        heartbeat.unlink(missing_ok=True)  # left by a round of the same number, from before the journal was rebuilt
        arguments = ["--data", str(data), "--run", str(run), "--heartbeat", str(heartbeat)]
        if rank.config:
            arguments += ["--config", str(run / rank.config)]
        uploader = replica.CheckpointUploader(data, transfer) if transfer is not None and rank.rank == 0 else None
        try:
            beats = HeartbeatFollower(heartbeat)
            with self._process(rank, run, log_path, arguments, context) as process:
                asked = _watch(process, beats, context, uploader)
                code = process.returncode
            if uploader is not None:
                uploader.finish()
            if beats.malformed:
                log.warning("%d lines of %s are not valid heartbeats", beats.malformed, heartbeat)
        finally:
            heartbeat.unlink(missing_ok=True)
        if code == 0:
            context.proof_root = data
            files = {} if uploader is None else {"files": msgspec.to_builtins(uploader.final_files())}
            return {"rank": rank.rank, "round": rank.round, **files}
        raise _error(code, asked, log_path)

    @contextmanager
    def _process(
        self, rank: RankSpec, run: Path, log_path: Path, arguments: list[str], context: LeaseContext
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start the rank's process; leaving the context kills it and all processes that it started."""
        hosts = run / "beats" / f"{rank.round}-{rank.rank}.hosts.json"
        hosts.write_bytes(msgspec.json.encode([[address] for address in rank.addresses]))
        with log_path.open("ab") as output:
            environment = rank_environment(rank, hosts, os.environ)
            output.write(f"== round {rank.round}, rank {rank.rank} of {len(rank.addresses)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "worker.process.rank_main",
                    str(WATCHDOG * context.silence_s),
                    str(self._script),
                    *arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with suppress(OSError):
                process.stdin.close()
            hosts.unlink(missing_ok=True)


def rank_environment(rank: RankSpec, hosts: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a rank: its place in the ring and its share of this host's cores."""
    kept = {name: value for name, value in environ.items() if name not in NOT_FOR_RANKS}
    if len(rank.addresses) > 1:
        kept |= {"MLX_RANK": str(rank.rank), "MLX_HOSTFILE": str(hosts)}
    return {**kept, **blas.thread_settings(kept), "PYTHONUNBUFFERED": "1"}


def free_port(host: str) -> int:
    """Return a port of this host that is free now, from 20000 to 31999: below the range that outgoing connections use.

    Raises:
        RankError: if no free port was found.
    """
    for _ in range(200):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, random.randrange(20_000, 32_000)))
            return int(probe.getsockname()[1])
    raise RankError(f"no free port between 20000 and 32000 on {host}")


def _watch(
    process: subprocess.Popen[bytes],
    beats: HeartbeatFollower,
    context: LeaseContext,
    uploader: replica.CheckpointUploader | None,
) -> bool:
    """Watch a rank until it ends: feed its watchdog, report its heartbeats, end it when asked to.

    Returns:
        Whether it was asked to end.

    Raises:
        Cancelled: if the lease was cancelled.
    """
    status = psutil.Process(process.pid)
    asked = stopped = False
    reported = (0, 0, False)
    uploading = 0  # step of the newest checkpoint that the uploader knows
    next_check = next_report = 0.0
    while process.poll() is None:
        now = time.monotonic()
        if now >= next_check:
            next_check = now + STATUS_S
            with suppress(psutil.Error):
                stopped = status.status() == psutil.STATUS_STOPPED
            if context.seconds_since_contact() < CONTACT * context.silence_s:
                _feed_watchdog(process)
        beats.poll()
        if (
            uploader is not None
            and beats.last is not None
            and beats.last.phase != "checkpoint"
            and beats.checkpoint_step > uploading
        ):
            uploading = beats.checkpoint_step
            uploader.notify()
        saved = beats.checkpoint_step if uploader is None else uploader.saved
        if now >= next_report and reported != (beats.count, saved, stopped):
            next_report, reported = now + REPORT_S, (beats.count, saved, stopped)
            _report(beats, saved, stopped, context)
        if (left := context.grace.left_s) is not None:
            if not asked:
                asked = True
                _terminate(process)
            if left <= 0:
                process.kill()
        if context.cancelled.wait(POLL_S):
            _terminate(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(CANCEL_GRACE_S)
            raise Cancelled("the lease was cancelled")
    if beats.poll() or reported[0] != beats.count:
        _report(beats, beats.checkpoint_step if uploader is None else uploader.saved, False, context)
    return asked


def _report(beats: HeartbeatFollower, saved: int, stopped: bool, context: LeaseContext) -> None:
    last = beats.last or RankProgress()
    context.report(RankProgress(last.step, last.phase, beats.count, saved, stopped))


def _feed_watchdog(process: subprocess.Popen[bytes]) -> None:
    """Write a byte to the rank's stdin, without waiting for a rank that does not read."""
    assert process.stdin is not None
    with suppress(OSError):
        os.write(process.stdin.fileno(), b".")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process acts on the first after the second
        with suppress(ProcessLookupError, PermissionError):
            process.send_signal(number)


def _error(code: int, asked: bool, log_path: Path) -> RankError | UsageError:
    """Return the error that an exit code means, with the end of the log where it helps."""
    with log_path.open("rb") as file:
        file.seek(max(0, log_path.stat().st_size - TAIL))
        tail = file.read().decode(errors="replace").rpartition("== round ")[2].partition("\n")[2].strip()
    last = tail.splitlines()[-8:]
    # A launch error is about addresses that the coordinator chose, not about the user's settings.
    if code == ExitCode.USAGE and not (last and last[-1].startswith(LAUNCH_ERROR)):
        return UsageError(tail or f"train.py ended with exit code 2: see {log_path}")
    if asked:
        return RankEnded("ended as it was asked to")
    if code == ExitCode.INCOMPLETE:
        return RingBroke(last[-1] if last else "exit code 75")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        how += " (by the system if memory ran out: see `dmesg`)"
    return RankDied("\n  ".join([f"{how}; last lines of {log_path}:", *last]) if last else how)
