"""Names, versions and messages with control characters, at every place where the coordinator shows them."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import msgspec
import pytest
from rich.console import Console

from coordinator.cli import status as status_command
from coordinator.cli.errors import print_error
from coordinator.doctor.checks import describe as describe_findings
from coordinator.doctor.checks import problem
from coordinator.report.build import describe as describe_report
from coordinator.report.model import Absent, Facts
from coordinator.report.render import charts
from coordinator.report.render.page import page
from coordinator.scheduling.records import State
from coordinator.scheduling.waits import WaitStatus
from coordinator.server.status import RunStatus, WorkerStatus
from coordinator.stages.display import FOLDED, PlainDisplay, TerminalDisplay, render, run_view
from coordinator.stages.extract.stage import ExtractStage
from coordinator.stages.rollouts.view import ControlView
from coordinator.stages.rollouts.view import WorkerView as ControlWorker
from coordinator.stages.rollouts.view import render as render_control
from coordinator.stages.runner import StageRunner
from coordinator.stages.train.view import RankView, TrainView
from coordinator.stages.train.view import render as render_training
from ingest.console import LineFormatter, protect
from ingest.models import RouteGap
from ingest.verify import Report

FORGED = "70 of 70 shards verified"
HOSTILE = f"a\x1b]0;title\x07\x1b[2J\r\n{FORGED}\x7f\x9b2J\u202e\u2028[red]"
STATUS = RunStatus(
    tasks=dict.fromkeys(get_args(State), 1),
    uncommitted=0,
    halt="",
    dropped_results=0,
    departed_rows=0,
    departed_requests=0,
    workers=(WorkerStatus(HOSTILE, HOSTILE, 1, False, 1, (HOSTILE,), 1, 1, 1, 9.0),),
    waits=(WaitStatus(HOSTILE, HOSTILE, 1.0, 1.0, 1, 1),),
    budgets={},
    counters={},
    elapsed_s=1.0,
    quarantined=((HOSTILE, HOSTILE, HOSTILE),),
)
GAP = RouteGap(HOSTILE, HOSTILE, "2024-01-01T00", "2024-01-01T01", 2)


def check(text: str) -> None:
    """The hostile text is in `text`, and nothing of it acts on a terminal or begins a line."""
    assert FORGED in text
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.strip().startswith(FORGED)


def plain_display(show: Callable[[PlainDisplay], None]) -> str:
    lines: list[str] = []
    show(PlainDisplay(lines.append))
    return "\n".join(lines)


def quarantine_note() -> str:
    def show(display: PlainDisplay) -> None:
        event = SimpleNamespace(task=SimpleNamespace(id=HOSTILE), error=HOSTILE, message=HOSTILE)
        StageRunner._on_quarantined(SimpleNamespace(_display=display, _told=set()), event)  # type: ignore[arg-type]

    return plain_display(show)


def summary_text(quarantined: Sequence[tuple[str, str, str]] = ((HOSTILE, HOSTILE, HOSTILE),)) -> str:
    numbers = dict.fromkeys(
        (
            "proved",
            "shards",
            "series",
            "rows",
            "total",
            "duplicates",
            "nulls",
            "gap_hours",
            "suspect",
            "daily",
            "new_shards",
            "new_files",
        ),
        0,
    )
    texts = {"origins": (HOSTILE,), "data": HOSTILE, "gaps": (GAP,), "masked": {HOSTILE: 1}, "faults": {HOSTILE: 1}}
    texts |= {"notes": (HOSTILE,), "absent": (HOSTILE,)}
    more = {"status": "incomplete", "quarantined": quarantined}
    return ExtractStage().describe(SimpleNamespace(**numbers, **texts, **more))  # type: ignore[arg-type]


def test_cause_that_ends_many_tasks_stands_with_the_first() -> None:
    text = summary_text([(task, "EngineLost", "the engine is given up") for task in ("a", "b")])
    assert [line for line in text.splitlines() if "EngineLost" in line] == [
        "QUARANTINED a: EngineLost: the engine is given up",
        "QUARANTINED b: EngineLost, as above",
    ]


def verify_text() -> str:
    report = Report(HOSTILE, gaps=(GAP,))
    report.mismatch(HOSTILE, HOSTILE, HOSTILE)
    report.note(HOSTILE, HOSTILE, HOSTILE)
    return report.to_text()


IDLE = {"running": False, "shards": 1, "series": 1, "rows": 1, "total": 1, "replaced": 1}
DISK = {"disk": {"raw pages": 1}}
SINKS: dict[str, Callable[[], str]] = {
    "note": lambda: plain_display(lambda display: display.note(HOSTILE)),
    "quarantined": quarantine_note,
    "progress": lambda: plain_display(lambda display: display.update(replace(render(run_view(STATUS)), line=HOSTILE))),
    "waits": lambda: plain_display(lambda display: display.update(render(run_view(STATUS)))).replace(
        f"\n{FOLDED}", " "
    ),
    "status": lambda: status_command.describe({"running": True, **msgspec.to_builtins(STATUS), **DISK}),
    "status of a training": lambda: status_command.describe(
        {"running": True, **msgspec.to_builtins(STATUS), "training": HOSTILE, **DISK}
    ),
    "status without a run": lambda: status_command.describe({**IDLE, "origins": [HOSTILE], "daily": None, **DISK}),
    "summary": summary_text,
    "verify": verify_text,
    "doctor": lambda: describe_findings([problem(HOSTILE, HOSTILE, HOSTILE)]),
    "doctor, wrapped": lambda: describe_findings([problem("m2", HOSTILE, HOSTILE)], 200),
    "report command": lambda: describe_report(
        {"report": HOSTILE, "sections": {"training": {"there": False, "why": HOSTILE, "command": HOSTILE}}}
    ),
}


@pytest.mark.parametrize("name", SINKS)
def test_text_of_others_is_one_printable_line(name: str) -> None:
    check(SINKS[name]())


PICTURES = {
    "workers": render(run_view(STATUS)),
    "ranks": render_training(
        TrainView(
            "running",
            1,
            1,
            160,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            1,
            0,
            1.0,
            (RankView(0, HOSTILE, 1, HOSTILE, 1.0),),
        )
    ),
    "control": render_control(
        ControlView(HOSTILE, None, None, 1, 2, {}, 0, 0, 0, 1.0, (ControlWorker(HOSTILE, 1, 4, 1, 1.0),))
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_table_shows_text_of_workers_without_control_characters_or_markup(name: str) -> None:
    console = Console(file=io.StringIO(), width=400, force_terminal=False)
    console.print(PICTURES[name].picture())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    check(text)
    assert "[red]" in text  # printed, not obeyed


def test_note_on_a_terminal_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    display = TerminalDisplay()
    display.note(HOSTILE)
    display.close()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", output.getvalue())
    assert f"\n{FORGED}" not in output.getvalue()


def test_error_is_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("hosts can't be used:\n  m2: \x1b[2J\r", 2, as_json=False)
    assert capsys.readouterr().err == "coordinator: hosts can't be used:\n  m2: \\u001b[2J\\r\n"
    print_error(HOSTILE, 2, as_json=True)
    line = capsys.readouterr().err
    assert json.loads(line)["text"] == HOSTILE


def test_report_shows_no_control_characters() -> None:
    gone = Absent(HOSTILE, HOSTILE)
    facts = Facts(HOSTILE, HOSTILE, *[gone] * 12)
    text = page(facts)
    assert FORGED in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert charts.element("text", "\x1b[2J<", title="\x9b") == '<text title="\\u009b">\\u001b[2J&lt;</text>'


def test_coordinators_log_is_escaped_without_a_handler() -> None:
    """The coordinator sets no handler: records reach stderr through logging's last resort."""
    before, resort = (sys.stdout, sys.stderr), logging.lastResort
    assert resort is not None
    formatter = resort.formatter
    try:
        protect()
        assert isinstance(resort.formatter, LineFormatter)
    finally:
        sys.stdout, sys.stderr = before
        resort.setFormatter(formatter)
