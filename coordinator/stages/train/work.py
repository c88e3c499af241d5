"""The work of a training as parts: its start, steps, validations and end, for the estimate of the time left. No I/O."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from coordinator.scheduling.progress import Part
from coordinator.stages.train.ring_state import Rank

START_S = 10.0  # until the first step, before a run has measured it: modules, tokens, ring
FINISH_S = 3.0  # from the last validation to the end: checkpoint, result, workers
STEP, VALIDATION = "step", "validate"  # parts, which take turns
YEAR_HOURS = 8_760
VALIDATION_HOURS = 2_208  # the last quarter of a year, by default
# Of a validation, in steps: what each one takes, and an hour that it reads, with a longer context, over one that trains. Measured.
VALIDATION_STEPS, FORWARD = 0.3, 0.45
# Defaults of worker/training/config.py, which nothing of the coordinator loads; a test compares them.
DEFAULTS = {"steps": 160, "validate_every": 20, "context": 26_280, "pieces": 0, "piece_hours": 4_380}
MIN_PIECES = 6  # likewise, of worker/training/loop.py
# Settings on which the time of a step does not depend.
UNTIMED = (
    *("steps", "patience", "seed", "validate_every", "checkpoint_every", "timeout"),
    *("learning_rate", "warmup", "weight_decay", "clip", "average", "flip"),
)


@dataclass(frozen=True)
class TrainingPlan:
    """What a training is to do, as its configuration and the series on disk say."""

    steps: int
    validate_every: int
    validation_steps: float  # steps that take as long as a validation, about

    @classmethod
    def of(cls, config: bytes, years: Mapping[str, Collection[int]]) -> Self:
        """Return the plan of a configuration file's content, for respondents with these years on disk, of which the last one is a test.

        A value that the training will refuse counts as the default.
        """
        asked: dict[str, Any] = tomllib.loads(config.decode())
        hours = [YEAR_HOURS * max(len(those) - 1, 1) for those in years.values()]
        given = {name: asked[name] for name in DEFAULTS if isinstance(asked.get(name), int) and asked[name] > 0}
        of = DEFAULTS | given
        trained = (of["pieces"] or max(MIN_PIECES, len(hours))) * of["piece_hours"]
        validated = sum(min(each, of["context"] + VALIDATION_HOURS) for each in hours)
        return cls(of["steps"], of["validate_every"], VALIDATION_STEPS + FORWARD * validated / trained)

    @property
    def validations(self) -> int:
        """How many validations there are, the one of the last step included."""
        return -(-self.steps // self.validate_every)


class TrainingWork:
    """Counts the steps and validations of a training. What is repeated after a fault counts once."""

    def __init__(self, plan: TrainingPlan, resumed: int) -> None:
        """Take the plan, and the step from which the training goes on."""
        self.plan, self._resumed = plan, resumed
        self.furthest = resumed  # step
        self._validated = resumed // plan.validate_every

    def parts(self, ranks: Sequence[Rank] = ()) -> tuple[Part, ...]:
        """Return the parts of the training, with these ranks at work."""
        first = next((rank for rank in ranks if rank.number == 0 and rank.ended is None), None)
        phase = "" if first is None else first.phase
        step = max((rank.step for rank in ranks), default=-1)
        began = max(step, self.furthest) > self._resumed
        self.furthest = max(self.furthest, step)
        every, steps = self.plan.validate_every, max(self.plan.steps, self.furthest)
        validations = max(self.plan.validations, self._validated)
        if phase in ("checkpoint", "end"):  # what a validation is followed by
            over = self.plan.validations if self.furthest >= steps else self.furthest // every
        else:
            over = max(self.furthest - 1, 0) // every
        self._validated = max(self._validated, over)
        if phase == "end":  # validation may have ended it before its last step
            steps, validations = self.furthest, self._validated
        return (
            Part("start", "", float(began), 1.0, START_S),
            Part(STEP, "steps", self.furthest, steps, turn=phase in ("step", "checkpoint")),
            Part(
                VALIDATION,
                "",
                self._validated,
                validations,
                turn=phase == VALIDATION,
                like=STEP,
                like_units=self.plan.validation_steps,
            ),
            Part("finish", "", 0.0, 1.0, FINISH_S),
        )


def like(config: bytes, ranks: int, years: Mapping[str, Collection[int]]) -> str:
    """Return what the time of a step depends on: the configuration, the ranks, the series."""
    timed = {name: value for name, value in tomllib.loads(config.decode()).items() if name not in UNTIMED}
    digest = hashlib.sha256(json.dumps(timed, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{digest}, {ranks} ranks, {sum(map(len, years.values()))} series"
