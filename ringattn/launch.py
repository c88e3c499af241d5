"""Launch n ranks of a script on this machine: `python -m ringattn.launch -n 2 script.py args…` or `-n 2 -m MODULE args…`, or `run` and `LocalRing`.

mlx.launch uses most of a core while it waits and exits 0 when ranks fail. This launcher blocks in the kernel, ends every
rank when one fails, and reports which one and why. No rank outlives it, however it ends.
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from ringattn import _rank
from ringattn._errors import LaunchError, RankFailed, RunTimeout, StartTimeout

Echo = Callable[[int, str], None]
_KEPT_LINES = 2000  # lines of each rank's output that are kept for `output` and error messages
OPTIONS: dict[str, dict[str, Any]] = {
    "-n": {"type": int, "required": True, "help": "number of ranks"},
    "--start-timeout": {
        "type": float,
        "default": 60.0,
        "help": "seconds until all ranks must have joined (default: 60)",
    },
    "--timeout": {"type": float, "help": "seconds until all ranks must have ended (default: no limit)"},
    "-m": {"nargs": argparse.REMAINDER, "metavar": "MODULE", "help": "module in place of a script, and its arguments"},
    "script": {"nargs": argparse.REMAINDER, "help": "script and its arguments"},
}
_USAGE = 2  # exit code of a command line that cannot be used, argparse's too
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1, from 20000 to 31999: below the range that outgoing connections use.

    Raises:
        LaunchError: if there are not so many.
    """
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(200 * count):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
                ports.append(probe.getsockname()[1])
            if len(ports) == count:
                return ports
    raise LaunchError(
        f"found no {count} free ports between 20000 and 31999 on 127.0.0.1; close what uses them, then start again"
    )


def rank_environment(rank: int, size: int, hostfile: Path) -> dict[str, str]:
    """Return the variables of one of `size` local ranks: its place in the ring, and the native kernel's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ring = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)} if size > 1 else {}
    return {**ring, "RINGATTN_THREADS": str(max(1, cores // size))}


class LocalRing:
    """A context that runs n ranks of a script on this machine; leaving it ends them all.

    Entering waits until all ranks have joined the group: StartTimeout after `start_timeout` seconds, RankFailed if one ends
    before. Ranks cannot read stdin.

    Args:
        n: number of ranks.
        argv: script and arguments; or "-m", a module and arguments.
        env: added to each rank's environment, or a function of the rank that returns it.
        start_timeout: seconds until all ranks must have joined.
        echo: called with (rank, line) for every line of output, from other threads; None only keeps the output.
    """

    def __init__(
        self,
        n: int,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | Callable[[int], Mapping[str, str]] | None = None,
        start_timeout: float = 60.0,
        echo: Echo | None = None,
    ) -> None:
        if n < 1 or not argv:
            raise LaunchError("a local ring needs at least one rank and a script: -n 2 script.py")
        self.size = n
        self._program = argv[1] if argv[0] == "-m" else argv[0]
        self._argv, self._env, self._start_timeout, self._echo = list(argv), env, start_timeout, echo
        self.processes: list[subprocess.Popen[str]] = []
        self._lines: list[deque[str]] = [deque(maxlen=_KEPT_LINES) for _ in range(n)]
        self._pumps: list[threading.Thread] = []
        self._stop, self._ended, self._spawned = threading.Event(), threading.Event(), threading.Event()
        self._spawn_error: BaseException | None = None
        self._failed: int | None = None
        self._ended_before: list[int] = []  # ranks that ended with exit code 0 before one failed

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ringattn-")
        ready_read, ready_write = os.pipe()
        # Ranks die with the thread that started them (PDEATHSIG), so it must live as long as they do.
        self._supervisor = threading.Thread(
            target=self._supervise, args=(ready_write,), name="ringattn-supervisor", daemon=True
        )
        self._supervisor.start()
        self._spawned.wait()
        os.close(ready_write)
        try:
            if self._spawn_error is not None:
                raise LaunchError(f"the ranks cannot be started: {self._spawn_error}") from self._spawn_error
            self._await_ready(ready_read)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(ready_read)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _supervise(self, ready_write: int) -> None:
        try:
            self._spawn(ready_write)
        except OSError as error:
            self._spawn_error = error
            self._stop.set()
        self._spawned.set()
        running = dict(enumerate(self.processes))
        while running and not self._stop.wait(0.02):
            for rank, process in list(running.items()):
                if process.poll() is not None:
                    del running[rank]
                    if process.returncode and self._failed is None:
                        self._failed = rank
                        self._stop.set()
                    elif self._failed is None:
                        self._ended_before.append(rank)
        _end(self.processes)
        self._ended.set()

    def _spawn(self, ready_write: int) -> None:
        hostfile = Path(self._folder.name) / "hosts.json"
        hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(self.size)]), "utf-8")
        for rank in range(self.size):
            own = self._env(rank) if callable(self._env) else self._env or {}
            process = subprocess.Popen(
                [sys.executable, "-m", "ringattn.blas", _rank.__name__, *self._argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=(ready_write,),
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **rank_environment(rank, self.size, hostfile),
                    **own,
                    _rank.READY_FD: str(ready_write),
                    _rank.START_TIMEOUT: str(self._start_timeout),
                },
            )
            self.processes.append(process)
            assert process.stdout is not None
            pump = threading.Thread(target=self._pump, args=(rank, process.stdout), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def _pump(self, rank: int, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines[rank].append(line.rstrip("\n"))
                if self._echo is not None:
                    self._echo(rank, line.rstrip("\n"))

    def _await_ready(self, pipe: int) -> None:
        deadline = time.monotonic() + self._start_timeout
        joined = 0
        while joined < self.size:
            remaining = deadline - time.monotonic()
            if select.select([pipe], [], [], max(0.0, min(remaining, 0.1)))[0]:
                got = os.read(pipe, self.size)
                joined += len(got)
                if not got and joined < self.size:
                    self._ended.wait()
            if self._failed is not None:
                self._raise_failed()
            if remaining <= 0:
                raise StartTimeout(
                    f"{joined} of {self.size} ranks of {self._program} joined within {self._start_timeout:g} s; "
                    "raise start_timeout if this machine is busy"
                )

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every rank has ended with exit code 0; RankFailed if one did not.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            RunTimeout: if ranks still run after the timeout; all are ended.
        """
        if not self._ended.wait(timeout):
            self.stop()
            raise RunTimeout(f"{self._program} on {self.size} ranks did not end within {timeout:g} s; all were ended")
        self.stop()
        if self._failed is not None:
            self._raise_failed()

    def _raise_failed(self) -> None:
        assert self._failed is not None
        rank = self._failed
        self.stop()
        code = self.processes[rank].returncode
        how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        # A program that refuses its arguments has said so in a line, on one of the ranks, which `echo` has shown.
        said = code == _USAGE and self._echo is not None and any(map(any, self._lines))
        lines = self.output(rank)[-8:]
        tail = "its last lines:\n  " + "\n  ".join(lines) if lines else "it wrote nothing"
        if self._ended_before:
            one = len(self._ended_before) == 1
            ended = f"{'rank' if one else 'ranks'} {', '.join(map(str, self._ended_before))}"
            tail = f"{ended} had ended before with exit code 0; {tail}"
        tail = "the message is above" if said else tail
        raise RankFailed(f"rank {rank} of {self.size} ({self._program}) {how}; {tail}", rank=rank, returncode=code)

    def stop(self) -> None:
        """End every rank, in any state, and wait until all are gone."""
        self._stop.set()
        self._supervisor.join()
        for pump in self._pumps:
            pump.join(_GRACE)  # a grandchild in another session may still hold the pipe
        self._folder.cleanup()

    def output(self, rank: int) -> list[str]:
        """Return the last lines that a rank wrote to stdout and stderr."""
        return list(self._lines[rank])


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Send SIGTERM, then SIGKILL, to each rank's whole session; continue stopped processes so that they can end."""
    for process in processes:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            _signal(process, signal.SIGCONT)
    deadline = time.monotonic() + _GRACE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        _signal(process, signal.SIGKILL)  # also processes that a rank left in its session
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def run(
    n: int,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | Callable[[int], Mapping[str, str]] | None = None,
    start_timeout: float = 60.0,
    timeout: float | None = None,
    echo: Echo | None = None,
) -> list[list[str]]:
    """Run n local ranks to the end and return every rank's lines of output, in rank order; failures are kinds of LaunchError.

    Args:
        n: number of ranks.
        argv: script and arguments; or "-m", a module and arguments.
        env: as for `LocalRing`.
        start_timeout: as for `LocalRing`.
        timeout: seconds until all ranks must have ended.
        echo: as for `LocalRing`.
    """
    with LocalRing(n, argv, env=env, start_timeout=start_timeout, echo=echo) as ring:
        ring.wait(timeout)
        return [ring.output(rank) for rank in range(n)]


def missing_program(argv: Sequence[str]) -> str | None:
    """Return why no rank could run a program, and what to do; None if it is there. Nothing of it is imported.

    Args:
        argv: script and arguments; or "-m", a module and arguments.
    """
    if argv[0] != "-m":
        return None if Path(argv[0]).exists() else f"{argv[0]}: no such script; check its path from {Path.cwd()}"
    name = argv[1]
    top, *inner = name.split(".")
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())]) or importlib.util.find_spec(top)
        for depth, _ in enumerate(inner, 2):
            places = [] if spec is None else spec.submodule_search_locations or []
            spec = importlib.machinery.PathFinder.find_spec(".".join([top, *inner][:depth]), list(places))
        places = [] if spec is None else spec.submodule_search_locations or []
        if places and importlib.machinery.PathFinder.find_spec(f"{name}.__main__", list(places)) is None:
            return f"{name}: a package without __main__, which cannot be run; name one of its modules"
        if spec is not None:
            return None
    return (
        f"{name}: no such module in {Path.cwd()} or this Python's packages; check its name, start from its project's "
        "folder, or install it"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 a rank failed or timed out, 2 wrong arguments, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m ringattn.launch",
        description="Launch n local ranks of a script.",
        epilog="example: python -m ringattn.launch -n 2 -m worker.train --data data",
    )
    for name, settings in OPTIONS.items():
        parser.add_argument(name, **settings)
    options = parser.parse_args(arguments)
    argv = options.script or (["-m", *options.m] if options.m else [])
    if not argv:
        parser.error("name a script or a module: python -m ringattn.launch -n 2 script.py, or -n 2 -m MODULE")
    if (fault := missing_program(argv)) is not None:
        print(f"launch: {fault}", file=sys.stderr)
        return _USAGE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(
            options.n,
            argv,
            start_timeout=options.start_timeout,
            timeout=options.timeout,
            echo=lambda rank, line: print(
                f"[{rank}] {line}\n", end="", flush=True
            ),  # one write, as ranks print concurrently
        )
    except LaunchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("launch: interrupted; all ranks were ended", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # ringattn alone in another project: streams stay as they are
        from ingest.console import protect

        protect()
    sys.exit(main())
