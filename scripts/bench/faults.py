"""Measure what each fault of a host or a cable costs a training over four hosts: seconds to detect, to resume, to have the host back.

    python -m scripts.bench.faults [--out docs/benchmarks/faults.jsonl] [--seed 1] [--kinds "host death,disk full"]

Needs root and Linux (see scripts/testbed/bed.py): the hosts are network namespaces of this machine, with the real ssh, coordinator, workers
and worker/train.py on them, one fault of each kind in turn. One JSON line per fault, which `pytest -s -m long tests/acceptance/cluster/test_faults.py`
prints too; `--docs` writes the lines of docs/benchmarks/faults.jsonl into docs/how-to/operations.md.
"""

import random
import sys
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench.common import BENCHMARKS, ROOT, emit, markdown_table, parser, read_lines, rewrite_section
from scripts.testbed.bed import Bed
from tests.support.cluster_faults import KINDS, TrainingFaults
from tests.support.cluster_fleet import Fleet
from tests.support.program import PLAN

LINES, DOCS = BENCHMARKS / "faults.jsonl", ROOT / "docs" / "how-to" / "operations.md"
BEGIN, END = "<!-- faults: begin (python -m scripts.bench.faults --docs) -->", "<!-- faults: end -->"
STAGES = {
    "fault in a training": "step",
    "fault in a control training": "version",
}  # and a field that only its lines have
COLUMNS = {
    "notice_s": "noticed after",
    "recover_s": "resumed after",
    "steps_repeated": "steps repeated",
    "back_s": "host takes part again after its repair",
}


def write_table() -> None:
    """Write the table of medians by kind into the generated section of the page."""
    rows = read_lines(LINES)
    parts = [
        f"On one machine with {rows[0]['cores']} cores for all {rows[0]['hosts']} hosts, shared with other work ({rows[0]['machine']})."
    ]
    for stage, mark in STAGES.items():
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if mark in row:
                kinds.setdefault(row["fault"], []).append(row)
        names = [name for name in COLUMNS if any(name in row for own in kinds.values() for row in own)]
        body = [
            [kind, str(len(own)), *(_median([row[name] for row in own if name in row], name) for name in names)]
            for kind, own in kinds.items()
        ]
        parts.append(markdown_table([stage, "times", *(COLUMNS[name] for name in names)], body))
    rewrite_section(DOCS, BEGIN, END, "\n\n".join(parts))


def _median(values: list[float], name: str) -> str:
    if not values:
        return "–"
    return f"{median(values):.1f} s" if name.endswith("_s") else f"{median(values):g}, at most {max(values):g}"


def main() -> None:
    """Cause the faults and print their lines, or write the table."""
    command = parser(__doc__)
    command.add_argument("--out", type=Path, help="append the lines to this file; default: stdout")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--hosts", type=int, default=4)
    command.add_argument("--kinds", default="", help="comma-separated; default: each kind once")
    command.add_argument("--docs", action="store_true", help="only write the table, from docs/benchmarks/faults.jsonl")
    options = command.parse_args()
    if options.docs:
        write_table()
        return
    draw = random.Random(options.seed)
    with Bed(options.hosts) as bed:
        fleet = Fleet(bed)
        # More steps than the faults take: the run is stopped after the last fault.
        toml = fleet.training(steps=100_000, validate_every=100_000)
        fleet.start("--extract", "--train", *PLAN, "--train-config", toml, "--retries", "50")
        watched = TrainingFaults(fleet)
        try:
            for kind in KINDS if not options.kinds else [k for k in KINDS if k.name in options.kinds.split(",")]:
                emit(watched.inject(kind, draw.choice(bed.hosts[1:]), draw), options.out)
        finally:
            print(fleet.log_text(), file=sys.stderr)
            fleet.process.kill()


if __name__ == "__main__":
    main()
