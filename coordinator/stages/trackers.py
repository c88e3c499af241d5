"""Report the figures of a training to experiment trackers: TensorBoard, MLflow, Weights & Biases (`--report-to`).

A thread for each tracker follows the run folder's `metrics.jsonl`, which has every figure, so that no tracker delays a training or another tracker. What was
reported is in `trackers.json` there: a training that resumes goes on with the same runs and repeats nothing. A tracker that fails is
named and left out; the training goes on.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ingest.console import brief
from ingest.errors import UsageError
from ingest.files import LineFollower, atomic_write
from ingest.metrics import figures_of

STATE, METRICS = "trackers.json", "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"  # in the run folder
PROJECT = "ring-attention-energy"
POLL_S = 1.0
OPEN_S = 10.0  # for a tracker to be opened, until a line says that it is late
END_S = 30.0  # for all trackers to take the last figures and end: MLflow takes ten to make a database, and minutes to give up a server
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
    """Reads new lines of a run folder's metrics and gives each figure to one tracker once.

    All of it may be called in a thread of its own, because a tracker's library may wait for a server as long as it likes.
    """

    def __init__(self, run: Path, name: str, config: Mapping[str, Any], note: Callable[[str], None]) -> None:
        """Read what was reported before.

        Args:
            run: Run folder.
            name: Tracker.
            config: The training's configuration, as the tracker shows it.
            note: Takes a line about a tracker that fails.
        """
        self._run, self.name, self._config, self._note = run, name, config, note
        self._lines = LineFollower(run / METRICS)
        before = _state(run).get(name, {})
        self._run_id: str = before.get("run", "")
        self._last: dict[str, int] = before.get("last", {})
        self._tracker: Tracker | None = None

    def open(self) -> bool:
        """Open the tracker; False: it cannot be, which is noted."""
        try:
            self._tracker = TRACKERS[self.name](self._run, self._run.name, self._run_id, self._config)
        except BaseException as error:  # whatever a tracker's library raises, sys.exit() included
            self._fail("cannot be opened and is left out", error)
            return False
        return True

    def poll(self) -> bool:
        """Report the lines that were added since the last call. False: the tracker failed, which is noted."""
        lines = [figures for line in self._lines.poll() if (figures := scalars(line)) is not None]
        try:
            for step, values in lines if self._tracker is not None else ():
                new = {figure: value for figure, value in values.items() if step > self._last.get(figure, -1)}
                if new and self._tracker is not None:
                    self._tracker.log(step, new)
                    self._last.update(dict.fromkeys(new, step))
        except BaseException as error:
            self._fail("failed and is left out", error)
            return False
        finally:
            if lines and self._tracker is not None:
                self._keep(self._tracker.run_id)
        return True

    def _keep(self, run_id: str) -> None:
        with _state_lock:
            known = {**_state(self._run), self.name: {"run": run_id, "last": self._last}}
            atomic_write(self._run / STATE, json.dumps(known).encode())

    def close(self) -> None:
        """End the tracker's run."""
        try:
            if self._tracker is not None:
                self._tracker.close()
        except BaseException as error:
            self._fail("did not end as it should", error)

    def _fail(self, how: str, error: BaseException) -> None:
        self._note(f"report-to {self.name} {how}: {brief(error)}. {self._run / METRICS} has all figures")

    def follow(self, opened: threading.Event, ended: threading.Event) -> None:
        """Report until `ended`, then the rest; `opened` is set when the tracker was opened, or could not be."""
        try:
            usable = self.open()
        finally:
            opened.set()
        while usable and not ended.wait(POLL_S):
            usable = self.poll()
        if usable and self.poll():
            self.close()


_state_lock = threading.Lock()  # of the file that all trackers of a run share


def _state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / STATE).read_bytes()) if (run / STATE).exists() else {}
    return found


@contextmanager
def reporting(
    run: Path, names: Sequence[str], config: Mapping[str, Any], note: Callable[[str], None]
) -> Iterator[None]:
    """Inside, report what a training writes to its run folder; nothing without a tracker.

    Each tracker has a thread of its own. One that fails is noted and left out; one that does not answer at the start is noted, and its figures follow
    when it does; at the end all together have `END_S`.
    """
    if not names:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    ended, threads = threading.Event(), {}
    for name in names:
        opened = threading.Event()
        reporter = Reporter(run, name, config, note)
        threads[name] = threading.Thread(
            target=reporter.follow, args=(opened, ended), name=f"tracker-{name}", daemon=True
        )
        threads[name].start()
        threading.Thread(target=_tell_late, args=(name, opened, ended, note), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        until = time.monotonic() + END_S
        for name, thread in threads.items():
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                note(f"report-to {name} has not ended after {END_S:.0f} s and is left. {run / METRICS} has all figures")


def _tell_late(name: str, opened: threading.Event, ended: threading.Event, note: Callable[[str], None]) -> None:
    if not opened.wait(OPEN_S) and not ended.is_set():
        note(f"report-to {name} has not answered for {OPEN_S:.0f} s; the training goes on, its figures follow")


def scalars(line: bytes) -> tuple[int, Scalars] | None:
    """Return the step and the numbers of a line of metrics, those in lists and maps under their own names; None for no such line."""
    figures = figures_of(line)
    if figures is None:
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
