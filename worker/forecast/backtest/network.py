"""The network as a contender: `worker/train.py` trains it anew for each walk, on the hours that the walk's first issue time knows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.wire.exit_codes import ExitCode
from ingest.calendar import calendar_of
from ingest.errors import IngestError, UsageError
from ingest.loader import available, respondents_on_disk
from ingest.publication import Publication
from worker.forecast.backtest.contender import Log, key_of
from worker.forecast.backtest.rows import WalkRows
from worker.forecast.backtest.schedule import Walk, month_text
from worker.forecast.predict import load_model, predict
from worker.training.tokens import LINEAR_VERSION, Period

VALIDATION = 90  # days before a walk that end its training; the days before them train
TRAIN = Path(__file__).resolve().parents[2] / "train.py"
NO_WATCHDOG_S = 1e7  # seconds: a training is watched by its own deadline, and ends with this process


class TrainingStopped(IngestError):
    """A training ended before its last step; the same command resumes from its newest checkpoint."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class NetworkContender:
    """The network, trained again each `every` months in a process of its own, as `coordinator start --train` trains it on one rank."""

    data_dir: Path
    respondents: tuple[str, ...]
    every: int  # months
    publication: Publication
    config: Path | None  # TOML file of settings of worker/train.py; None: its defaults
    folder: Path  # of the runs
    log: Log
    name: str = "network"

    def key(self, walk: Walk) -> str:
        """Return the digest of a walk."""
        config = self.config.read_text("utf-8") if self.config is not None else ""
        # With `reference = "linear"` every authority on disk is read.
        settings = [LINEAR_VERSION, config, self.respondents]
        return key_of(self.data_dir, walk, respondents_on_disk(self.data_dir), self.publication, settings)

    def forecast(self, walks: Sequence[Walk]) -> Iterator[list[WalkRows]]:
        """Yield the rows of each walk."""
        for walk in walks:
            run = self.folder / f"{month_text(walk.first)}-{self.key(walk)}"
            if not (run / "result.json").exists():
                self._train(walk, run)
            trained = load_model(run)
            store = trained.open_store(self.data_dir, self.log)
            parts = []
            for region, name in enumerate(trained.respondents):
                period = walk.hours(name)
                period = Period(period.first, min(period.last, store.period(region).last))
                found = predict(trained, store, name, period)
                cutoff = calendar_of(name, period.first, period.last, publication=store.publication).issue
                parts.append(WalkRows(name, found.hours, cutoff, found.demand.astype(np.float64), found.quantiles))
            yield parts

    def periods(self, walk: Walk) -> tuple[str, str]:
        """Return the hours that train and those that validate, as worker/train.py takes them: whole days before the first issue time."""
        known = min(self._first_cutoff(walk, name) for name in self.respondents)
        day = (known + 1) // 24 - 1  # the last UTC day of which every hour is known
        start = np.datetime64(day - VALIDATION + 1, "D")
        year = min(available(self.data_dir, name).years[0] for name in self.respondents)
        return f"{year}:{start - 1}", f"{start}:{np.datetime64(day, 'D')}"

    def _train(self, walk: Walk, run: Path) -> None:
        """Train to the end in a process of its own.

        Raises:
            UsageError: its settings, or the hours, can't be used.
            TrainingStopped: it ended before its last step.
            IngestError: it failed.
        """
        train, validate = self.periods(walk)
        self.log(f"{walk}: training on hours to {train.partition(':')[2]}, validated on {validate}")
        flags = {
            "data": self.data_dir,
            "run": run,
            "respondents": ",".join(self.respondents),
            "train": train,
            "validate": validate,
            "publication": self.publication,
        }
        flags |= {"config": self.config} if self.config is not None else {}
        command = [sys.executable, "-m", "worker.process.rank_main", str(NO_WATCHDOG_S), str(TRAIN)]
        command += [f"--{name}={value}" for name, value in flags.items()]
        last = ""
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.strip() and not line.startswith("{"):  # its result, which is in result.json
                        last = line.strip()
                        self.log(f"{walk}: {last}")
            finally:
                process.kill()
        code = process.returncode
        if code == ExitCode.USAGE:
            raise UsageError(f"{walk}: {last.partition(': ')[2] or last}")
        if code in (ExitCode.INCOMPLETE, ExitCode.INTERRUPTED) or code < 0:
            raise TrainingStopped(f"{walk}: the training stopped ({last}); run the same command again to resume it")
        if code:
            raise IngestError(f"{walk}: the training failed: {last}")

    def _first_cutoff(self, walk: Walk, respondent: str) -> int:
        """Return the last hour that is known when the first hour of a walk is forecast."""
        first = walk.hours(respondent).first
        return int(calendar_of(respondent, first, first, publication=self.publication).issue[0])
