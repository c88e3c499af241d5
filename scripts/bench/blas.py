"""Benchmark of the BLAS under a training step: `python -m scripts.bench.blas --data DIR --out FILE.jsonl [--openblas libopenblas.so.0]`.

Three trainings of one process take turns, round after round, with the same threads and the same batches:

  shim       nothing installed: the OpenBLAS of scipy's wheel, which the program loads
  preloaded  --openblas, preloaded by hand
  reference  the BLAS of mlx's wheel, preloaded by hand, so that the program keeps it: the state without the shim

It appends a JSON line for each: the median seconds of a step in each round, and the library that the rank itself found in use.
DIR needs a respondent with more hours than --hours, as scripts/bench/train.py does.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ringattn.blas.library import wheel_library
from ringattn.blas.loader import SYSTEM_LIBRARY, system_openblas
from scripts.bench.common import cores, emit, parser, processor
from scripts.bench.train import add_options, train


def main() -> None:
    """Measure, append and print the ratios of the medians."""
    command = parser(__doc__)
    add_options(command, steps=6)
    command.add_argument("--hours", type=int, default=2000, help="of context in one sequence")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--openblas", type=Path, default=system_openblas(), help="default: the system's")
    options = command.parse_args()
    if options.openblas is None:
        command.error(
            f"the system has no {SYSTEM_LIBRARY}: name one with --openblas, or `apt-get install libopenblas0-pthread`"
        )
    reference = wheel_library("mlx", "mlx*.libs/libblas*")
    preloads = {"shim": "", "preloaded": str(options.openblas), "reference": reference}
    seconds: dict[str, list[float]] = {name: [] for name in preloads}
    used: dict[str, Any] = {}
    for _ in range(options.rounds):
        for name, library in preloads.items():
            environ = {"LD_PRELOAD": library} if library else {}
            lines, result = train(options, options.hours, 1, cores(), environ=environ)
            # The first step loads and warms up.
            seconds[name].append(round(statistics.median(line["seconds"] for line in lines[1:]), 4))
            used[name] = result["arithmetic"]["mlx"]
    for name, rounds in seconds.items():
        line = {"case": name, "hours": options.hours, "cores": cores(), "processor": processor(), "blas": used[name]}
        emit({**line, "seconds": rounds, "median": statistics.median(rounds)}, options.out)
    shim, preloaded, slow = (statistics.median(seconds[name]) for name in ("shim", "preloaded", "reference"))
    print(
        f"a step with the shim takes {shim / preloaded:.2f} of one with OpenBLAS preloaded, 1/{slow / shim:.1f} of one without"
    )


if __name__ == "__main__":
    main()
