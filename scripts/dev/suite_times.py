"""Count the tests of each folder and their time: `uv run pytest --junitxml FILE`, then `uv run scripts/dev/suite_times.py FILE`.

Writes `docs/benchmarks/tests.jsonl`, a line a folder, and the table in `docs/CONTRIBUTING.md` from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = ROOT / "docs" / "benchmarks" / "tests.jsonl"
PAGE = ROOT / "docs" / "CONTRIBUTING.md"
BEGIN, END = "<!-- suite_times: begin (scripts/dev/suite_times.py) -->", "<!-- suite_times: end -->"


def measured(report: Path) -> list[dict[str, object]]:
    """Return a line for each folder: tests that ran, seconds in all, the slowest test and its seconds."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            parts = case.get("classname", "").split(".")
            folder = "/".join(parts[:3] if len(parts) > 3 else parts[:2])
            found[folder].append((float(case.get("time", "0")), case.get("name", "").partition("[")[0]))
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [
        {
            "folder": folder,
            "tests": len(times),
            "seconds": round(sum(s for s, _ in times), 1),
            "slowest": max(times)[1],
            "slowest_s": round(max(times)[0], 1),
            "machine": machine,
        }
        for folder, times in sorted(found.items())
    ]


def table(lines: list[dict[str, object]]) -> str:
    """Return the Markdown table."""
    rows = [
        f"| `{line['folder']}` | {line['tests']} | {line['seconds']:.0f} | `{line['slowest']}`, {line['slowest_s']:.0f} |"
        for line in lines
    ]
    head = ["| folder | tests | seconds | slowest test, seconds |", "|---|---|---|---|"]
    return "\n".join([f"On {lines[0]['machine']}, times added up:", "", *head, *rows])


def main() -> None:
    """Write the lines, and the table from them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the file that `pytest --junitxml` wrote")
    LINES.write_text("".join(json.dumps(line) + "\n" for line in measured(parser.parse_args().report)))
    before, rest = PAGE.read_text().split(BEGIN)
    lines = [json.loads(line) for line in LINES.read_text().splitlines()]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
