#!/usr/bin/env python3
"""Train the forecaster on series that were extracted: alone, or as one rank of a ring.

    worker/train.py                                                       # this machine alone
    python -m ringattn.launch -n 2 worker/train.py                        # two ranks here
    mlx.launch -n 2 worker/train.py                                       # the same, by mlx's own launcher
    mlx.launch --hostfile hostfiles/m2x4.json worker/train.py             # four hosts
    coordinator start --train                                             # through the workers, supervised

The run does not depend on the number of ranks: pieces, flips and dropout masks are functions of (seed, step), losses are summed over the
ranks' tokens and divided by the count of all. Nor does it depend on their shares of the tokens, which follow the ranks' speeds
(`ringattn.load_balance`). Started again with the same --run, it goes on from its newest checkpoint, on any number of ranks.
Exit codes: 0 ended by itself and result.json written, 2 usage, 75 broken off (a peer is gone, or asked to stop), 130 by Ctrl-C:
start it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run by its path, a script finds its own folder on the path in place of the project's.
sys.path[0:1] = [str(Path(__file__).resolve().parent.parent)]

from worker.process import blas_env

if __name__ == "__main__":
    blas_env.restart_prepared()

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import ringattn
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.failures import LAUNCH_ERROR
from ingest import features
from ingest.errors import IngestError, UsageError
from ingest.loader import available, respondents_on_disk
from worker.forecast.model import checkpoint
from worker.forecast.model.checkpoint import Checkpoint
from worker.forecast.model.network import MEDIAN, QUANTILES, Forecaster, ModelConfig, pinball
from worker.training.config import RESUMABLE, TrainConfig, parse, periods, plain
from worker.training.data import (
    LocalBatch,
    Normalisation,
    Period,
    Piece,
    build_local_batch,
    draw_pieces,
    draw_sign_flips,
    open_token_store,
)
from worker.training.metrics import Metrics, StepRecord, peak_bytes

INPUTS = [features.VERSION, *features.FEATURES, *features.CONDITION]
STOP = threading.Event()  # SIGTERM: end after this step, with a checkpoint


@dataclasses.dataclass
class Progress:
    """Where the run stands; all of it is in the checkpoint."""

    step: int = 0
    best_step: int = 0
    best_skill: float = -math.inf
    worse: int = 0  # validations since the best one


class Training:
    """One rank's training."""

    def __init__(self, config: TrainConfig, group: mx.distributed.Group) -> None:
        self.config, self.group = config, group
        self.rank, self.size = group.rank(), group.size()
        respondents = config.respondents or respondents_on_disk(config.data)
        years = sorted(set.intersection(*(set(available(config.data, name).years) for name in respondents)))
        self.train, self.validate = periods(config, years)
        self.store = open_token_store(config.data, respondents, config.reference)
        self.say(f"{', '.join(respondents)}; training {self.train}, validation {self.validate} (UTC)")
        self.checkpoints = config.run_dir / "checkpoints"
        found, refused = checkpoint.newest(self.checkpoints)
        for words in refused:
            self.say(f"passed over: {words}")
        self.norm = self.store.fit(self.train)
        mx.random.seed(config.seed)
        self.model = Forecaster(self.model_config(), group=group)
        self.shares = ringattn.LoadBalancer(config.layout, self.size)
        self.busy = 0.0  # seconds since the ranks last met in `_summed`, less those of waiting for others
        self.optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizer.init(self.model.trainable_parameters())
        self.average = self.model.parameters()
        self.progress = Progress()
        if found is not None:
            self._resume(found)
        self.gradient = nn.value_and_grad(self.model, _loss)
        self.metrics = Metrics(config, self.rank, self.progress.step)

    def model_config(self) -> ModelConfig:
        """The model's shape: from the settings, the features and the respondents."""
        shape = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(ModelConfig)[3:]}
        return ModelConfig(len(features.FEATURES), len(features.CONDITION), len(self.store.respondents), **shape)

    def say(self, words: str) -> None:
        """Narration goes to stderr, once for the whole ring."""
        if self.rank == 0:
            print(words, file=sys.stderr, flush=True)

    # -- steps ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Steps, validations, checkpoints until the end; the exit code."""
        c, p = self.config, self.progress
        self.metrics.beat("start", p.step)
        while p.step < c.steps and p.worse < c.patience:
            stopping = self._step()
            validated = p.step % c.validate_every == 0 or p.step == c.steps
            if validated:
                self._validate()
            if validated or stopping or p.step % c.checkpoint_every == 0:
                self._save()
            if stopping:
                self.say(f"stopped after step {p.step}; the same command goes on from there")
                return ExitCode.INCOMPLETE
        self._finish()
        return 0

    def _step(self) -> bool:
        """One optimiser step; whether some rank was asked to stop."""
        c, p = self.config, self.progress
        p.step += 1
        began = time.monotonic()
        pieces = draw_pieces(self.store, self.train, c.piece_hours, c.pieces, c.seed, p.step)
        signs = draw_sign_flips(len(pieces), c.flip, c.seed, p.step)
        local = self._local(pieces, self.train, signs)
        key = mx.random.key(c.seed * 1_000_003 + p.step)
        with ringattn.trace() as hops:
            loss, gradients = self.gradient(self.model, local, key)
            mx.eval(loss, gradients)
        self.busy += time.monotonic() - began - sum(hop.wait for hop in hops)
        loss, gradients, stopping, busy = self._summed(loss, local.valid.sum(), gradients)
        met = time.monotonic()
        gradients, norm = optim.clip_grad_norm(gradients, c.clip)
        self.optimizer.learning_rate = _rate(c, p.step)
        self.optimizer.update(self.model, gradients)
        decay = min(c.average, p.step / (p.step + 10))  # at the start there is little to average
        new = self.model.parameters()
        self.average = tree_map(lambda a, b: decay * a + (1 - decay) * b, self.average, new)
        mx.eval(new, self.optimizer.state, self.average, norm)
        self.busy = time.monotonic() - met
        done = StepRecord(p.step, loss, float(norm), local.total, time.monotonic() - began, busy, self.shares.weights)
        self.metrics.step(done, hops)
        if self.shares.record_step(busy):
            each = ", ".join(f"{weight:g}" for weight in self.shares.weights)
            self.say(f"step {p.step}: shares of the ranks follow their speeds: {each} of an equal one")
        return stopping

    def _local(self, pieces: Sequence[Piece], scored: Period, signs: Sequence[float] | None = None) -> LocalBatch:
        return build_local_batch(
            self.store,
            pieces,
            self.norm,
            layout=self.shares.layout,
            size=self.size,
            rank=self.rank,
            scored=scored,
            signs=signs,
        )

    def _summed(self, loss: mx.array, count: mx.array, gradients: Any) -> tuple[float, Any, bool, list[float]]:
        """Loss and gradients over all ranks' tokens, per token, in one collective; whether a rank has to stop; busy seconds by rank."""
        names, arrays = zip(*tree_flatten(gradients), strict=True)
        stop = mx.array(float(STOP.is_set()))
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
        p = self.progress
        self.metrics.beat("validate", p.step)
        trained = self.model.parameters()
        self.model.update(self.average)
        skills, coverage = self._skills()
        self.model.update(trained)
        skill = float(np.mean(list(skills.values())))
        if skill > p.best_skill:
            p.best_step, p.best_skill, p.worse = p.step, skill, 0
        else:
            p.worse += 1
        self.metrics.write({"step": p.step, "skill": skill, "skills": skills, "coverage_80": coverage})
        each = "  ".join(f"{name} {value:+.3f}" for name, value in skills.items())
        self.say(f"step {p.step}: validation skill {skill:+.4f} ({each}), 80% interval covers {coverage:.0%}")

    def _skills(self) -> tuple[dict[str, float], float]:
        """MAE skill over the reference by respondent, and the share of hours inside the 80% interval, on validation hours."""
        period, regions = self.validate, len(self.store.respondents)
        firsts = [max(self.store.period(i).first, period.first - self.config.context) for i in range(regions)]
        local = self._local([Piece(i, first, period.last - first + 1) for i, first in enumerate(firsts)], period)
        quantiles = np.array(self.model(local.batch))
        valid, target = np.array(local.valid) > 0, np.array(local.target)
        scale = local.columns[:, 1]
        inside = (target >= quantiles[:, QUANTILES.index(0.1)]) & (target <= quantiles[:, QUANTILES.index(0.9)])
        sums = np.zeros((regions, 4))
        for column, x in enumerate(
            (
                np.abs(target - quantiles[:, MEDIAN]) * scale,
                np.abs(target) * scale,
                inside.astype(float),
                np.ones_like(scale),
            )
        ):
            sums[:, column] = np.bincount(local.regions[valid], x[valid], minlength=regions)
        total = mx.distributed.all_sum(mx.array(sums.astype(np.float32)), group=self.group)
        model, reference, covered, count = np.array(total).T
        if not reference.all():
            missing = [name for name, x in zip(self.store.respondents, reference, strict=True) if not x]
            raise UsageError(f"{', '.join(missing)}: no hour of {period} can be validated; name another --validate")
        skills = 1 - model / reference
        return dict(zip(self.store.respondents, skills.tolist(), strict=True)), float(covered.sum() / count.sum())

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.progress),
            "model": dataclasses.asdict(self.model_config()),
            "features": INPUTS,
            "quantiles": list(QUANTILES),
            "respondents": list(self.store.respondents),
            "reference": self.config.reference,
            "train": [self.train.first, self.train.last],
            "validate": [self.validate.first, self.validate.last],
            "normalisation": {"mean": self.norm.mean.tolist(), "deviation": self.norm.deviation.tolist()},
            "config": plain(self.config),
        }

    def _save(self) -> None:
        p = self.progress
        self.metrics.beat("checkpoint", p.step)
        if self.rank == 0:
            saved = Checkpoint(self.model.parameters(), self.average, self.optimizer.state, self._state())
            checkpoint.save(self.checkpoints, saved)
            checkpoint.prune(self.checkpoints, {f"{p.best_step:06d}"})

    def _resume(self, found: Checkpoint) -> None:
        before, now = found.state, plain(self.config)
        wanted = {"model": dataclasses.asdict(self.model_config()), "respondents": list(self.store.respondents)}
        different = [name for name, value in wanted.items() if before[name] != value]
        different += [k for k, v in now.items() if k not in RESUMABLE and before["config"].get(k) != v]
        if before["features"] != INPUTS:
            different.append("features")
        if different:
            raise UsageError(
                f"{self.checkpoints} holds a run with another {', '.join(different)}: start with the settings in "
                f"{self.config.run_dir}/config.json to go on with it, or name a new folder with --run"
            )
        self.model.update(found.weights)
        self.average = found.average
        self.optimizer.state = found.optimizer
        self.norm = Normalisation(*(np.array(before["normalisation"][k], np.float32) for k in ("mean", "deviation")))
        self.progress = Progress(*(before[field.name] for field in dataclasses.fields(Progress)))
        self.say(f"goes on from step {self.progress.step} on {self.size} rank(s)")

    def _finish(self) -> None:
        p = self.progress
        self.metrics.beat("end", p.step)
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
        }
        part = self.config.run_dir / "result.json.part"
        part.write_text(json.dumps(result, indent=1))
        from worker.training.plots import draw_training  # here, since matplotlib takes a second to load

        draw_training(self.config.run_dir)
        part.replace(self.config.run_dir / "result.json")
        print(json.dumps(result))


def _loss(model: Forecaster, local: LocalBatch, key: mx.array) -> mx.array:
    """Sum of the pinball losses of this rank's tokens."""
    return (pinball(model(local.batch, key), local.target) * local.valid).sum()


def _rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to zero at the last step (Loshchilov and Hutter 2017)."""
    warm = min(1.0, step / max(1, config.warmup))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _interrupted(*_: object) -> None:
    """Ctrl-C: as SIGTERM; the next one does not wait for the step's end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("stopping after this step, with a checkpoint; once more ends at once", file=sys.stderr, flush=True)
    STOP.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as above."""
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    signal.signal(signal.SIGINT, _interrupted)
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        os.environ.setdefault("RINGATTN_TIMEOUT", str(config.timeout))
        group = ringattn.init(config.timeout)
        if group.rank() == 0:
            print(f"{group.size()} rank(s); {blas_env.describe(os.environ)}", file=sys.stderr, flush=True)
        code = Training(config, group).run()
        return ExitCode.INTERRUPTED if code and signal.getsignal(signal.SIGINT) == signal.SIG_DFL else code
    except ringattn.LaunchError as error:
        print(f"{LAUNCH_ERROR}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except (UsageError, ringattn.ArgumentError, checkpoint.CheckpointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except IngestError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except (ringattn.PeerError, RuntimeError) as error:
        if not isinstance(error, ringattn.PeerError) and "[ring]" not in str(error):
            raise
        print(
            f"{type(error).__name__}: {error}; start it again: it goes on from the newest checkpoint", file=sys.stderr
        )
        ringattn.abort(ExitCode.INCOMPLETE)


if __name__ == "__main__":
    code = main()
    if code:
        ringattn.abort(code)  # a rank that ends with an error must not wait in mlx's clean-up for the others
    sys.exit(cast(int, code))
