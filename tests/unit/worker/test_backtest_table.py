"""`python -m scripts.evaluate.backtest_table`: means of judged files, and one file's respondents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.evaluate import backtest_table


def judged(**skills: float) -> dict[str, Any]:
    """What the judge prints of respondents with these skills over DF; each covers 0.8, 0.9 and, in a day of hours, 0.1 of its months."""
    months = {
        f"2019-0{n}": {"hours": hours, "coverage": {"80%": share}}
        for n, (hours, share) in enumerate([(700, 0.8), (700, 0.9), (24, 0.1)], 1)
    }
    lines = {
        code: {
            "over": {"DF": {"skill": skill, "p": 1e-5, "mae": 9.0}},
            "mae": 1200.0,
            "crps": 800.0,
            "coverage": {"80%": 0.81},
            "parts": {"month": months},
        }
        for code, skill in skills.items()
    }
    over = {"DF": {"skill": sum(skills.values()) / len(skills), "better": 1, "of": len(skills)}}
    return {
        "period": ["2019-01-01T09", "2020-01-01T08"],
        "respondents": lines,
        "mean": {"respondents": list(skills), "over": over},
    }


def test_page_has_a_line_a_file_and_a_line_a_respondent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"authorities": judged(ERCO=0.1, MISO=0.5), "left out": judged(PACW=0.25, PGE=-0.05)}
    flags = []
    for name, verdict in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(verdict))
        flags += ["--in", f"{name}={tmp_path / name}.json"]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{backtest_table.BEGIN}\nold\n{backtest_table.END}\nafter\n")
    monkeypatch.setattr(backtest_table, "DOCS", page)
    assert backtest_table.main([*flags, "--write"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| 2 authorities | +0.300, 1 of 2 | 81.0% | 2 of 4 |" in text
    assert "| 2 left out | +0.100, 1 of 2 | 81.0% | 2 of 4 |" in text
    assert "| PACW | +0.250 (p < 0.0001) | 1,200 | 800 | 81.0% | 1 of 2 |" in text and "| ERCO" not in text
    assert capsys.readouterr().out.strip() in text
    with pytest.raises(SystemExit, match=r"NAME=FILE\.json"):
        backtest_table.main(["--in", "judged.json"])
