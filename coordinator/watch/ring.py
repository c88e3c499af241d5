"""Draw and list the ring of a training: who sends to whom, at what pace, who computes and who waits. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from coordinator.report.render.charts import WIDTH, Axis, Figure, Line, element, plot

MAX_DRAWN = 12  # ranks; more have the table alone
SILENT_S = 5.0  # after which a rank is drawn as silent
NODE = 17.0  # radius


def rank_rows(ranks: Sequence[Mapping[str, Any]], newest: Mapping[str, Any], age_s: float) -> list[list[str]]:
    """Return a row per rank: its worker, the rank that it sends to, step, phase, share of the sequence, busy and waiting time.

    Args:
        ranks: of the training's view.
        newest: metrics of the training.
        age_s: of the status that holds the ranks.
    """
    busy, shares, seconds = (newest.get(name) for name in ("busy", "shares", "seconds"))
    rows = []
    for one in ranks:
        number, known = int(one["rank"]), isinstance(busy, list) and len(busy) == len(ranks)
        share = f"{shares[number]:.0%}" if isinstance(shares, list) and number < len(shares) else "–"
        work = f"{busy[number]:.2f} s" if known and busy is not None else "–"
        waiting = "–"
        if known and busy is not None and isinstance(seconds, int | float) and seconds > 0:
            waiting = f"{max(0.0, 1 - busy[number] / seconds):.0%}"
        step = str(one["step"]) if one["step"] >= 0 else "–"
        link = f"{number} → {(number + 1) % len(ranks)}" if len(ranks) > 1 else "–"
        heard = f"{one['silent_s'] + age_s:.0f} s ago"
        rows.append([str(number), str(one["worker"]), link, step, str(one["phase"]), share, work, waiting, heard])
    return rows


def sent_per_s(newest: Mapping[str, Any]) -> float | None:
    """Return the bytes a second that rank 0 sends to its neighbour, over its last step; None: not known."""
    sent, seconds = newest.get("sent_bytes"), newest.get("seconds")
    if isinstance(sent, int | float) and isinstance(seconds, int | float) and seconds > 0:
        return sent / seconds
    return None


def topology(ranks: Sequence[Mapping[str, Any]], age_s: float, sent: float | None) -> Figure | None:
    """Return the ring as a circle of ranks and the links between them; None: one rank, or too many to draw."""
    count = len(ranks)
    if not 2 <= count <= MAX_DRAWN:
        return None
    high, middle = 216.0, WIDTH / 2
    radius = 70.0
    at = [
        (middle + radius * math.sin(2 * math.pi * i / count), high / 2 - radius * math.cos(2 * math.pi * i / count))
        for i in range(count)
    ]
    body: list[Markup] = []
    for i, (x, y) in enumerate(at):
        to_x, to_y = at[(i + 1) % count]
        body.append(_link(x, y, to_x, to_y, f"{i} → {(i + 1) % count}", aside=7.0 if count == 2 else 0.0))
    for (x, y), one in zip(at, ranks, strict=True):
        silent = float(one["silent_s"]) + age_s
        title = f"rank {one['rank']} on {one['worker']}: {one['phase']}, step {one['step']}, heard {silent:.0f} s ago"
        style = "late" if silent > SILENT_S else "node"
        body.append(element("circle", element("title", title), class_=style, cx=x, cy=y, r=NODE))
        body.append(element("text", str(one["rank"]), class_="rank", x=x, y=y + 4.5, text_anchor="middle"))
        side = "middle" if abs(x - middle) < NODE else "start" if x > middle else "end"
        beyond = {"start": NODE + 5, "end": -NODE - 5, "middle": 0.0}[side]
        below = 4.0 if beyond else (-NODE - 6 if y < high / 2 else NODE + 14)
        body.append(element("text", _short(str(one["worker"])), x=x + beyond, y=y + below, text_anchor=side))
    names = ", ".join(f"rank {one['rank']} on {one['worker']}" for one in ranks)
    picture = element(
        "svg",
        Markup("").join(body),
        viewBox=f"0 0 {WIDTH} {high:g}",
        role="img",
        aria_label=f"Ring of {count} ranks: {names}",
    )
    pace = "" if sent is None else f" Rank 0 sends {size(sent)}/s, over its last step."
    return Figure(
        "Links",
        picture,
        f"Each rank sends keys, values and gradients to the next; dashed: silent for {SILENT_S:g} s.{pace}",
    )


def size(amount: float) -> str:
    """Return bytes with the unit that suits."""
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.{0 if unit == 'B' or amount >= 10 else 1}f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def compute_figure(lines: Sequence[Line]) -> Figure:
    """Return compute against waiting by step."""
    chart = plot("Share of a step in attention and in waiting", Axis("step", least=1), Axis("share", zero=True), lines)
    return Figure(
        "Compute and waiting",
        chart,
        "Of rank 0's step: attention, and waiting for its neighbours.",
        [line.key for line in lines],
    )


def _short(worker: str) -> str:
    """Return host and process of a worker's name, which ends with a random part."""
    return worker.rpartition("-")[0] or worker


def _link(x: float, y: float, to_x: float, to_y: float, title: str, aside: float) -> Markup:
    """Return an arrow from the rim of one node to that of the next, `aside` of the straight line."""
    length = math.hypot(to_x - x, to_y - y)
    along_x, along_y = (to_x - x) / length, (to_y - y) / length
    shift_x, shift_y = -along_y * aside, along_x * aside
    x1, y1 = x + along_x * NODE + shift_x, y + along_y * NODE + shift_y
    x2, y2 = to_x - along_x * (NODE + 2) + shift_x, to_y - along_y * (NODE + 2) + shift_y
    line = element("line", element("title", title), class_="link", x1=x1, y1=y1, x2=x2, y2=y2)
    wing = 6.0
    points = [
        (x2, y2),
        (x2 - along_x * wing - along_y * wing / 2, y2 - along_y * wing + along_x * wing / 2),
        (x2 - along_x * wing + along_y * wing / 2, y2 - along_y * wing - along_x * wing / 2),
    ]
    return line + element("polygon", class_="arrow", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points))
