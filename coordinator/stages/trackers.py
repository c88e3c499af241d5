"""Report the figures of a training to experiment trackers: TensorBoard, MLflow, Weights & Biases (`--report-to`).

A thread follows the run folder's `metrics.jsonl`, which has every figure, so that a tracker delays no training step. What was reported is in
`trackers.json` there: a training that resumes goes on with the same runs and repeats nothing. A tracker that fails is named and
left out; the training goes on.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ingest.errors import UsageError
from ingest.files import LineFollower, atomic_write

STATE, METRICS = "trackers.json", "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"  # in the run folder
PROJECT = "ring-attention-energy"
POLL_S = 1.0
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}  # tracker → module and package
STEPS = ("step", "version")  # which figure counts a line's progress: of a training, of a control training
Scalars = dict[str, float]


class Tracker(Protocol):
    """One tracker's run."""

    run_id: str  # by which a later process goes on with it; "": it needs none

    def log(self, step: int, values: Scalars) -> None:
        """Report figures of a step."""

    def close(self) -> None:
        """End the run."""


def parse_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of trackers.

    Raises:
        ValueError: one is unknown.
    """
    if unknown := [name for name in names if name not in PACKAGES]:
        raise ValueError(f"{', '.join(unknown)} is unknown; choose of {', '.join(PACKAGES)}")
    return tuple(names)


def check_installed(names: Sequence[str]) -> None:
    """Check that each tracker's package is installed, before anything runs.

    Raises:
        UsageError: one is not.
    """
    if missing := [PACKAGES[name] for name in names if find_spec(PACKAGES[name]) is None]:
        raise UsageError(
            f"report-to {','.join(names)}: not installed: {', '.join(missing)}. `uv pip install {' '.join(missing)}`, or leave it out of --report-to."
        )


class TensorBoard:
    """Event files in the run folder."""

    run_id = ""

    def __init__(self, run: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = EventFileWriter(str(run / TENSORBOARD_FOLDER))

    def log(self, step: int, values: Scalars) -> None:
        """Write figures of a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._file.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MLflow:
    """A run of an MLflow server or database: MLFLOW_TRACKING_URI, else MLflow's default."""

    def __init__(self, run: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric, self._client = Metric, MlflowClient()
        self.run_id = run_id or self._new_run(name, config)

    def _new_run(self, name: str, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(PROJECT)
        created: str = self._client.create_run(experiment, run_name=name).info.run_id
        self._client.log_batch(created, params=[Param(key, str(value)[:500]) for key, value in config.items()])
        return created

    def log(self, step: int, values: Scalars) -> None:
        """Send figures of a step."""
        now = int(time.time() * 1e3)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id)


class WandB:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run folder."""

    def __init__(self, run: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=name,
            dir=str(run),
            config=dict(config),
            id=run_id or None,
            resume="allow" if run_id else None,
        )
        self._run.define_metric("*", step_metric="step")
        self.run_id = str(self._run.id)

    def log(self, step: int, values: Scalars) -> None:
        """Send figures of a step."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path, str, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


class Reporter:
    """Reads new lines of a run folder's metrics and gives each figure to the trackers once."""

    def __init__(self, run: Path, names: Sequence[str], config: Mapping[str, Any], note: Callable[[str], None]) -> None:
        """Open each tracker.

        Args:
            run: Run folder.
            names: Trackers.
            config: The training's configuration, as the trackers show it.
            note: Takes a line about a tracker that failed.

        Raises:
            UsageError: One cannot be opened.
        """
        self._run, self._note = run, note
        self._lines = LineFollower(run / METRICS)
        run.mkdir(parents=True, exist_ok=True)
        state = json.loads((run / STATE).read_bytes()) if (run / STATE).exists() else {}
        self._last: dict[str, dict[str, int]] = {name: state.get(name, {}).get("last", {}) for name in names}
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._trackers[name] = TRACKERS[name](run, run.name, state.get(name, {}).get("run", ""), config)
            except Exception as error:  # whatever a tracker's library raises
                self.close()
                raise UsageError(
                    f"report-to {name}: it cannot be opened ({_first_line(error)}). Correct it, or leave it out of --report-to."
                ) from error

    def poll(self) -> None:
        """Report the lines that were added since the last call."""
        lines = [figures for line in self._lines.poll() if (figures := scalars(line)) is not None]
        for name in list(self._trackers) if lines else ():
            self._report(name, lines)
        if lines:
            known = {name: {"run": one.run_id, "last": self._last[name]} for name, one in self._trackers.items()}
            atomic_write(self._run / STATE, json.dumps(known).encode())

    def _report(self, name: str, lines: Sequence[tuple[int, Scalars]]) -> None:
        last = self._last[name]
        try:
            for step, values in lines:
                new = {figure: value for figure, value in values.items() if step > last.get(figure, -1)}
                if new:
                    self._trackers[name].log(step, new)
                    last.update(dict.fromkeys(new, step))
        except Exception as error:
            del self._trackers[name]
            self._note(
                f"report-to {name} failed and is left out: {_first_line(error)}. {self._run / METRICS} has all figures"
            )

    def close(self) -> None:
        """End the trackers' runs."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                self._note(f"report-to {name} did not end as it should: {_first_line(error)}")


@contextmanager
def reporting(
    run: Path, names: Sequence[str], config: Mapping[str, Any], note: Callable[[str], None]
) -> Iterator[None]:
    """Inside, report what a training writes to its run folder; nothing without a tracker. As `Reporter`, it may raise UsageError."""
    if not names:
        yield
        return
    reporter, ended = Reporter(run, names, config, note), threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_S):
            reporter.poll()

    thread = threading.Thread(target=follow, name="trackers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        reporter.poll()
        reporter.close()


def scalars(line: bytes) -> tuple[int, Scalars] | None:
    """Return the step and the numbers of a line of metrics, those in lists and maps under their own names; None for no such line."""
    try:
        figures = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return None
    step = next((figures[name] for name in STEPS if isinstance(figures.get(name), int)), None)
    if step is None:
        return None
    found: Scalars = {}
    for name, value in figures.items():
        if name not in STEPS:
            found |= _numbers(name, value)
    return step, found


def _numbers(name: str, value: Any) -> Scalars:
    if isinstance(value, bool) or value is None:
        return {}
    if isinstance(value, int | float):
        return {name: float(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {found: number for key, inner in items for found, number in _numbers(f"{name}/{key}", inner).items()}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
