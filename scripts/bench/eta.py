"""Compare the time left that a stage states after a tenth of its time with what was left: `python -m scripts.bench.eta STAGE …`.

    python -m scripts.bench.eta --extract --respondents all --start 2024 --end 2024
    python -m scripts.bench.eta --train --data data --train-config small.toml --runs 3

Each run is `coordinator start STAGE … --json` in a process of its own; its lines on stderr have the estimates. An extraction begins
in a new folder each time, a training or control training in a copy of --data without an earlier one. Lines of JSON go to stdout.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARES = (0.1, 0.25, 0.5, 0.75)  # of a run's time, at which its estimate is compared
OWN = {"--train": "train", "--rollouts": "control", "--extract": ""}  # stage → folder of its results


def measure(stage: str, data: Path, extra: list[str]) -> dict[str, Any]:
    """Run a stage once; return at each share of its time the estimate and what was left, in seconds."""
    command = [sys.executable, "-m", "coordinator", "start", stage, "--data", str(data), "--json", *extra]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stated: list[tuple[float, float]] = []  # seconds since the start, seconds left
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "progress" and event.get("eta_s") is not None:
            stated.append((time.monotonic() - began, event["eta_s"]))
    code, whole = process.wait(), time.monotonic() - began
    record: dict[str, Any] = {"what": "eta", "stage": stage[2:], "seconds": round(whole, 1), "exit_code": code}
    for share in SHARES:
        at = next(((t, left) for t, left in stated if t >= share * whole), None)
        if at is not None:
            record[f"at_{share:.0%}"] = {
                "left": round(whole - at[0], 1),
                "stated": round(at[1], 1),
                "error": round(at[1] / (whole - at[0]) - 1, 3) if whole > at[0] else None,
            }
    return record


def main() -> None:
    """Measure runs of one stage."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.eta", description=__doc__)
    stages = parser.add_mutually_exclusive_group(required=True)
    for flag in OWN:
        stages.add_argument(flag, dest="stage", action="store_const", const=flag)
    parser.add_argument("--data", type=Path, help="folder with series, for a training")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--forget", action="store_true", help="remove what earlier runs took, before each run")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        if options.data:
            shutil.copytree(options.data, folder, ignore=shutil.ignore_patterns(*filter(None, OWN.values()), "logs"))
        for _ in range(options.runs):
            kept = folder / "logs" / "run.jsonl"
            before = kept.read_bytes() if kept.exists() and not options.forget else b""
            shutil.rmtree(folder / OWN[options.stage], ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(before)
            print(json.dumps(measure(options.stage, folder, extra)), flush=True)


if __name__ == "__main__":
    main()
