"""Start the emulator as a process of its own, for the key-less default, tests and benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_START_SECONDS = 30.0  # the recordings world reads its files before it accepts connections


class EmulatorError(RuntimeError):
    """The emulator did not start, or refused a control request; the message holds what it said."""


class Emulator:
    """A running emulator; a context manager. It ends with this process, also when that is killed.

    `options` are the command line's: `Emulator("--policy", "eia", "--clock-scale", "60")`. Requests without a key are
    served unless `keyless=False` (the command line's own default), so that a user without a key can run everything.
    `faults` is a plan as in ingest/emulator/faults/plan.py.
    """

    def __init__(self, *options: str, keyless: bool = True, faults: Sequence[dict[str, Any]] = ()) -> None:
        self._options = (*options, "--keyless") if keyless else options
        self._faults = list(faults)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.pid = 0
        self.world = ""

    def start(self) -> Emulator:
        """EmulatorError when it ends, or says nothing, before it accepts connections."""
        self._folder = tempfile.TemporaryDirectory(prefix="emulator-")
        errors = Path(self._folder.name) / "stderr.txt"
        command = [
            sys.executable,
            "-m",
            "ingest.emulator",
            "--stop-with-parent",
            "--log",
            str(self._log),
            *self._options,
        ]
        with errors.open("w") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self._process.wait()
            said = errors.read_text()[-2000:]
            self.stop()
            raise EmulatorError(f"the emulator did not start ({' '.join(command)}): {said}")
        hello = json.loads(line)
        self.url, self.pid, self.world = hello["url"], hello["pid"], hello["world"]
        if self._faults:
            self.set_faults(self._faults)
        return self

    def stop(self) -> None:
        """End the process; safe to call again."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stats(self) -> dict[str, Any]:
        """What it counted since its start: see ingest/emulator/stats.py."""
        return self._control("stats", None)

    def requests(self) -> list[dict[str, Any]]:
        """The log so far, one dict a request: time, path, query (no key), page, status, rows, bytes, fault."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def set_faults(self, plan: Sequence[dict[str, Any]]) -> None:
        """Replace the fault plan and forget what the old one had hit. EmulatorError when the plan is wrong."""
        self._control("faults", list(plan))

    def advance(self, seconds: float) -> None:
        """Move the emulated clock forward."""
        self._control("advance", {"seconds": seconds})

    @property
    def _log(self) -> Path:
        if self._folder is None:
            raise EmulatorError("the emulator is not running; call start() or use it in a with statement")
        return Path(self._folder.name) / "requests.jsonl"

    def _control(self, what: str, body: Any) -> dict[str, Any]:
        if self._process is None:
            raise EmulatorError("the emulator is not running; call start() or use it in a with statement")
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
        try:
            with opener.open(urllib.request.Request(f"{self.url}/_emulator/{what}", data), timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise EmulatorError(error.read().decode()) from None
