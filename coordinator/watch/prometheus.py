"""The state of a run as Prometheus text, version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/). Pure."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.stages.run_log import RunState
from ingest.console import printable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[dict[str, str], float]


def exposition(state: RunState | None, now: float) -> str:
    """Return the metrics of a run; `now`: seconds since 1970. Without a run only `coordinator_up` 0."""
    up = state is not None and not state.ended and now - state.at < 10
    lines = _metric("up", "Whether a coordinator works in the folder.", "gauge", [({}, float(up))])
    if state is None:
        return "\n".join(lines) + "\n"
    run, stage = state.run, {"stage": state.stage}
    lines += _metric("status_age_seconds", "Since the newest status.", "gauge", [({}, now - state.at)])
    lines += _metric("stage_elapsed_seconds", "Since the stage began.", "gauge", [(stage, run.elapsed_s)])
    if run.progress is not None:
        lines += _metric("stage_share", "Share of the stage's work.", "gauge", [(stage, run.progress.share)])
        if run.progress.eta_s is not None:
            lines += _metric("stage_eta_seconds", "Time left.", "gauge", [(stage, run.progress.eta_s)])
        for name, title in (("done", "Work that is done."), ("total", "Work of the part.")):
            parts = [({**stage, "part": part.name}, float(getattr(part, name))) for part in run.progress.parts]
            lines += _metric(f"part_{name}", title, "gauge", parts)
    tasks: list[Sample] = [({"state": str(name)}, float(count)) for name, count in run.tasks.items()]
    lines += _metric("tasks", "Tasks by state.", "gauge", tasks)
    lines += _metric("worker_restarts_total", "Workers that were started again.", "counter", [({}, state.restarts)])
    workers = [({"worker": worker.name}, worker) for worker in run.workers]
    for name, title, kind in (
        ("rows", "Rows that the worker verified.", "counter"),
        ("requests", "Requests that the worker sent.", "counter"),
        ("leases", "Leases that the worker holds.", "gauge"),
        ("capacity", "Leases that the worker holds at most.", "gauge"),
        ("done", "Leases that the worker ended with a result.", "counter"),
        ("rss", "Memory of the worker, bytes.", "gauge"),
    ):
        suffix = {"counter": "_total"}.get(kind, "_bytes" if name == "rss" else "")
        samples = [(labels, float(getattr(worker, name))) for labels, worker in workers]
        lines += _metric(f"worker_{name}{suffix}", title, kind, samples)
    budgets = run.budgets.items()
    lines += _metric(
        "budget_granted_total", "Permits.", "counter", [({"key": k}, float(b.granted)) for k, b in budgets]
    )
    lines += _metric("budget_pace", "Requests a second now.", "gauge", [({"key": k}, b.pace) for k, b in budgets])
    lines += _metric(
        "budget_ceiling", "Requests a second at most.", "gauge", [({"key": k}, b.rate) for k, b in budgets]
    )
    lines += _metric(
        "budget_throttles_total", "Throttles.", "counter", [({"key": k}, float(b.throttles)) for k, b in budgets]
    )
    return "\n".join(lines) + "\n"


def _metric(name: str, title: str, kind: str, samples: Iterable[Sample]) -> list[str]:
    found = list(samples)
    if not found:
        return []
    full = f"coordinator_{name}"
    return [
        f"# HELP {full} {title}",
        f"# TYPE {full} {kind}",
        *(f"{full}{_labels(one)} {value:.15g}" for one, value in found),
    ]


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    written = (f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return "{" + ",".join(written) + "}"


def _escaped(text: str) -> str:
    return printable(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
