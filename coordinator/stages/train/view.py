"""Display a training: one line, a table of ranks, plain data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.stages.display import Rendering, cell, clock
from coordinator.stages.train.artifacts import MetricsFollower
from coordinator.stages.train.elastic import ElasticRing


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


def train_view(ring: ElasticRing, metrics: MetricsFollower, now: float, elapsed_s: float) -> TrainView:
    """Return the view of a ring and its metrics at the time `now`."""
    return TrainView(
        stage=ring.stage,
        round=ring.round,
        step=max(ring.step, int(metrics.number("step") or 0)),
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
    )


def headline(view: TrainView) -> str:
    """Return the view as one line."""
    parts = [f"step {view.step:,}"]
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4g}")
    if view.skill is not None and view.best_skill is not None:
        parts.append(f"skill {view.skill:+.3f} (best {view.best_skill:+.3f})")
    if view.tokens_per_s is not None:
        parts.append(f"{view.tokens_per_s:,.0f} tokens/s")
    if view.attention_share is not None:
        parts.append(f"attention {view.attention_share:.0%}")
    if view.wait_share is not None:
        parts.append(f"waiting {view.wait_share:.0%}")
    ring = f"{len(view.ranks)} of {view.wanted} ranks"
    doing = {"waiting": "waiting for workers", "rendezvous": "rendezvous", "draining": f"{ring}, ending"}.get(
        view.stage, ring
    )
    parts += [doing, f"{view.restarts} restarts", f"elapsed {clock(view.elapsed_s)}"]
    return " · ".join(parts)


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
    return Group(Text(headline(view)), table)


def render(view: TrainView) -> Rendering:
    """Return the forms in which displays show the view."""
    return Rendering(headline(view), lambda: to_rich(view), asdict(view))
