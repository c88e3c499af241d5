"""What each fault of a host or a cable costs a training over four hosts: seconds to notice, to go on, to have the host back.

    python -m scripts.bench_faults [--out docs/benchmarks/faults.jsonl] [--seed 1] [--kinds "host death,disk full"]

Needs root and Linux (see tests/cluster/bed.py): the hosts are network namespaces of this machine, with the real ssh, coordinator, workers
and worker/train.py on them, one fault of each kind in a row. One JSON line a fault; `--docs` puts them into docs/operations.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
from pathlib import Path

from tests.cluster.bed import Bed
from tests.cluster.faults import KINDS, Watched
from tests.cluster.fleet import Fleet
from tests.e2e.conftest import PLAN

ROOT = Path(__file__).resolve().parent.parent
LINES, DOCS = ROOT / "docs" / "benchmarks" / "faults.jsonl", ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- faults: begin (python -m scripts.bench_faults --docs) -->", "<!-- faults: end -->"
COLUMNS = {
    "fault": "fault",
    "notice_s": "noticed after",
    "recover_s": "next step of the ring after",
    "steps_repeated": "steps made again",
    "back_s": "whole ring again, once mended",
}


def write_table() -> None:
    """The lines as a table, in place of the one that stands there."""
    rows = [json.loads(line) for line in LINES.read_text().splitlines()]
    table = [f"| {' | '.join(COLUMNS.values())} |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [
            f"{row[name]:.1f} s" if isinstance(row.get(name), float) else str(row.get(name, "–")) for name in COLUMNS
        ]
        table.append(f"| {' | '.join(cells)} |")
    where = f"On one machine with {rows[0]['cores']} cores for all {rows[0]['hosts']} hosts, which other work kept busy ({rows[0]['machine']})."
    before, _, rest = DOCS.read_text().partition(BEGIN)
    DOCS.write_text("\n".join([before + BEGIN, "", where, "", *table, "", END]) + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the lines to this file; default: stdout")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--kinds", default="", help="comma-separated; default: each kind once")
    parser.add_argument("--docs", action="store_true", help="only write the table, from docs/benchmarks/faults.jsonl")
    options = parser.parse_args()
    if options.docs:
        write_table()
        return
    draw = random.Random(options.seed)
    machine = {"machine": platform.platform(terse=True), "cores": os.cpu_count(), "hosts": options.hosts}
    with Bed(options.hosts) as bed:
        fleet = Fleet(bed)
        # More steps than the faults take: the run is ended when the last one is over.
        toml = fleet.training(steps=100_000, validate_every=100_000)
        fleet.start("--extract", "--train", *PLAN, "--train-config", toml, "--retries", "50")
        watched = Watched(fleet)
        try:
            for kind in KINDS if not options.kinds else [k for k in KINDS if k.name in options.kinds.split(",")]:
                row = {**machine, **watched.suffer(kind, draw.choice(bed.hosts[1:]), draw)}
                print(json.dumps(row), flush=True)
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        finally:
            print(fleet.narration(), file=sys.stderr)
            fleet.process.kill()


if __name__ == "__main__":
    main()
