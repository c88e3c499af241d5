"""`python -m scripts.evaluate.forecast`: baselines and a run on the same hours, and the pages made from their lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ingest.calendar import calendar_of
from scripts.evaluate import forecast, forecast_report, intervals
from scripts.evaluate.forecast_scores import Actuals, Contest
from worker.forecast.baselines import fit
from worker.forecast.baselines.table import read_table


@pytest.fixture(scope="module")
def table(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baselines") / "baselines.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "is_installed", lambda: False)
        flags = ("--data", str(data), "--validate", "2023-01", "--test", "2023-02")
        more = ("--neighbours", "all", "--out", str(path))
        assert forecast.main(["baselines", *flags, *more]) == 0
    return path


def scored(data: Path, out: Path, *flags: str) -> list[dict]:
    assert forecast.main(["run", "--data", str(data), "--out", str(out), *flags]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_run_and_baselines_are_scored_on_the_same_hours(data: Path, alone: Path, table: Path, tmp_path: Path) -> None:
    lines = scored(data, tmp_path / "lines.jsonl", "--run", str(alone), "--baselines", str(table))
    names = ["operators", "weekly naive", fit.BIAS, fit.RIDGE, fit.MIXTURE, fit.NEIGHBOURS, "forecaster"]
    assert list(dict.fromkeys(line["who"] for line in lines)) == names
    assert len(lines) == 3 * len(names)  # two respondents and their mean
    assert {line["hours"] for line in lines if "hours" in line and line["who"] != "weekly naive"} == {28 * 24}
    best = max(
        names[2:5],
        key=lambda who: next(x for x in lines if x["who"] == who and x["respondent"] == "mean")["validation_skill"],
    )
    for line in lines:
        assert set(line["over"]) == {"operators", best} - {line["who"]}
        if "operators" in line["over"] and line["who"] != "weekly naive":
            assert line["over"]["operators"]["skill"] == pytest.approx(line["skill"], abs=1e-6)
    found = {(line["who"], line["respondent"]): line for line in lines}
    own, rival = found["forecaster", "PACW"], found[best, "PACW"]
    assert own["over"][best]["skill"] == pytest.approx(own["skill"] - rival["skill"], abs=1e-6)
    means = [found["forecaster", name]["skill"] for name in ("ERCO", "PACW")]
    assert found["forecaster", "mean"]["skill"] == pytest.approx(np.mean(means))
    assert best != fit.NEIGHBOURS, "the best baseline is one on own hours"
    assert found[fit.RIDGE, "PACW"]["over"]["operators"]["p"] < 0.01  # the error of its DF repeats every day


def test_mean_of_all_on_disk_counts_no_demand_twice_and_that_of_named_ones_counts_each() -> None:
    """Two contests of the same lines: TEX, which is ERCO, counts where it is named."""
    hours = calendar_of("ERCO", 420000, 420000 + 24 * 40 - 1)
    draw = np.random.default_rng(1)
    noise = {name: draw.normal(0, 1, len(hours.hours)) for name in ("ERCO", "PACW")}
    noise["TEX"] = noise["ERCO"]
    level, history = np.full(len(hours.hours), 100, np.float32), np.arange(400, dtype=np.float32)
    actuals = {
        name: Actuals(hours, level, (level + 2 * x).astype(np.float32), level, history) for name, x in noise.items()
    }
    better = {name: level + (1.0 if name == "PACW" else 0.5) * x for name, x in noise.items()}
    operators = {name: one.operator for name, one in actuals.items()}
    for averaged, want in ((("ERCO", "PACW"), 0.625), (("ERCO", "PACW", "TEX"), 2 / 3)):
        contest = Contest(actuals, {"operators": operators}, averaged)
        *own, mean = contest.lines("ours", better, {})
        assert len(own) == 3 and mean["averaged"] == list(averaged)
        assert mean["skill"] == pytest.approx(want, abs=1e-4) and mean["over"]["operators"]["skill"] == pytest.approx(
            want, abs=1e-4
        )
        lines = [{"label": "main", **line} for line in (*contest.lines("operators", operators, {}), *own, mean)]
        assert f"{want:+.3f} |" in forecast_report._skills(lines)


def test_pages_are_made_from_the_lines(
    data: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(forecast_report, "DOCS", page)
    marks = (forecast_report.FIRST, forecast_report.FIRST_END, forecast_report.BEGIN, forecast_report.END)
    page.write_text("\n".join(marks))
    out = tmp_path / "lines.jsonl"
    scored(data, out, "--baselines", str(table))
    assert forecast.main(["docs", "--in", str(out)]) == 0
    first, rest = page.read_text().split(forecast_report.FIRST_END)
    assert "| ridge | +0." in first
    assert "2 of 2" in first
    assert "against operators" in rest


def test_other_periods_and_files_are_refused(data: Path, table: Path, tmp_path: Path) -> None:
    common = ["run", "--data", str(data), "--out", str(tmp_path / "lines.jsonl")]
    for flags, words in (
        ([], "--baselines"),
        (["--baselines", str(table), "--test", "2023"], "not all of"),
        (["--baselines", str(tmp_path / "absent.parquet")], "holds no baselines"),
    ):
        with pytest.raises(SystemExit, match=words):
            forecast.main([*common, *flags])


def test_table_holds_validation_and_test_hours(table: Path) -> None:
    found = read_table(table)
    assert list(found.respondents) == ["ERCO", "PACW"]
    for points in found.respondents.values():
        assert (points.hour[0], points.hour[-1]) == (found.validate.first, found.test.last)
        assert (points.issue < points.hour).all()


def test_intervals_are_compared_on_one_median(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{intervals.BEGIN}\nold\n{intervals.END}\nafter\n")
    monkeypatch.setattr(intervals, "DOCS", page)
    flags = ["--period", "2023-01:2023-02", "--left-out", "PACW", "--write"]
    assert intervals.main(["--data", str(data), "--run", str(alone), *flags]) == 0
    printed = capsys.readouterr().out.strip()
    ways = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| the model's")]
    assert ways == ["the model's own", "the model's own, left out"]
    assert printed in page.read_text() and "old" not in page.read_text()
    former = next(line for line in printed.splitlines() if line.startswith(f"| {intervals.WAYS[1]}"))
    assert former.endswith("| 1.000 |") and " of 2 (" in former  # one respondent that is not left out, two months
