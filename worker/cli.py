"""The worker's command line: `worker --coordinator tcp://host:port [--data DIR] [--connections 5] [--key FILE]`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.argparse_errors import Parser

# Before numpy is loaded: several workers on one host must not each start a thread a core.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def _parser() -> Parser:
    parser = Parser(
        "worker",
        "Executes leases of a coordinator on this host.",
        "worker --coordinator tcp://10.0.0.1:5555 --key m2-1.key --data data",
    )
    parser.add_argument(
        "--coordinator", required=True, metavar="tcp://HOST:PORT", help="where `coordinator start` listens"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="data folder (default: ./data)")
    parser.add_argument("--connections", type=int, default=5, metavar="N", help="page requests at once (default: 5)")
    parser.add_argument("--capacity", type=int, default=4, metavar="N", help="leases at once (default: 4)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="key file made by `coordinator keys add NAME`")
    parser.add_argument("--host", metavar="NAME", help="this host's name in the hostfile (default: its own)")
    parser.add_argument(
        "--address", metavar="IP", help="where neighbours reach it (default: on the coordinator's network)"
    )
    parser.add_argument("--no-ranks", action="store_true", help="leave the ranks of a ring to other workers")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds without a coordinator until it gives up; inf: wait for its return (default: 60)",
    )
    parser.add_argument("--stop-with-parent", action="store_true", help="end with the process that started this one")
    return parser


def main(arguments: Sequence[str] | None = None, key: Mapping[str, str] | None = None) -> int:
    """Exit codes: 0 stopped by the coordinator, 1 refused, 2 usage, 75 no coordinator answers, 130 interrupted.

    key: content of a key file, for who has it without the file.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.coordinator.startswith("tcp://"):
        parser.error(f"--coordinator {options.coordinator}: use tcp://HOST:PORT")
    if options.connections < 1 or options.capacity < 1:
        parser.error("--connections and --capacity must be 1 or more")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")

    from coordinator.wire.auth import CurveError, load_worker, parse_worker_key
    from worker.agent.agent import run_agent
    from worker.agent.handlers import HANDLERS, RANKS

    try:
        curve = load_worker(options.key) if options.key is not None else None if key is None else parse_worker_key(key)
    except CurveError as error:
        parser.error(str(error))
    code = run_agent(
        options.coordinator,
        options.data,
        connections=options.connections,
        capacity=options.capacity,
        curve=curve,
        stop_with_parent=options.stop_with_parent,
        handlers={kind: do for kind, do in HANDLERS.items() if not (options.no_ranks and kind in RANKS)},
        no_coordinator_timeout_s=options.patience,
        host=options.host,
        address=options.address,
    )
    logging.shutdown()
    os._exit(code)  # not sys.exit: threads of cancelled leases may still wait for a server, and nobody waits for them


if __name__ == "__main__":
    main()
