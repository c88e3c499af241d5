"""Display a training: one line, a table of ranks, plain data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.scheduling.progress import StageProgress
from coordinator.stages.display import Rendering, bar, cell, joined, quantity, standing
from coordinator.stages.train.artifacts import MetricsFollower
from coordinator.stages.train.elastic import ElasticRing
from coordinator.stages.train.ring_state import RoundSummary
from coordinator.stages.train.work import DEFAULTS, STEP

MAX_ROUNDS = 20


@dataclass(frozen=True)
class RankView:
    """One row for each rank."""

    rank: int
    worker: str
    step: int
    phase: str
    silent_s: float  # since its last heartbeat


@dataclass(frozen=True)
class TrainView:
    """The state of a training. Figures are the newest of metrics.jsonl; None: not known yet."""

    stage: str  # waiting | rendezvous | running | draining | finished
    round: int
    step: int
    steps: int  # of the whole training, at most: validation may end it before
    progress: StageProgress | None
    eta_s: float | None
    loss: float | None
    skill: float | None
    best_skill: float | None
    tokens_per_s: float | None
    attention_share: float | None
    wait_share: float | None
    wanted: int
    restarts: int
    elapsed_s: float
    ranks: tuple[RankView, ...]
    rounds: tuple[RoundSummary, ...] = ()  # the last ones that have ended


def train_view(
    ring: ElasticRing,
    metrics: MetricsFollower,
    now: float,
    elapsed_s: float,
    steps: int = DEFAULTS["steps"],
    progress: StageProgress | None = None,
) -> TrainView:
    """Return the view of a ring and its metrics at the time `now`."""
    return TrainView(
        stage=ring.stage,
        round=ring.round,
        step=max(ring.step, int(metrics.number("step") or 0)),
        steps=steps,
        progress=progress,
        eta_s=None if progress is None else progress.eta_s,
        loss=metrics.number("loss"),
        skill=metrics.number("skill"),
        best_skill=metrics.best_skill,
        tokens_per_s=metrics.number("tokens_per_s"),
        attention_share=metrics.number("attention_share"),
        wait_share=metrics.number("wait_share"),
        wanted=ring.wanted,
        restarts=ring.restarts,
        elapsed_s=elapsed_s,
        ranks=tuple(
            RankView(rank.number, rank.worker, rank.step, rank.phase, now - rank.last_progress)
            for rank in ring.ranks
            if rank.ended is None
        ),
        rounds=tuple(ring.history[-MAX_ROUNDS:]),
    )


def headline(view: TrainView) -> str:
    """Return the view as one line of 80 columns."""
    parts = standing("train", view.progress, view.elapsed_s)
    if view.progress is None or view.progress.part != STEP:
        parts.append(f"step {view.step:,}")
    ring = f"{len(view.ranks)} of {view.wanted} ranks"
    doing = {"waiting": "waiting for workers", "rendezvous": "rendezvous", "draining": f"{ring}, ending"}
    parts.append(doing.get(view.stage, ring))
    if view.restarts:
        parts.append(f"{view.restarts} restarts")
    if view.loss is not None:
        parts.append(f"loss {view.loss:.3g}")
    if view.best_skill is not None:
        parts.append(f"skill {view.best_skill:+.3f}")
    if view.tokens_per_s is not None:
        parts.append(f"{quantity(view.tokens_per_s)} tokens/s")
    return joined(parts)


def describe_rebalance(before: Sequence[float], now: Sequence[float]) -> list[str]:
    """Return the line to print if the ranks' shares of the sequence changed; 1.0 is an equal share, with which a ring starts."""
    if list(before) == list(now) or len({*before, 1.0}) == len({*now, 1.0}) == 1:
        return []
    shares = ", ".join(f"{share:.0%}" for share in now)
    return [f"Rebalanced the sequence by rank speed: {shares} of an equal share"]


def to_rich(view: TrainView) -> RenderableType:
    """Return the headline and a table with a row for each rank."""
    table = Table(box=None, pad_edge=False, show_edge=False, expand=True)
    table.add_column("rank", justify="right")
    table.add_column("worker", overflow="ellipsis", no_wrap=True, ratio=1)
    for title in ("step", "phase", "heartbeat"):
        table.add_column(title, justify="right", no_wrap=True)
    for rank in view.ranks:
        step = f"{rank.step:,}" if rank.step >= 0 else "-"
        table.add_row(str(rank.rank), cell(rank.worker), step, cell(rank.phase), f"{rank.silent_s:.1f} s ago")
    ring = []
    if view.attention_share is not None and view.wait_share is not None:
        ring.append(Text(f"attention {view.attention_share:.0%} of a step, waiting {view.wait_share:.0%}"))
    return Group(Text(headline(view)), *ring, table, bar(view.progress, view.step, view.steps))


def render(view: TrainView) -> Rendering:
    """Return the forms in which displays show the view."""
    plain = {**asdict(view), "progress": msgspec.to_builtins(view.progress)}
    return Rendering(headline(view), lambda: to_rich(view), plain)
