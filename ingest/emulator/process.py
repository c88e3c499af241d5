"""Start the emulator as a separate process, for the key-less default, tests and benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# A bound that only a hang exceeds: the recordings world reads its files before it accepts connections, 92 MB in minutes on a
# busy machine.
_START_SECONDS = 900.0
INCOMPLETE = 75  # exit code of a program that the same command resumes
REFUSED = 2  # exit code of an emulator for a world or plan that can't be served
MAX_RESTARTS = 5  # more deaths have a cause that a restart does not remove
_ANSWER_SECONDS = 60.0  # of a control request, which takes milliseconds on an idle machine


class EmulatorError(RuntimeError):
    """The emulator did not start, or refused a control request; the message contains its output.

    Attributes:
        exit_code: of a program that ends by this error; 2 where the emulator refused its options or recordings.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """Store the exit code."""
        super().__init__(message)
        self.exit_code = exit_code


class Emulator:
    """Run an emulator; a context manager. The emulator ends with this process, also when this process is killed."""

    def __init__(self, *options: str, keyless: bool = True, faults: Sequence[dict[str, Any]] = ()) -> None:
        """Store the options; `start` starts the process.

        Args:
            options: Of the command line: `Emulator("--policy", "eia", "--clock-scale", "60")`.
            keyless: Serve requests without a key, so that a user without a key can run everything. The command line's
                default is not to serve them.
            faults: A plan as in ingest/emulator/faults/plan.py.
        """
        self._options = (*options, "--keyless") if keyless else options
        self._faults = faults
        self._resources = ExitStack()
        self._log: Path | None = None  # None: not running
        self.url = ""
        self.pid = 0
        self.world = ""
        self._process: subprocess.Popen[str] | None = None
        self._restarts = 0

    def start(self) -> Emulator:
        """Start the process and wait until it accepts connections.

        Returns:
            This object.

        Raises:
            EmulatorError: It ended, or printed nothing for 15 minutes, before it accepted connections.
        """
        folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="emulator-")))
        self._log, errors = folder / "requests.jsonl", folder / "stderr.txt"
        process = self._spawn(self._log, errors)
        timer = threading.Timer(_START_SECONDS, process.kill)
        timer.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            code = process.wait()
            output = errors.read_text("utf-8", "replace")[-2000:].strip() or f"no line in {_START_SECONDS:g} s"
            self.stop()
            reason = output.splitlines()[-1]
            if code == REFUSED:
                raise EmulatorError(reason, REFUSED)
            raise EmulatorError(f"the emulator did not start: {reason}")
        self.url, self.pid, self.world = (json.loads(line)[key] for key in ("url", "pid", "world"))
        if self._faults:
            self.set_faults(self._faults)
        return self

    def _spawn(self, requests: Path, errors: Path, *more: str) -> subprocess.Popen[str]:
        """Start the process, which logs to `requests` and writes its errors to `errors`, with `more` options."""
        command = [sys.executable, "-m", "ingest.emulator", "--stop-with-parent", "--log", str(requests)]
        with errors.open("wb") as stderr:
            process = self._resources.enter_context(
                subprocess.Popen(
                    [*command, *self._options, *more],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    start_new_session=True,  # Ctrl-C ends a run when its tasks have ended, which still need this server
                )
            )
        self._resources.callback(_end, process)
        self._process = process
        return process

    def revive(self) -> str:
        """Start the process again, at the same address, if it ended by itself; do not wait until it accepts connections.

        Returns:
            A line about it; "" where there is nothing to do.

        Raises:
            EmulatorError: It has ended too often. The same command goes on where this one ended.
        """
        if self._log is None or self._process is None or (code := self._process.poll()) is None:
            return ""
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        errors = self._log.with_name("stderr.txt")
        if self._restarts == MAX_RESTARTS:
            last = errors.read_text("utf-8", "replace")[-2000:].strip().splitlines()[-1:]
            reason = "".join(f": {line}" for line in last)
            raise EmulatorError(f"the emulator ended with {how}{reason}; run the same command again", INCOMPLETE)
        self._restarts += 1
        self.pid = self._spawn(self._log, errors, "--port", str(urlsplit(self.url).port)).pid
        return f"the emulator ended with {how}: restarted"

    def stop(self) -> None:
        """End the process; safe to call again."""
        self._log = None
        self._resources.close()

    def __enter__(self) -> Emulator:
        """Start the process."""
        return self.start()

    def __exit__(self, *exc: object) -> None:
        """End the process."""
        self.stop()

    def stats(self) -> dict[str, Any]:
        """Return the counts since the start: see ingest/emulator/stats.py."""
        return self._control("stats", None)

    def requests(self) -> list[dict[str, Any]]:
        """Return the log, one dict a request: time, path, query (no key), page, status, rows, bytes, fault."""
        log = self._running()
        return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []

    def set_faults(self, plan: Sequence[dict[str, Any]]) -> None:
        """Replace the fault plan and forget the requests counted so far; a wrong plan raises EmulatorError."""
        self._control("faults", list(plan))

    def advance(self, seconds: float) -> None:
        """Move the emulated clock forward."""
        self._control("advance", {"seconds": seconds})

    def _running(self) -> Path:
        if self._log is None:
            raise EmulatorError("the emulator is not running; call start() or use it in a with statement")
        return self._log

    def _control(self, command: str, body: Any) -> dict[str, Any]:
        self._running()
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
        try:
            with opener.open(
                urllib.request.Request(f"{self.url}/_emulator/{command}", data), timeout=_ANSWER_SECONDS
            ) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise EmulatorError(error.read().decode()) from None


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
