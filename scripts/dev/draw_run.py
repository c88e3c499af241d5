#!/usr/bin/env python3
"""Run the default extraction and draw docs/images/run.svg and report.png: `uv run scripts/dev/draw_run.py`.

run.svg shows what a terminal shows: the display of the running coordinator half-way, and its summary at the end. The summary is
printed as well, to be quoted in README. report.png shows the first screen of the report; it needs Chromium.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from coordinator.cli import status
from coordinator.stages.display import run_view, to_rich
from coordinator.stages.runner import ENDPOINT_FILE

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDTH = 110  # columns
SCREEN = "1100,1340"  # pixels of the report's picture


def main() -> None:
    """Run the extraction in a temporary folder and draw it."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = Path(folder) / "data" / ENDPOINT_FILE
        command = [sys.executable, "-m", "coordinator", "start", "--extract", "--quiet"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        half_way = None
        while process.poll() is None:
            time.sleep(0.1)
            snapshot = status.request_snapshot(endpoint.read_text(), Path(folder)) if endpoint.exists() else None
            if half_way is None and snapshot and snapshot.tasks["done"] * 2 >= sum(snapshot.tasks.values()):
                half_way = to_rich(run_view(snapshot, stage="extract"))
        assert process.stdout is not None
        summary = process.stdout.read().strip()
        draw_report(Path(folder))
    console = Console(record=True, width=WIDTH, file=sys.stderr, force_terminal=True)
    console.print("$ uv run coordinator start --extract", style="bold")
    if half_way is not None:
        console.print(half_way, "")
    console.print(summary, highlight=False, markup=False)
    svg = console.export_svg(title="coordinator start --extract, half-way and at its end")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts would be loaded from a server
    (IMAGES / "run.svg").write_text(svg)
    print(summary)


def draw_report(folder: Path) -> None:
    """Write the report of `folder`/data and draw its first screen."""
    subprocess.run([sys.executable, "-m", "coordinator", "report", "--quiet"], cwd=folder, check=True)
    if (browser := shutil.which("chromium") or shutil.which("chrome")) is None:
        print("no Chromium: report.png stays as it is", file=sys.stderr)
        return
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SCREEN}"]
    picture = f"--screenshot={IMAGES / 'report.png'}"
    subprocess.run([browser, *options, picture, f"file://{folder}/data/report.html"], check=True, capture_output=True)


if __name__ == "__main__":
    main()
