#!/usr/bin/env python3
"""uv run scripts/dev/draw_run.py: run the default job and keep a picture of it: docs/images/run.svg and docs/images/coverage.png.

The picture is what a terminal shows: the running coordinator is asked for its status half-way, and the display draws it.
"""

from __future__ import annotations

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


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        command = [sys.executable, "-m", "coordinator", "start", "--extract", "--quiet"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        picture = None
        while process.poll() is None:
            time.sleep(0.1)
            endpoint = data / ENDPOINT_FILE
            snapshot = status.request_snapshot(endpoint.read_text(), Path(folder)) if endpoint.exists() else None
            if snapshot and snapshot["tasks"].get("done", 0) * 2 >= sum(snapshot["tasks"].values()) and picture is None:
                picture = to_rich(run_view(snapshot, already_done=0))
        assert process.stdout is not None
        console = Console(record=True, width=WIDTH, file=sys.stderr, force_terminal=True)
        console.print("$ uv run coordinator start --extract", style="bold")
        if picture is not None:
            console.print(picture, "")
        console.print(process.stdout.read().strip(), highlight=False, markup=False)
        svg = console.export_svg(title="coordinator start --extract, half-way and at its end")
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # they would be fetched from a server
        (IMAGES / "run.svg").write_text(svg)
        shutil.copy(data / "coverage.png", IMAGES / "coverage.png")


if __name__ == "__main__":
    main()
