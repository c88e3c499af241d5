"""The training loop of one rank: optimiser steps, validation, checkpoints and resume.

A run does not depend on the number of ranks: pieces, sign flips and dropout masks are functions of (seed, step); losses and gradients
are summed over the tokens of all ranks and divided by the count of all. Nor does it depend on the ranks' shares of the tokens, which
load balancing adapts to their speeds (`ringattn.load_balance`). A run that is started again with the same `--run` resumes from its
newest checkpoint, on any number of ranks.
"""

import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import ringattn
from ingest import features
from ingest.errors import UsageError
from ingest.files import atomic_write
from ingest.loader import available, respondents_on_disk
from ingest.publication import Publication
from ringattn.blas import loader as blas
from worker.forecast.model import checkpoint
from worker.forecast.model.checkpoint import Checkpoint
from worker.forecast.model.network import HOURS, QUANTILES, Forecaster, ModelConfig
from worker.training.config import RESUMABLE, TrainConfig, averaged, periods, plain
from worker.training.data import LocalBatch, build_local_batch
from worker.training.metrics import HeartbeatWriter, MetricsWriter, StepRecord, peak_bytes
from worker.training.objective import Objective
from worker.training.segments import Segment, draw_segments, draw_sign_flips, groups_of, segment_of
from worker.training.tokens import Normalisation, Period, Piece, open_token_store, with_forecast
from worker.training.validation import validate

VALIDATION_HOURS = 200_000  # of a sequence, which bounds the memory of a validation of many respondents
MIN_PIECES = 6  # of a step by default; more respondents have one each
INPUTS = [features.VERSION, *features.FEATURES, *features.CONDITION]


@dataclasses.dataclass
class RunProgress:
    """Position of the run; every checkpoint holds it."""

    step: int = 0
    best_step: int = 0
    best_skill: float = -math.inf
    worse: int = 0  # validations since the best one
    # Of each respondent's intervals at the end of the validation hours, where the calibration of its forecasts starts.
    widths: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Trainer:
    """Train the forecaster as one rank of `group`.

    Args:
        config: settings of the run.
        group: the MLX group of all ranks.
        stop: set by a signal handler: all ranks end after the current step, with a checkpoint.

    Raises:
        UsageError: if the settings do not fit the data or the run on disk.
    """

    def __init__(self, config: TrainConfig, group: mx.distributed.Group, stop: threading.Event) -> None:
        self.config, self.group, self._stop = config, group, stop
        self.rank, self.size = group.rank(), group.size()
        self._heartbeats = HeartbeatWriter(config.heartbeat)
        respondents = config.respondents or self._respondents_on_disk()
        years = sorted(set.intersection(*(set(available(config.data, name).years) for name in respondents)))
        self.train, self.validate = periods(config, years)
        publication = Publication.parse(config.publication)
        self.store = open_token_store(config.data, respondents, config.reference, self._preparing, publication)
        self._log(f"{', '.join(respondents)}; training {self.train}, validation {self.validate} (UTC)")
        self.groups = groups_of(respondents, config.scope)
        self.trained = self._groups_with_targets()
        self.checkpoints = config.run_dir / "checkpoints"
        found, rejected = checkpoint.newest(self.checkpoints)
        for reason in rejected:
            self._log(f"skipped a checkpoint: {reason}")
        self.norm = self.store.fit(self.train)
        mx.random.seed(config.seed)
        self.model = Forecaster(self.model_config(), group=group)
        self.balancer = ringattn.LoadBalancer(config.layout, self.size)
        self.busy = 0.0  # seconds since the ranks last met in `_all_sum`, less those of waiting for others
        self.optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizer.init(self.model.trainable_parameters())
        self.average = self.model.parameters()
        self.progress = RunProgress()
        if found is not None:
            self._resume(found)
        self.gradient = nn.value_and_grad(self.model, Objective(Forecaster(self.model_config(), group=group)))
        self.metrics = MetricsWriter(config, self._heartbeats, self.rank, self.progress.step)

    def _respondents_on_disk(self) -> Sequence[str]:
        """Return those of which there is what the reference needs; the others are left out by name."""
        found = respondents_on_disk(self.config.data)
        return (
            found if self.config.reference == "week" or not found else with_forecast(self.config.data, found, self._log)
        )

    def _groups_with_targets(self) -> list[tuple[int, ...]]:
        """Return the groups that can train; a respondent without a target of its own may still be remembered and validated.

        Raises:
            UsageError: none has.
        """
        bare = {i for i in range(len(self.store.respondents)) if not len(self.store.targets(i, self.train))}
        names = ", ".join(self.store.respondents[i] for i in sorted(bare))
        found = [members for members in self.groups if not bare.issuperset(members)]
        if not found:
            raise UsageError(
                f"{names} has no hour of both demand and forecast in {self.train}: extract it, or name other periods"
            )
        if bare:
            self._log(f"{names}: no hour of both demand and forecast to train on from {self.train}")
        return found

    def model_config(self) -> ModelConfig:
        """Return the model's shape, which follows from the settings, the features and the respondents."""
        shape = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(ModelConfig)[3:]}
        return ModelConfig(len(features.FEATURES), len(features.CONDITION), len(self.store.respondents), **shape)

    def _log(self, message: str) -> None:
        """Print to stderr, once for the whole ring."""
        if self.rank == 0:
            print(message, file=sys.stderr, flush=True)

    def _preparing(self, message: str) -> None:
        """Print what is computed before the first step; each message is a heartbeat, as tokens of many respondents take minutes."""
        self._log(message)
        self._heartbeats.write("start", 0)

    def run(self) -> bool:
        """Train until the last step, or until validation stops improving.

        Returns:
            True if the run ended and wrote result.json, False if it was stopped and can be resumed.
        """
        c, p = self.config, self.progress
        self.metrics.heartbeat("start", p.step)
        while p.step < c.steps and p.worse < c.patience:
            stopping = self._step()
            validated = p.step % c.validate_every == 0 or p.step == c.steps
            if validated:
                self._validate()
            if validated or stopping or p.step % c.checkpoint_every == 0:
                self._save()
            if stopping:
                self._log(f"Stopped after step {p.step}. Run the same command to resume.")
                return False
        self._finish()
        return True

    # -- steps ------------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take one optimiser step. Returns whether any rank was asked to stop."""
        c, p = self.config, self.progress
        p.step += 1
        began = time.monotonic()
        count = c.pieces or max(MIN_PIECES, len(self.store.respondents))
        segments = draw_segments(self.store, self.trained, self.train, c.piece_hours, count, c.seed, p.step)
        signs = draw_sign_flips(len(segments), c.flip, c.seed, p.step)
        local = self._local_batch(segments, self.train, signs, only_scored=False)
        key = mx.random.key(c.seed * 1_000_003 + p.step)
        with ringattn.trace() as hops:
            loss, gradients = self.gradient(self.model, local, key)
            mx.eval(loss, gradients)
        self.busy += time.monotonic() - began - sum(hop.wait for hop in hops)
        loss, gradients, stopping, busy = self._all_sum(loss, local.valid.sum(), gradients)
        met = time.monotonic()
        gradients, norm = optim.clip_grad_norm(gradients, c.clip)
        self.optimizer.learning_rate = _learning_rate(c, p.step)
        self.optimizer.update(self.model, gradients)
        decay = min(c.average, p.step / (p.step + 10))  # at the start there is little to average
        new = self.model.parameters()
        self.average = tree_map(lambda a, b: decay * a + (1 - decay) * b, self.average, new)
        mx.eval(new, self.optimizer.state, self.average, norm)
        self.busy = time.monotonic() - met
        seconds = time.monotonic() - began
        self.metrics.step(
            StepRecord(p.step, loss, float(norm), local.total, seconds, busy, self.balancer.weights), hops
        )
        if self.balancer.record_step(busy):
            shares = ", ".join(f"{weight:.0%}" for weight in self.balancer.weights)
            self._log(f"step {p.step}: rebalanced the sequence by rank speed: {shares} of an equal share")
        return stopping

    def _local_batch(
        self, segments: Sequence[Segment], scored: Period, signs: Sequence[float] | None = None, *, only_scored: bool
    ) -> LocalBatch:
        return build_local_batch(
            self.store,
            segments,
            self.norm,
            layout=self.balancer.layout,
            size=self.size,
            rank=self.rank,
            scored=scored,
            signs=signs,
            only_scored=only_scored,
        )

    def _all_sum(self, loss: mx.array, count: mx.array, gradients: Any) -> tuple[float, Any, bool, list[float]]:
        """Sum over all ranks in one collective.

        Args:
            loss: sum of this rank's token losses.
            count: number of this rank's tokens that have a target.
            gradients: tree of the gradients of `loss`.

        Returns:
            Loss per token, gradients per token, whether any rank was asked to stop, and the busy seconds by rank.

        Raises:
            UsageError: if no token has a target, or if the loss is not finite.
        """
        names, arrays = zip(*tree_flatten(gradients), strict=True)
        stop = mx.array(float(self._stop.is_set()))
        busy = np.zeros(self.size, np.float32)
        busy[self.rank] = max(self.busy, 1e-6)
        packed = mx.concatenate([*(a.reshape(-1) for a in arrays), mx.array(busy), mx.stack([loss, count, stop])])
        total = mx.distributed.all_sum(packed, group=self.group)
        mx.eval(total)
        loss_sum, tokens, stops = (float(x) for x in np.array(total[-3:]))
        if not tokens:
            raise UsageError("no hour of this step's pieces has a target: train on hours that were measured")
        ends = np.cumsum([a.size for a in arrays]).tolist()
        parts = mx.split(total[: ends[-1]] / tokens, ends[:-1])
        tree = tree_unflatten([(n, part.reshape(a.shape)) for n, part, a in zip(names, parts, arrays, strict=True)])
        if not math.isfinite(loss_sum):
            raise UsageError(
                f"the loss at step {self.progress.step} is {loss_sum}: lower --learning-rate and start a new --run"
            )
        return loss_sum / tokens, tree, stops > 0, np.array(total[ends[-1] : -3]).tolist()

    # -- validation -------------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Score the averaged weights on the validation hours and update the best step."""
        p = self.progress
        self.metrics.heartbeat("validate", p.step)
        trained = self.model.parameters()
        self.model.update(self.average)
        found = validate(self.model, self._validation_batches(), self.store, self.validate, self.group)
        self.model.update(trained)
        p.widths = found.widths
        counted = [name for name in averaged(self.config, self.store.respondents) if name in found.skills] or list(
            found.skills
        )
        skill = float(np.mean([found.skills[name] for name in counted]))
        if skill > p.best_skill:
            p.best_step, p.best_skill, p.worse = p.step, skill, 0
        else:
            p.worse += 1
        line = {"step": p.step, "skill": skill, "skills": found.skills, "coverage_80": found.coverage}
        self.metrics.write({**line, "validation_tokens": found.tokens, "validation_seconds": found.seconds})
        each = "  ".join(f"{name} {value:+.3f}" for name, value in found.skills.items())
        self._log(f"step {p.step}: validation skill {skill:+.4f} ({each}), 80% interval covers {found.coverage:.0%}")

    def _validation_batches(self) -> Iterator[LocalBatch]:
        """Yield this rank's part of each validation sequence: as many groups as `VALIDATION_HOURS` allows, one at least."""
        period = self.validate
        segments: list[Segment] = []
        for members in self.groups:
            firsts = [max(self.store.period(i).first, period.first - self.config.context) for i in members]
            pieces = [Piece(i, first, period.last - first + 1) for i, first in zip(members, firsts, strict=True)]
            segments.append(segment_of(self.store, pieces))
            if sum(segment.rows for segment in segments) * HOURS > VALIDATION_HOURS:
                yield self._local_batch(segments, period, only_scored=True)
                segments = []
        if segments:
            yield self._local_batch(segments, period, only_scored=True)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        """Return all of a checkpoint but its arrays, as plain data."""
        return {
            **dataclasses.asdict(self.progress),
            "model": dataclasses.asdict(self.model_config()),
            "features": INPUTS,
            "quantiles": list(QUANTILES),
            "respondents": list(self.store.respondents),
            "reference": self.config.reference,
            "publication": str(self.store.publication),
            "train": [self.train.first, self.train.last],
            "validate": [self.validate.first, self.validate.last],
            "normalisation": {"mean": self.norm.mean.tolist(), "deviation": self.norm.deviation.tolist()},
            "config": plain(self.config),
        }

    def _save(self) -> None:
        """Write a checkpoint and remove all others but the previous and the best one; only rank 0 writes."""
        p = self.progress
        self.metrics.heartbeat("checkpoint", p.step)
        if self.rank == 0:
            saved = Checkpoint(self.model.parameters(), self.average, self.optimizer.state, self._state())
            checkpoint.save(self.checkpoints, saved)
            checkpoint.prune(self.checkpoints, {f"{p.best_step:06d}"})

    def _resume(self, found: Checkpoint) -> None:
        """Take over a checkpoint's state.

        Raises:
            UsageError: if the run on disk has other settings than those in `RESUMABLE`.
        """
        before, now = found.state, plain(self.config)
        wanted = {"model": dataclasses.asdict(self.model_config()), "respondents": list(self.store.respondents)}
        different = [name for name, value in wanted.items() if before[name] != value]
        different += [k for k, v in now.items() if k not in RESUMABLE and before["config"].get(k) != v]
        if before["features"] != INPUTS:
            different.append("features")
        if different:
            raise UsageError(
                f"{self.checkpoints} holds a run with another {', '.join(different)}: resume it with the settings in "
                f"{self.config.run_dir}/config.json, or name a new folder with --run"
            )
        self.model.update(found.weights)
        self.average = found.average
        self.optimizer.state = found.optimizer
        self.norm = Normalisation.from_state(before["normalisation"])
        self.progress = RunProgress(
            **{field.name: before[field.name] for field in dataclasses.fields(RunProgress) if field.name in before}
        )
        self._log(f"resuming from step {self.progress.step} on {self.size} rank(s)")

    def _finish(self) -> None:
        """Write result.json; only rank 0 writes."""
        p = self.progress
        self.metrics.heartbeat("end", p.step)
        peaks = np.array(mx.distributed.all_gather(mx.array([peak_bytes() / 1e6]), group=self.group))
        if self.rank:
            return
        best = self.checkpoints / f"{p.best_step:06d}"
        result = {
            "steps": p.step,
            "best_step": p.best_step,
            "validation_skill": p.best_skill,
            "checkpoint": str(best.relative_to(self.config.run_dir)),
            "sha256": checkpoint.fingerprint(best),
            "respondents": list(self.store.respondents),
            "reference": self.config.reference,
            "peak_mb": [round(float(x), 1) for x in peaks],
            "arithmetic": blas.record(),  # of rank 0
        }
        atomic_write(self.config.run_dir / "result.json", json.dumps(result, indent=1).encode())
        print(json.dumps(result))


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay to zero at the last step.

    Cosine decay: Loshchilov and Hutter 2017.
    """
    warm = min(1.0, step / max(1, config.warmup))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
