"""What the live page reads and shows: journal, events, curves, who may read it, Prometheus text. No server, no browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from coordinator.scheduling.progress import Part, StageProgress
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import Added, Cancelled, Committed, Done, Failed, Leased, TaskSpec
from coordinator.server.journal import Journal
from coordinator.server.status import RunStatus
from coordinator.stages.run_log import MAX_BYTES, RunLog, RunState
from coordinator.watch.access import Address, allowed, parse_address
from coordinator.watch.curves import MAX_POINTS, Curve
from coordinator.watch.folder import FolderReader
from coordinator.watch.prometheus import exposition
from coordinator.watch.tasks import CELLS, PENDING, STATES, JournalFollower
from coordinator.watch.views import PANELS, TOP, Renderer
from ingest.errors import UsageError
from tests.unit.coordinator.test_hostile_text import HOSTILE, STATUS


def added(name: str, kind: str = "fetch") -> Added:
    return Added(name, TaskSpec(name, kind, {}))


def test_follower_shows_each_record_and_starts_anew_after_compaction(tmp_path: Path) -> None:
    follower = JournalFollower(tmp_path / "journal.sqlite")
    assert not follower.poll(60.0)
    assert follower.grid().kinds == ()
    journal = Journal(tmp_path / "journal.sqlite")
    names = ["a", "b", "c", "d", "e"]
    journal.append([*map(added, names), *(Leased(name, 1, "w") for name in names[:4])])
    assert follower.poll(60.0)
    (kind,) = follower.grid().kinds
    assert (kind.kind, kind.counts) == ("fetch", (1, 4, 0, 0, 0))
    journal.append([Done("a", 1, "w", 1.0, {}), Committed("a"), Failed("b", 1, "SourceError", "no", True, True)])
    journal.append([Failed("c", 1, "SourceError", "again", True, False), Cancelled("e")])
    follower.poll(60.0)
    grid = follower.grid()
    assert [STATES[cell.state] for cell in grid.kinds[0].cells] == [
        "done",
        "given up",
        "waiting",
        "leased",
        "cancelled",
    ]
    assert grid.kinds[0].counts == (1, 1, 1, 1, 1)
    assert grid.failed == (("b", "SourceError", "no"),)
    journal.rewrite([added("z", "build")])
    follower.poll(60.0)
    assert [(one.kind, one.counts) for one in follower.grid().kinds] == [("build", (1, 0, 0, 0, 0))]
    journal.close()


def test_grid_of_many_tasks_has_few_cells_and_shows_the_one_that_was_given_up(tmp_path: Path) -> None:
    follower, journal = JournalFollower(tmp_path / "journal.sqlite"), Journal(tmp_path / "journal.sqlite")
    journal.append([added(f"t{n}") for n in range(5_000)])
    journal.append([Leased("t4321", 1, "w"), Failed("t4321", 1, "SourceError", "no", True, True)])
    while follower.poll(0.0):
        pass
    follower.poll(10.0)
    (kind,) = follower.grid().kinds
    assert len(kind.cells) <= CELLS
    assert sum(cell.tasks for cell in kind.cells) == 5_000
    assert [STATES[cell.state] for cell in kind.cells if cell.state != PENDING] == ["given up"]
    journal.close()


def test_curves_and_log_are_bounded(tmp_path: Path) -> None:
    curve = Curve()
    for n in range(10 * MAX_POINTS):
        curve.add(n, n)
        assert len(curve.x) <= MAX_POINTS
    assert curve.x[0] == 0 and curve.x[-1] > 9 * MAX_POINTS
    log = RunLog(tmp_path)
    for n in range(40):
        log.add("note", stage="extract", text=f"{n} " + "x" * (MAX_BYTES // 20))
    assert (tmp_path / "logs" / "run.jsonl").stat().st_size <= MAX_BYTES + MAX_BYTES // 10
    assert [event["text"].split()[0] for event in log.events()][-1] == "39"


def test_events_become_stages_and_log(tmp_path: Path) -> None:
    log, reader = RunLog(tmp_path), FolderReader(tmp_path)
    log.add("begin", stage="extract", pid=1)
    log.add("note", stage="extract", text="worker 1 died")
    log.add("end", stage="extract", status="incomplete", message="1 quarantined", seconds=2.0)
    log.add("begin", stage="train", pid=1)
    view = reader.read()
    assert [(one.stage, one.status, one.message) for one in view.stages] == [
        ("extract", "incomplete", "1 quarantined"),
        ("train", "", ""),
    ]
    assert "worker 1 died" in [line.text for line in view.log]


def test_costs_of_the_last_run_are_those_of_the_same_request(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.add_part("train", "a", ("step", "steps"), 100, 50.0)
    log.add_part("train", "a", ("step", "steps"), 100, 20.0)
    log.add_part("train", "b", ("step", "steps"), 100, 90.0)
    log.add("end", stage="train", like="a", status="done", seconds=33.0)
    log.add("end", stage="train", like="a", status="drain", seconds=1.0)
    assert log.costs("train", "a") == {"step": 0.2}
    assert (log.last_seconds("train", "a"), log.last_seconds("train", "c")) == (33.0, None)


LOCAL, OPEN = Address("127.0.0.1", 8787), Address("0.0.0.0", 8787)


@pytest.mark.parametrize(
    ("address", "token", "headers", "cookie", "parameter", "expected"),
    [
        (LOCAL, "", {"host": "127.0.0.1:8787"}, "", "", True),
        (LOCAL, "", {"host": "localhost:8787"}, "", "", True),
        (LOCAL, "", {"host": "[::1]:8787"}, "", "", True),
        (LOCAL, "", {"host": "evil.example"}, "", "", False),  # DNS rebinding
        (LOCAL, "", {}, "", "", False),
        (LOCAL, "", {"host": "[::1"}, "", "", False),
        (OPEN, "T", {"host": "anything"}, "", "", False),
        (OPEN, "T", {"host": "anything"}, "T", "", True),
        (OPEN, "T", {"host": "anything"}, "", "T", True),
        (OPEN, "T", {"authorization": "Bearer T"}, "", "", True),
        (OPEN, "T", {"authorization": "Basic T"}, "", "", False),
        (OPEN, "T", {"authorization": "Bearer é"}, "wrong", "T2", False),
    ],
)
def test_page_is_read_over_loopback_names_or_with_the_token(
    address: Address, token: str, headers: dict[str, str], cookie: str, parameter: str, expected: bool
) -> None:
    assert allowed(address, token, headers, cookie, parameter) is expected


def test_addresses() -> None:
    assert parse_address("127.0.0.1:0") == Address("127.0.0.1", 0)
    assert parse_address(":8787") == Address("127.0.0.1", 8787)
    assert parse_address("[::1]:1").url == "http://[::1]:1/"
    assert [parse_address(f"{host}:1").loopback for host in ("127.0.0.1", "[::1]", "localhost", "0.0.0.0", "m2")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    for wrong in ("8787", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "http://a:1", "a:1/x", ""):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(wrong)


def state(run: RunStatus = STATUS) -> RunState:
    return RunState(at=100.0, pid=1, stage="extract", began=50.0, restarts=2, run=run, view={})


def test_prometheus_text_is_well_formed_and_escaped() -> None:
    from msgspec.structs import replace

    progress = StageProgress(12.5, 0.25, "fetch", (Part("fetch", "rows", 12_345_678, 50_000_000),))
    text = exposition(state(replace(STATUS, progress=progress)), 101.0)
    sample = re.compile(r'coordinator_\w+(\{(\w+="([^"\\\n]|\\.)*",?)+\})? -?[\d.e+-]+')
    lines = text.splitlines()
    assert all(line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line) for line in lines), text
    assert "coordinator_up 1" in lines
    assert 'coordinator_stage_eta_seconds{stage="extract"} 12.5' in lines
    assert 'coordinator_part_done{stage="extract",part="fetch"} 12345678' in lines
    assert "coordinator_worker_restarts_total 2" in lines
    assert exposition(None, 0.0).splitlines()[-1] == "coordinator_up 0"
    assert "coordinator_up 0" in exposition(state(), 200.0).splitlines()


def test_panels_escape_text_of_others_and_name_what_is_missing(tmp_path: Path) -> None:
    import msgspec

    renderer = Renderer()
    empty = renderer.panels(FolderReader(tmp_path).read())
    assert set(empty) == {*TOP, *PANELS}
    assert "No run has written a status" in empty["summary"]
    log = RunLog(tmp_path)
    log.add("note", stage="extract", text=f"<script>alert(1)</script>{HOSTILE}")
    (tmp_path / "logs" / "status.json").write_bytes(msgspec.json.encode(state()))
    page = renderer.page(FolderReader(tmp_path).read())
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "70 of 70 shards verified" in page
    assert all(line.isprintable() for line in page.splitlines())
    assert not re.search(r'\b(style|on\w+)="', page)  # the policy of the page forbids them
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_what_a_run_that_is_gone_said_grows_old(tmp_path: Path) -> None:
    from dataclasses import replace

    from msgspec.structs import replace as with_fields

    budget = RequestBudget(2.5, burst=5)
    budget.grant(0.0, 5)
    run = with_fields(STATUS, budgets={"key": budget.status(0.0)})
    view = replace(FolderReader(tmp_path).read(), state=state(run), now=100.5, running=True)
    panels = Renderer().panels(view)
    assert "10 s ago" in panels["workers"] and "a second now" in panels["requests"]  # heard 9 s before the status
    gone = Renderer().panels(replace(view, now=160.0, running=False))
    assert "69 s ago" in gone["workers"] and "a second now" not in gone["requests"]
    ended = replace(view, state=with_fields(state(run), ended="done"), now=160.0, running=False)
    assert "9 s ago" in Renderer().panels(ended)["workers"]


def test_status_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "status.json").write_text('{"at": 1}')
    (tmp_path / "logs" / "run.jsonl").write_text(
        '[1]\n{"event": "note"}\nnot json\n' + json.dumps({"t": 1, "event": "end"}) + "\n"
    )
    (tmp_path / "journal.sqlite").write_bytes(b"not a database")
    view = FolderReader(tmp_path).read()
    assert (view.state, view.stages, view.log, view.tasks.kinds) == (None, (), (), ())


def test_states_of_the_grid_are_those_of_the_journal() -> None:
    from coordinator.scheduling.records import STATES as JOURNALED
    from coordinator.watch.tasks import OF_JOURNAL

    assert set(OF_JOURNAL) == set(JOURNALED)
    assert set(OF_JOURNAL.values()) == set(range(len(STATES)))
