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
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from numpy.typing import NDArray

import ringattn
from ingest import features
from ingest.calendar import calendar_of
from ingest.errors import UsageError
from ingest.files import atomic_write
from ingest.loader import available, respondents_on_disk
from ingest.publication import Publication
from ringattn.blas import loader as blas
from worker.forecast.model import checkpoint, conformal
from worker.forecast.model.checkpoint import Checkpoint
from worker.forecast.model.network import MEDIAN, QUANTILES, Forecaster, ModelConfig, pinball
from worker.training.config import RESUMABLE, TrainConfig, averaged, periods, plain
from worker.training.data import LocalBatch, build_local_batch
from worker.training.metrics import MetricsWriter, StepRecord, peak_bytes
from worker.training.segments import Segment, draw_segments, draw_sign_flips, groups_of, segment_of
from worker.training.tokens import Normalisation, Period, Piece, open_token_store

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
        respondents = config.respondents or respondents_on_disk(config.data)
        years = sorted(set.intersection(*(set(available(config.data, name).years) for name in respondents)))
        self.train, self.validate = periods(config, years)
        publication = Publication.parse(config.publication)
        self.store = open_token_store(config.data, respondents, config.reference, publication=publication)
        self._log(f"{', '.join(respondents)}; training {self.train}, validation {self.validate} (UTC)")
        self.groups = groups_of(respondents, config.scope)
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
        self.gradient = nn.value_and_grad(self.model, _loss)
        self.metrics = MetricsWriter(config, self.rank, self.progress.step)

    def model_config(self) -> ModelConfig:
        """Return the model's shape, which follows from the settings, the features and the respondents."""
        shape = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(ModelConfig)[3:]}
        return ModelConfig(len(features.FEATURES), len(features.CONDITION), len(self.store.respondents), **shape)

    def _log(self, message: str) -> None:
        """Print to stderr, once for the whole ring."""
        if self.rank == 0:
            print(message, file=sys.stderr, flush=True)

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
        segments = draw_segments(self.store, self.groups, self.train, c.piece_hours, count, c.seed, p.step)
        signs = draw_sign_flips(len(segments), c.flip, c.seed, p.step)
        local = self._local_batch(segments, self.train, signs)
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
        self, segments: Sequence[Segment], scored: Period, signs: Sequence[float] | None = None
    ) -> LocalBatch:
        layout = self.balancer.layout
        return build_local_batch(
            self.store, segments, self.norm, layout=layout, size=self.size, rank=self.rank, scored=scored, signs=signs
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
        skills, coverage, p.widths = self._skills()
        self.model.update(trained)
        skill = float(np.mean([skills[name] for name in averaged(self.config, self.store.respondents)]))
        if skill > p.best_skill:
            p.best_step, p.best_skill, p.worse = p.step, skill, 0
        else:
            p.worse += 1
        self.metrics.write({"step": p.step, "skill": skill, "skills": skills, "coverage_80": coverage})
        each = "  ".join(f"{name} {value:+.3f}" for name, value in skills.items())
        self._log(f"step {p.step}: validation skill {skill:+.4f} ({each}), 80% interval covers {coverage:.0%}")

    def _skills(self) -> tuple[dict[str, float], float, dict[str, list[float]]]:
        """Score the model on the validation hours.

        Returns:
            MAE skill over DF (without it, over the reference) by respondent, the share of hours inside the 80% interval, and the widths of
            each respondent's intervals after these hours.

        Raises:
            UsageError: if a respondent has no hour that can be validated.
        """
        period, regions = self.validate, len(self.store.respondents)
        firsts = [max(self.store.period(i).first, period.first - self.config.context) for i in range(regions)]
        pieces = [Piece(i, first, period.last - first + 1) for i, first in enumerate(firsts)]
        local = self._local_batch(
            [segment_of(self.store, [pieces[i] for i in members]) for members in self.groups], period
        )
        quantiles = np.array(self.model(local.batch))
        valid, target = np.array(local.valid) > 0, np.array(local.target)
        _, scale, demand, operator = np.moveaxis(local.columns, -1, 0)
        inside = (target >= quantiles[..., QUANTILES.index(0.1)]) & (target <= quantiles[..., QUANTILES.index(0.9)])
        errors = np.abs(target - quantiles[..., MEDIAN]) * scale
        # A model that corrects the linear forecast is judged by what both add to DF, as one that corrects DF is.
        rival = np.abs(demand - operator) if self.config.reference == "linear" else np.abs(target) * scale
        columns = (errors, rival, inside.astype(float), np.ones_like(scale))
        sums = [np.bincount(local.regions[valid], x[valid], minlength=regions) for x in columns]
        total = mx.distributed.all_sum(mx.array(np.stack(sums, axis=1).astype(np.float32)), group=self.group)
        model, rivals, covered, count = np.array(total).T
        if not rivals.all():
            missing = [name for name, x in zip(self.store.respondents, rivals, strict=True) if not x]
            raise UsageError(
                f"{', '.join(missing)}: no hour of {period} has both a demand and a reference forecast to validate with; "
                "choose another period with --validate"
            )
        skills = 1 - model / rivals
        widths = self._widths(local, np.where(valid, target, np.nan), quantiles)
        return (
            dict(zip(self.store.respondents, skills.tolist(), strict=True)),
            float(covered.sum() / count.sum()),
            widths,
        )

    def _widths(
        self, local: LocalBatch, outcome: NDArray[np.floating], quantiles: NDArray[np.floating]
    ) -> dict[str, list[float]]:
        """Return the widths of each respondent's intervals after the validation hours, of which the ranks hold parts."""
        period, names = self.validate, self.store.respondents
        shape = (len(names), period.last - period.first + 1, len(conformal.PAIRS))
        summed = np.zeros(shape, np.float32)  # 1 + ratio; 0 where not measured
        known = np.isfinite(outcome)
        at = local.regions[known], (local.hours - period.first)[known]
        summed[at] = 1 + conformal.ratios(quantiles[known], outcome[known])
        ratio = np.array(mx.distributed.all_sum(mx.array(summed), group=self.group)) - 1
        ratio[ratio < 0] = np.nan
        found = {}
        for name, each in zip(names, ratio, strict=True):
            calendar = calendar_of(name, period.first, period.last, publication=self.store.publication)
            found[name] = conformal.widths_after(each, calendar.hours, calendar.issue).tolist()
        return found

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


def _loss(model: Forecaster, local: LocalBatch, key: mx.array) -> mx.array:
    """Return the sum of the pinball losses of this rank's tokens, a scalar."""
    return (pinball(model(local.batch, key), local.target) * local.valid).sum()


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay to zero at the last step.

    Cosine decay: Loshchilov and Hutter 2017.
    """
    warm = min(1.0, step / max(1, config.warmup))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
