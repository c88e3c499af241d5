"""What a follower prints and keeps, and the forecasts that it issues; `tests/acceptance/test_follow.py` runs it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.stages.follow.forecasts import Forecasts, due_issues, trained_respondents
from coordinator.stages.follow.state import CycleSummary, FollowState, read_state, write_state
from ingest.errors import UsageError
from tests.support.waiting import until

NOON = datetime(2026, 6, 24, 17, 30, tzinfo=UTC)  # 12:30 Central, 10:30 Pacific
CYCLE = CycleSummary(
    at="2026-06-24T12:10", daily=True, shards=2, rows=3240, requests=3, series=1, failed=(), next="2026-06-24T13:10"
)


def test_cycle_is_one_line_with_the_next_run(tmp_path: Path) -> None:
    assert str(CYCLE) == "2026-06-24T12:10Z daily  2 fetches · 3,240 rows · 3 requests · 1 series · next 13:10Z"
    assert read_state(tmp_path) == FollowState()
    write_state(tmp_path, FollowState(("eia/x",), CYCLE, CYCLE.next))
    assert read_state(tmp_path) == FollowState(("eia/x",), CYCLE, CYCLE.next)
    (tmp_path / "follow.json").write_text("{")  # the fetches of single hours stay, and nothing else is lost
    assert read_state(tmp_path) == FollowState()


def test_forecast_is_due_from_ten_local_until_midnight_and_once() -> None:
    issues = due_issues(NOON, ("ERCO", "PACW"), ())
    assert issues == [("ERCO", "2026-06-24T10"), ("PACW", "2026-06-24T10")]
    assert due_issues(NOON, ("ERCO", "PACW"), {("ERCO", "2026-06-24T10")}) == [("PACW", "2026-06-24T10")]
    assert due_issues(NOON.replace(hour=16), ("ERCO", "PACW"), ()) == [("ERCO", "2026-06-24T10")]  # 09:30 Pacific
    assert due_issues(NOON.replace(hour=6), ("ERCO",), ()) == []  # 01:30 Central: a new day


def lines_of(forecasts: Forecasts) -> list[str]:
    lines: list[str] = []

    def ended() -> bool:
        lines.extend(forecasts.poll())
        return not forecasts.busy

    until(ended, "the forecasts")
    return lines


def test_forecasts_are_files_and_a_failure_is_tried_again(tmp_path: Path) -> None:
    script = tmp_path / "forecast.py"
    fails = 'json.dump({"event": "error", "text": "no hours of ERCO"}, sys.stderr); sys.exit(2)'
    script.write_text(
        f"import json, sys\nif 'ERCO' in sys.argv:\n    {fails}\n\n"
        "print(json.dumps({'asked': sys.argv[1:], 'awaited': 24 if 'BPAT' in sys.argv else 0}))\n"
    )
    forecasts = Forecasts(tmp_path, tmp_path / "train", ("PACW", "ERCO", "BPAT"), (sys.executable, str(script)))
    forecasts.start_due(NOON)
    issued, failed, waits = lines_of(forecasts)
    early = tmp_path / "forecasts" / "BPAT" / "2026-06-24T10.json"
    assert waits == (
        f"forecast of BPAT, issued 2026-06-24T10 local: {early}; 24 hours have no day-ahead forecast (DF) yet, and it is issued again when they have"
    )
    path = tmp_path / "forecasts" / "PACW" / "2026-06-24T10.json"
    assert issued == f"forecast of PACW, issued 2026-06-24T10 local: {path}"
    assert json.loads(path.read_text())["asked"][4:] == ["--region", "PACW", "--issue", "2026-06-24T10", "--json"]
    assert failed == "forecast of ERCO, issued 2026-06-24T10 local, FAILED with 2: no hours of ERCO"
    forecasts.start_due(NOON)
    assert len(lines_of(forecasts)) == 2  # of ERCO and BPAT


def test_forecasts_need_a_finished_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished training: `coordinator start --train --run"):
        trained_respondents(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "result.json").write_text('{"checkpoint": "checkpoints"}')
    (tmp_path / "checkpoints" / "state.json").write_text('{"respondents": ["PACW"]}')
    assert trained_respondents(tmp_path) == ("PACW",)
