"""The report: facts by value from a folder with the files of every stage, and a page that has every section."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from coordinator.report import build
from coordinator.report.collect.control import markdown
from coordinator.report.collect.data import response_rate
from coordinator.report.collect.training import chosen_days
from coordinator.report.model import Absent, Facts
from coordinator.report.render.page import TITLES, page
from ingest.errors import UsageError
from tests.support.report_data import HOLE, backtested, controlled, extracted, trained

VOID = {"meta", "link", "br"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backtested(controlled(trained(extracted(tmp_path_factory.mktemp("report") / "data"))))


@pytest.fixture(scope="module")
def facts(data: Path) -> Facts:
    return build.collect(data)


class Outline(HTMLParser):
    """Sections, balance of tags, titles of charts, and everything that a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.open: list[str] = []
        self.charts: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(named["id"] or "")
        if tag == "svg":
            assert named["role"] == "img"
            self.charts.append(named["aria-label"] or "")
        if tag in ("script", "img", "iframe"):
            self.fetched.append(tag)
        self.fetched += [
            value for name, value in attrs if name in ("src", "href") and value and not re.match("#|data:", value)
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_facts_of_every_stage_are_collected(facts: Facts) -> None:
    for name in TITLES:
        found = getattr(facts, name)
        assert not isinstance(found, Absent), f"{name}: {found}"


def test_coverage_by_value(facts: Facts) -> None:
    hours = facts.coverage
    assert not isinstance(hours, Absent)
    assert [(gap.variable, gap.hours) for gap in hours.gaps] == [("D", HOLE)]
    assert [(one.year, one.cells, one.first) for one in hours.revised] == [(2024, 1, "2024-12-18T05")]
    february = hours.coverage.months.index("2024-02")
    assert hours.coverage.share[0, february] == pytest.approx(1 - HOLE / 696)


def test_extraction_by_value(facts: Facts) -> None:
    found = facts.extraction
    assert not isinstance(found, Absent)
    rows = 2 * (8760 + 8784) + 8784 + 2 * 744 - HOLE + 14 * 24
    assert (found.summary.rows, found.summary.total, found.rows) == (rows, rows, {"PACW": rows})


def test_response_rate_by_value() -> None:
    """Two per second for half a minute, then none, then one."""
    moments = [f"2024-01-01T00:00:{half // 2:02d}.{5 * (half % 2)}00+00:00" for half in range(60)]
    found = response_rate([*moments, "2024-01-01T00:10:00.000+00:00"], 2.5)
    assert found is not None
    assert (found.responses, found.span_s, found.busiest, found.ceiling) == (61, 600.0, 1.0, 2.5)
    assert found.bins[0] == 2.0
    assert found.bins.sum() * 10 == pytest.approx(61)
    assert response_rate([], None) is None


def test_training_and_forecasts_by_value(facts: Facts) -> None:
    training, forecasts = facts.training, facts.forecasts
    assert not isinstance(training, Absent)
    assert training.loss[1][3] == 0.25
    assert training.skill["PACW"][1].tolist() == [0.2, 0.4]
    assert not isinstance(forecasts, Absent)
    assert forecasts.mae == {"PACW": (pytest.approx(50), pytest.approx(100))}
    assert forecasts.inside80 == {"PACW": 1.0}
    assert [day.reason for day in forecasts.days] == ["highest demand", "median error", "largest error"]
    assert all(len(day.hour) in (23, 24, 25) for day in forecasts.days)


def test_chosen_days_are_complete_and_match_their_reason() -> None:
    day = np.repeat(np.arange(5.0), 24)
    demand = 100 + day
    columns = {name: demand.copy() for name in ("q0.025", "q0.1", "q0.25", "q0.5", "q0.75", "q0.9", "q0.975")}
    columns |= {"demand": demand.copy(), "operator": demand + 1}
    columns["q0.5"] += np.array([3.0, 0, 1, 2, 9])[day.astype(int)]
    columns["demand"][-1] = np.nan  # the last day is incomplete
    found = chosen_days("PACW", day, columns)
    assert [one.date[-2:] for one in found] == ["04", "04", "01"]  # of the errors 0, 1, 2, 3 the third is the median


def test_control_by_value(facts: Facts) -> None:
    found = facts.control
    assert not isinstance(found, Absent)
    assert found.history[1].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert found.curve[0] == "losses/cost"
    (week,) = found.weeks
    assert len(week.load) == 168
    given = sum(week.stores.values())
    np.testing.assert_allclose(week.load - given, week.policy, atol=1e-6)
    assert found.tables["SYNTHETIC"][1] == ("peak, MW", "4,000", "3,900")


def test_backtests_by_value(facts: Facts) -> None:
    found = facts.backtests
    assert not isinstance(found, Absent)
    (one,) = found.found
    assert (one.model, one.rivals, one.mean["DF"].note) == ("linear", ("DF",), "1 of 1")
    over, mae, covered = one.rows["PACW"]
    assert (over["DF"].skill, over["DF"].note, mae, covered) == (0.1, "p 0.003", 90.0, 0.79)
    assert {label: gain.note for label, gain in one.horizons.items()} == {"13–24 h": "0 of 1", "25–38 h": "1 of 1"}
    assert one.months[1][0] == 0.1 and np.isnan(one.months[1][1])
    assert "+0.100 (p 0.003)" in page(facts)


def test_markdown_report_is_parsed() -> None:
    intro, tables = markdown("# Title\n\nFirst.\n\n| a |\n|---|\n| 1 |\n\n## R\n\n| b | c |\n|---|--:|\n| 2 | 3 |\n")
    assert intro == "First."
    assert tables == {"R": (("b", "c"), ("2", "3"))}


def test_page_has_every_section_and_fetches_nothing(facts: Facts) -> None:
    outline = Outline(page(facts))
    assert tuple(outline.sections) == tuple(TITLES)
    assert outline.open == []
    assert outline.fetched == []
    assert len(outline.charts) >= 12
    assert all(outline.charts)


def test_words_of_a_report_in_backticks_are_code(facts: Facts) -> None:
    """Python 3.11 showed the tags themselves."""
    assert "by <code>pathwise</code>." in page(facts) and "&lt;code&gt;" not in page(facts)


def test_same_folder_gives_same_bytes(data: Path, tmp_path: Path) -> None:
    made = [build.report(data, tmp_path / name) for name in ("a.html", "b.html")]
    assert made[0]["sha256"] == made[1]["sha256"]
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_absent_stage_names_its_command(tmp_path: Path) -> None:
    made = build.report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert tuple(Outline(text).sections) == tuple(TITLES)
    for stage in ("--extract", "--train", "--rollouts"):
        assert f"coordinator start {stage} --data {tmp_path}" in text
    assert not made["sections"]["training"]["there"]
    assert "absent: " in build.describe(made)


def test_unreadable_section_leaves_the_others(tmp_path: Path) -> None:
    data = trained(tmp_path)
    (data / "train" / "metrics.jsonl").write_text("not JSON\n")
    found = build.collect(data)
    assert isinstance(found.training, Absent)
    assert "metrics.jsonl can't be read" in found.training.reason
    assert not isinstance(found.forecasts, Absent)
    (backtested(data) / "backtest" / "linear.json").write_text('{"mean": []}')
    unread = build.collect(data).backtests
    assert isinstance(unread, Absent) and unread.damaged and "linear.json can't be read" in unread.reason


def test_garbage_in_metrics_is_skipped_and_counted(tmp_path: Path) -> None:
    data = controlled(trained(tmp_path))
    whole = build.collect(data)
    for stage in ("train", "control"):
        with (data / stage / "metrics.jsonl").open("ab") as file:
            file.write(b'\xc0\xc1\nnull\n[]\n{"step": "x", "version": "x"}\n{}\n' + b"[" * 100_000 + b"\n")
            file.write(
                b'{"step": 9999, "version": 9999, "loss": "x", "losses/cost": NaN, "ranks": "x", "skill": 1, "skills": 3}\n'
            )
    found = build.collect(data)
    assert not isinstance(whole.training, Absent) and not isinstance(found.training, Absent)
    assert not isinstance(whole.control, Absent) and not isinstance(found.control, Absent)
    assert found.training.skipped == found.control.skipped == 6
    assert found.training.loss[1].tolist() == whole.training.loss[1].tolist()
    assert found.training.ranks == whole.training.ranks and set(found.training.skill) == set(whole.training.skill)
    assert found.control.curve[2].tolist() == whole.control.curve[2].tolist()
    assert page(found).count("6 unreadable lines of metrics.jsonl left out") == 2


def test_missing_folder_is_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("coordinator start --extract --data")):
        build.report(tmp_path / "nowhere", tmp_path / "report.html")


def test_markup_in_facts_is_escaped(facts: Facts) -> None:
    text = page(Facts(**{**vars(facts), "data": '<script>"&', "training": Absent("<b>why</b>", "<i>")}))
    assert "<script" not in text
    assert "<b>" not in text
    assert json.dumps(Outline(text).fetched) == "[]"
