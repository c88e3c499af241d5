"""Ranks of a training: a `port` lease offers this host's address, a `train` lease runs `worker/train.py` as one rank.

The rank is a process of its own with a log in the run folder. Its heartbeat file is passed on to the coordinator, its exit
code becomes the lease's answer: 0 done, 75 its ring broke or it was asked to end, 2 usage, anything else its own fault.
"""

from __future__ import annotations

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
from coordinator.wire.payloads import JoinReply, JoinRequest, RankSpec
from ingest.errors import Cancelled, IngestError, UsageError
from worker.agent.lease import LeaseContext
from worker.process import blas_env
from worker.training import replica
from worker.training.heartbeat_file import HeartbeatFollower

log = logging.getLogger(__name__)

TRAIN = Path(__file__).parents[1] / "train.py"
LOOK_S = 0.05  # between looks at a rank
REPORT_S = 0.2  # between words that are passed on
STATUS_S = 0.25  # between looks at whether the system runs it, and dots on its leash
CANCEL_GRACE_S = 2.0  # a lease that was taken back: nobody waits for its checkpoint
LEASH, HEARD = 0.5, 0.25  # of the silence after which this worker counts as lost: the rank has ended before
TAIL = 4_000  # bytes of a log that an error quotes
# Of a worker's environment: another ring's place, the threads of a worker, which are one each, and the key.
NOT_FOR_RANKS = (
    *("MLX_RANK", "MLX_HOSTFILE", "EIA_API_KEY"),
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)


class RankError(IngestError):
    """A rank that did not end well. `worker.agent.handlers.FAILURES` has what the coordinator is told."""


class RankDied(RankError):
    """By a signal, or by an exit code of its own: its own fault."""


class RingBroke(RankError):
    """Exit code 75: a neighbour was lost, or too late."""


class RankEnded(RankError):
    """As it was asked to."""


class RankRunner:
    """The handlers of both kinds. `script` keeps train.py's contract: its flags, its heartbeat file, its exit codes."""

    def __init__(self, script: Path = TRAIN) -> None:
        self._script = script

    def join(self, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
        """The address of this host in a ring, with a free port → PortProof.

        Before it is offered, what the training needs is on this host: HostFull, VerificationError.
        """
        files, pieces = msgspec.convert(job, JoinRequest).files, 0
        if context.transfer is not None:
            next_report = time.monotonic()

            def said() -> None:
                nonlocal pieces, next_report
                pieces += 1
                if time.monotonic() >= next_report:
                    next_report = time.monotonic() + REPORT_S
                    context.report(0, "start", pieces, 0, False)

            replica.sync_replica(context.data_dir / replica.FOLDER, files, context.transfer, said)
        host = context.address or local_address_towards(context.endpoint)
        where = f"[{host}]" if ":" in host else host
        matrices = blas_env.describe({**os.environ, **blas_env.rank_environment(os.environ)})
        return msgspec.to_builtins(JoinReply(f"{where}:{free_port(host)}", matrices))

    def run(self, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
        """Run one rank to its end. RankError, HostFull, UsageError or Cancelled unless it ended well by itself."""
        rank = msgspec.convert(job, RankSpec)
        if context.transfer is None:
            return self._run(rank, context.data_dir, context)
        folder = context.data_dir / replica.FOLDER
        with replica.local_disk_errors(folder):
            return self._run(rank, folder, context)

    def _run(self, rank: RankSpec, data: Path, context: LeaseContext) -> dict[str, Any]:
        line = context.transfer
        run = data / (rank.run if line is None else "run")
        log_path = run / "logs" / f"rank-{rank.rank}.log"
        heartbeat = run / "beats" / f"{rank.round}-{rank.rank}.jsonl"
        for folder in (log_path.parent, heartbeat.parent):
            folder.mkdir(parents=True, exist_ok=True)
        heartbeat.unlink(missing_ok=True)  # of a round of that number before the journal was made again
        arguments = ["--data", str(data), "--run", str(run), "--heartbeat", str(heartbeat)]
        if rank.config:
            arguments += ["--config", str(run / rank.config)]
        uploader = replica.CheckpointUploader(data, line) if line is not None and rank.rank == 0 else None
        try:
            beats = HeartbeatFollower(heartbeat)
            with self._process(rank, run, log_path, arguments, context) as process:
                asked = _watch(process, beats, context, uploader)
                code = process.returncode
            if uploader is not None:
                uploader.finish()
            if beats.malformed:
                log.warning("%d lines of %s were no words of a rank", beats.malformed, heartbeat)
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
        """The rank's process; gone, with all that it started, when the context is left."""
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
                    str(LEASH * context.silence_s),
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
    """The whole environment of a rank: its place in the ring, its share of this host's cores, a fast BLAS where there is one."""
    kept = {name: value for name, value in environ.items() if name not in NOT_FOR_RANKS}
    if len(rank.addresses) > 1:
        kept |= {"MLX_RANK": str(rank.rank), "MLX_HOSTFILE": str(hosts)}
    return {**kept, **blas_env.rank_environment(kept), "PYTHONUNBUFFERED": "1"}


def free_port(host: str) -> int:
    """A port of this address that nothing listens on now, below the range that outgoing connections draw from.

    RankError where none was found.
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
    """Until the rank has ended: keep its leash, pass its words on, end it when asked to. True: it was asked to.

    Cancelled when the lease was taken back.
    """
    status = psutil.Process(process.pid)
    asked = stopped = False
    said = (0, 0, False)
    saved = 0
    next_look = next_report = 0.0
    while process.poll() is None:
        now = time.monotonic()
        if now >= next_look:
            next_look = now + STATUS_S
            with suppress(psutil.Error):
                stopped = status.status() == psutil.STATUS_STOPPED
            if context.seconds_since_contact() < HEARD * context.silence_s:
                _feed_watchdog(process)
        beats.poll()
        if (
            uploader is not None
            and beats.last is not None
            and beats.last.phase != "checkpoint"
            and beats.checkpoint_step > saved
        ):
            saved = beats.checkpoint_step
            uploader.notify()
        here = beats.checkpoint_step if uploader is None else uploader.saved
        if now >= next_report and said != (beats.count, here, stopped):
            next_report, said = now + REPORT_S, (beats.count, here, stopped)
            _report(beats, here, stopped, context)
        if (left := context.grace.left_s) is not None:
            if not asked:
                asked = True
                _terminate(process)
            if left <= 0:
                process.kill()
        if context.cancelled.wait(LOOK_S):
            _terminate(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(CANCEL_GRACE_S)
            raise Cancelled("the lease was taken back")
    if beats.poll() or said[0] != beats.count:
        _report(beats, beats.checkpoint_step if uploader is None else uploader.saved, False, context)
    return asked


def _report(beats: HeartbeatFollower, saved: int, stopped: bool, context: LeaseContext) -> None:
    last = beats.last
    context.report(last.step if last else 0, last.phase if last else "start", beats.count, saved, stopped)


def _feed_watchdog(process: subprocess.Popen[bytes]) -> None:
    """A dot on its leash. A rank that does not read is not waited for."""
    assert process.stdin is not None
    with suppress(OSError):
        os.write(process.stdin.fileno(), b".")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process takes the first with the second
        with suppress(ProcessLookupError, PermissionError):
            process.send_signal(number)


def _error(code: int, asked: bool, log_path: Path) -> RankError | UsageError:
    """What an exit code means. RankError or UsageError, with the end of the log where it helps."""
    with log_path.open("rb") as file:
        file.seek(max(0, log_path.stat().st_size - TAIL))
        tail = file.read().decode(errors="replace").rpartition("== round ")[2].partition("\n")[2].strip()
    last = tail.splitlines()[-8:]
    if code == ExitCode.USAGE and not (
        last and last[-1].startswith(LAUNCH_ERROR)
    ):  # of addresses that a coordinator chose
        return UsageError(tail or f"train.py ended with exit code 2: see {log_path}")
    if asked:
        return RankEnded("ended as it was asked to")
    if code == ExitCode.INCOMPLETE:
        return RingBroke(last[-1] if last else "exit code 75")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return RankDied("\n  ".join([f"{how}; {log_path} says last:", *last]) if last else how)
