"""Follow the metrics of a training or of a control training; keep a bounded number of their points, evenly thinned out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.report.model import Control, Floats, Training
from ingest.files import LineFollower
from ingest.metrics import figures_of, number_of

MAX_POINTS = 600  # of a curve: twice the pixels that a phone gives it
TRAINED = ("loss", "attention_share", "wait_share", "tokens_per_s", "coverage_80", "skill")
LEARNED = ("losses/cost", "charts/episodic_return", "charts/mean_cost")  # as in the report, most informative first


@dataclass
class Curve:
    """Points (x, y) of a growing curve. When there are too many, every second one is dropped, and of new ones as many are skipped."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    every: int = 1
    _skipped: int = 0

    def add(self, x: float, y: float) -> None:
        """Take a point."""
        self._skipped += 1
        if self._skipped < self.every:
            return
        self._skipped = 0
        self.x.append(x)
        self.y.append(y)
        if len(self.x) > MAX_POINTS:
            self.x, self.y, self.every = self.x[::2], self.y[::2], 2 * self.every

    def arrays(self) -> tuple[Floats, Floats]:
        """Return x and y as arrays."""
        return np.array(self.x, float), np.array(self.y, float)


class MetricCurves:
    """The curves of one metrics.jsonl."""

    def __init__(self, path: Path, x: str) -> None:
        """Follow `path`, whose lines have `x`."""
        self._lines, self._x = LineFollower(path), x
        self._clear()

    def _clear(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.newest: dict[str, Any] = {}
        self.ranks: set[int] = set()

    def poll(self) -> bool:
        """Read new lines; return whether there were any. A file that replaced the earlier one is read from its start."""
        lines = self._lines.poll()
        if self._lines.replaced:
            self._clear()
        for line in lines:
            if (figures := figures_of(line)) is not None and number_of(figures, self._x) is not None:
                self._take(figures)
        return bool(lines)

    def _take(self, figures: Mapping[str, Any]) -> None:
        self.newest.update(figures)
        if isinstance(figures.get("ranks"), int):
            self.ranks.add(figures["ranks"])
        values = {name: figures[name] for name in (*TRAINED, *LEARNED) if name in figures}
        skills = figures.get("skills")
        if isinstance(skills, dict):
            values |= {f"skill of {name}": value for name, value in skills.items()}
        at = number_of(figures, self._x)
        for name in values:
            if at is not None and (value := number_of(values, name)) is not None:
                self.curves.setdefault(name, Curve()).add(at, value)

    def arrays(self, name: str) -> tuple[Floats, Floats]:
        """Return a curve as arrays; empty ones if there is none."""
        return self.curves.get(name, Curve()).arrays()


def training_of(metrics: MetricCurves, run: Path) -> Training | None:
    """Return a training as the report's charts take it; None: it has no step yet."""
    if not metrics.curves:
        return None
    own = {name.removeprefix("skill of "): name for name in metrics.curves if name.startswith("skill of ")}
    return Training(
        loss=metrics.arrays("loss"),
        skill={name: metrics.arrays(key) for name, key in sorted(own.items())} | {"mean": metrics.arrays("skill")},
        coverage80=metrics.arrays("coverage_80"),
        ranks=tuple(sorted(metrics.ranks)),
        tokens_per_s=float(np.median(metrics.arrays("tokens_per_s")[1]))
        if "tokens_per_s" in metrics.curves
        else np.nan,
        result=_json(run / "result.json"),
        config={},
        verified=(run / "proved.json").exists(),
    )


def control_of(metrics: MetricCurves, history: tuple[Floats, Floats], run: Path) -> Control | None:
    """Return a control training as the report's charts take it, without its weeks; None: there is nothing of it yet."""
    result = _json(run / "result.json")
    if not metrics.curves and not result and not len(history[0]):
        return None
    name = next((one for one in LEARNED if one in metrics.curves), "")
    return Control(
        result=result,
        pops=result.get("test_pop", {}),
        history=history,
        curve=(name, *metrics.arrays(name)),
        weeks=(),
        intro="",
        tables={},
        known=str(result.get("known", "")),
        verified=(run / "proved.json").exists(),
    )


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return {}
