"""Command line of a worker: `worker --coordinator tcp://host:port [--data DIR] [--connections 5] [--key FILE]`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ingest.console import LineFormatter, protect
from ringattn.macos import local_name_problem, refused_python
from worker.argparse_errors import Parser
from worker.process.allocator import limit_arenas

if TYPE_CHECKING:
    from worker.agent.handlers import Handler
    from worker.engine.engine import Engine

ENGINE_END_S = 4.0  # for an engine's libraries to end their processes; the coordinator kills a worker after 5

# Set before numpy is imported: several workers on one host must not each start one thread per core.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


OPTIONS: dict[str, dict[str, Any]] = {
    "--coordinator": {
        "required": True,
        "metavar": "tcp://HOST:PORT",
        "help": "address that `coordinator start` listens on",
    },
    "--data": {"type": Path, "default": Path("data"), "metavar": "DIR", "help": "data folder (default: ./data)"},
    "--connections": {"type": int, "default": 5, "metavar": "N", "help": "page requests at once (default: 5)"},
    "--capacity": {"type": int, "default": 4, "metavar": "N", "help": "leases at once (default: 4)"},
    "--key": {"type": Path, "metavar": "FILE", "help": "key file made by `coordinator keys add NAME`"},
    "--host": {"metavar": "NAME", "help": "name of this host in the hostfile (default: the system's)"},
    "--address": {
        "metavar": "IP",
        "help": "address for the neighbours in a ring (default: on the coordinator's network)",
    },
    "--engine": {
        "metavar": "MODULE:FACTORY",
        "help": "run leases on an executor (concurrent.futures) that this function returns; no ranks",
    },
    "--no-ranks": {"action": "store_true", "help": "run no ranks of a ring on this host"},
    "--patience": {
        "type": float,
        "default": 60.0,
        "metavar": "S",
        "help": "seconds without a coordinator until the worker exits; inf: wait for its return (default: 60)",
    },
    "--stop-with-parent": {"action": "store_true", "help": "end with the process that started this one"},
}


def main(arguments: Sequence[str] | None = None, key: Mapping[str, str] | None = None) -> None:
    """Run a worker and end the process with its exit code.

    Exit codes: 0 stopped by the coordinator, 1 refused, 2 usage, 75 no coordinator answered, 130 interrupted.

    Args:
        arguments: Command line; None for that of the process.
        key: Content of a key file, for a caller that has it without the file.
    """
    protect()
    limit_arenas()
    parser = Parser(
        "worker",
        "Run leases of a coordinator on this host.",
        "worker --coordinator tcp://10.0.0.1:5555 --key m2-1.key --data data",
        OPTIONS,
    )
    options = parser.parse_args(arguments)
    if reason := refused_python():
        parser.error(reason)
    if not options.coordinator.startswith("tcp://"):
        parser.error(f"--coordinator {options.coordinator}: use tcp://HOST:PORT")
    if options.address and (problem := local_name_problem(options.address)):
        parser.error(f"--address: {problem}")
    if options.connections < 1 or options.capacity < 1:
        parser.error("--connections and --capacity must be 1 or more")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    from coordinator.wire.auth import CurveError, load_worker, parse_worker_key
    from coordinator.wire.messages import MAX_CAPACITY
    from worker.agent.agent import WorkerConfig, run_agent
    from worker.agent.handlers import default_handlers

    try:
        curve = load_worker(options.key) if options.key is not None else None if key is None else parse_worker_key(key)
    except CurveError as error:
        parser.error(str(error))
    if options.capacity > MAX_CAPACITY:
        parser.error(f"--capacity must be at most {MAX_CAPACITY}")
    make_handlers: Callable[[], Mapping[str, Handler]] = partial(default_handlers, ranks=not options.no_ranks)
    engine: Engine | None = None
    if options.engine:
        from coordinator.wire.engines import load_factory
        from worker.engine.handlers import engine_handlers

        # As an activated environment has it: some libraries start programs of their own by name.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

        try:
            handlers, engine = engine_handlers(load_factory(options.engine))
        except ValueError as error:
            parser.error(str(error))
        make_handlers = lambda: handlers  # noqa: E731
    config = WorkerConfig(
        options.coordinator,
        options.data,
        connections=options.connections,
        capacity=options.capacity,
        curve=curve,
        make_handlers=make_handlers,
        no_coordinator_timeout_s=options.patience,
        host=options.host,
        address=options.address,
    )
    code = run_agent(config, stop_with_parent=options.stop_with_parent)
    if engine is not None:
        end_with_engine(engine, code)
    logging.shutdown()
    os._exit(code)  # not sys.exit, which would join the page threads of cancelled leases that still wait for a server


def end_with_engine(engine: Engine, code: int) -> NoReturn:
    """End the process as Python does, so that what an engine's library registered with `atexit` ends the engine's processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # it ends already; some libraries have handlers of their own that would cut it short
    timer = threading.Timer(ENGINE_END_S, os._exit, (code,))
    timer.daemon = True
    timer.start()
    engine.close()
    sys.exit(code)
