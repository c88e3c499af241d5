"""A coordinator on host 0 of a bed with workers on all hosts, observed from outside."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from scripts.testbed.bed import Bed
from tests.support import control_data
from tests.support.program import TRAINING, environment
from tests.support.waiting import end_of, footprint, until


class Fleet:
    """`coordinator start --hostfile …` in the home folder of host 0; each host's data folder is its own."""

    def __init__(self, bed: Bed) -> None:
        self.bed, self.home = bed, bed.hosts[0].home
        self.data = self.home / "energy"
        self.log = bed.folder / "coordinator.log"

    def start(self, *arguments: str | Path, hostfile: Path | None = None) -> None:
        command = [sys.executable, "-m", "coordinator", "start", "--json", "--data", str(self.data)]
        command += ["--hostfile", str(hostfile or self.bed.hostfile), "--host-data", "~/data", *map(str, arguments)]
        env = environment(PYTHONFAULTHANDLER="1")  # see `end_of`
        with self.log.open("ab") as log:
            self.process = self.bed.hosts[0].popen(*command, stdout=subprocess.PIPE, stderr=log, env=env)

    def training(self, **config: int) -> Path:
        """Write small settings for --train-config, and return the path."""
        path = self.home / "small.toml"
        path.write_text(
            "".join(f"{name} = {value}\n" for name, value in ({**TRAINING, "checkpoint_every": 2} | config).items())
        )
        return path

    def control(self, iterations: int, **pathwise: int) -> Path:
        """Write small settings for --control-config, and return the path."""
        return control_data.config(self.home / "control.toml", iterations, "pathwise", pathwise)

    def steps(self) -> list[dict[str, Any]]:
        """Return the metrics of every step that the coordinator has received."""
        path = self.data / "train" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if '"loss"' in line]

    def coordinator(self) -> psutil.Process:
        """Return the coordinator's process, a child of the one that entered the namespaces."""
        return next(
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "coordinator" in child.cmdline() and "start" in child.cmdline()
        )

    def signal(self, number: int) -> None:
        self.coordinator().send_signal(number)

    def workers(self) -> dict[str, list[psutil.Process]]:
        """Return the workers that ssh started, by host name."""
        return {host.name: host.running("worker.process.remote_main") for host in self.bed.hosts}

    def await_workers(self) -> None:
        """Wait until every host has a registered worker."""
        marks = [host.data / "id" for host in self.bed.hosts]
        self.until(
            lambda: all(self.workers().values()) and all(mark.exists() for mark in marks), "a worker on every host"
        )

    def progress(self) -> object:
        """Return a value that changes while the run gets on: the files of the coordinator and of every host, but the run's log."""
        return footprint(self.data, *(host.data for host in self.bed.hosts))

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for the end; return exit code and summary. Asserts that no process is left on any host."""
        out, _ = end_of(self.process, f"the end of the run: see {self.log}", self.progress)
        self.assert_no_processes()
        lines = out.decode().strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else {}

    def kill(self) -> None:
        """Kill the coordinator by SIGKILL. Asserts that no process is left on any host."""
        self.signal(signal.SIGKILL)
        end_of(self.process, "the end of the killed coordinator")
        self.assert_no_processes()

    def assert_no_processes(self) -> None:
        for host in self.bed.hosts:
            until(lambda host=host: not host.processes(), f"the end of all processes of {host.name}")  # type: ignore[misc]

    def until(self, condition: Callable[[], Any], what: str) -> float:
        """Wait for a condition and return the seconds. Fails if the run ends with the coordinator's last output, or if it does not progress."""
        began = time.monotonic()

        def holds() -> bool:
            ended = self.process.poll() is not None
            found = bool(condition())
            assert found or not ended, f"the run was over before {what}: {self.log_text()[-3000:]}"
            return found

        until(holds, what, self.progress)
        return time.monotonic() - began

    def registered_hosts(self) -> list[str]:
        """Return the hosts with a registered worker."""
        command = [sys.executable, "-m", "coordinator", "status", "--json", "--data", str(self.data)]
        asked = self.bed.hosts[0].popen(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
        out, _ = end_of(asked, "the answer about the status", self.progress)
        return [worker["host"] for worker in json.loads(out)["workers"]] if asked.returncode == 0 else []

    def line(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a measurement as a JSON line: with the machine, and seconds rounded to a hundredth."""
        machine = {"machine": platform.platform(terse=True), "cores": os.cpu_count(), "hosts": len(self.bed.hosts)}
        return machine | {name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}

    def log_text(self) -> str:
        return self.log.read_text()
