"""Run the emulator of EIA API v2, CAISO OASIS and EIA's bulk files: `python -m ingest.emulator --port 0`.

It prints one JSON line {"url", "pid", "world"} on stdout when it accepts connections. It ends on SIGTERM, on SIGINT and,
with --stop-with-parent, when its stdin ends.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

from ingest.console import protect
from ingest.emulator.clock import Clock
from ingest.emulator.eia.pages import Style
from ingest.emulator.faults.plan import FaultPlanError, parse_plan
from ingest.emulator.http.app import App, Settings
from ingest.emulator.http.responses import JSON, Response
from ingest.emulator.http.server import Connection, head_of
from ingest.emulator.policy import Limits
from ingest.emulator.process import REFUSED
from ingest.emulator.worlds.base import World

# As recorded from api.eia.gov in July 2025.
_EIA_HEADERS = (
    "Access-Control-Allow-Headers: Origin, X-Requested-With, Content-Type, Accept, Authorization, X-Params\r\n"
    "Access-Control-Allow-Methods: GET,POST,PATCH,PUT,DELETE,OPTIONS\r\n"
    "Access-Control-Allow-Origin: *\r\nAge: 0\r\nCache-Control: max-age=0, no-cache, no-store\r\nConnection: keep-alive\r\n"
    "Pragma: no-cache\r\nStrict-Transport-Security: max-age=63072000; includeSubdomains;\r\nVary: Accept-Encoding\r\n"
    "Via: https/1.1 api-umbrella (emulator)\r\nX-Api-Umbrella-Request-Id: emulator\r\nX-Cache: MISS\r\n"
    "X-Content-Type-Options: nosniff\r\nX-Frame-Options: SAMEORIGIN\r\nX-Vcap-Request-Id: emulator\r\n"
)

# Option, default, metavar or choices, help. The default's type is the option's; False makes a flag.
_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("--host", "127.0.0.1", None, "address to bind (default: loopback)"),
    ("--port", 0, None, "port to bind (default: 0, any free port)"),
    ("--world", "synthetic", ("synthetic", "recordings"), "source of the hours (default: synthetic)"),
    ("--seed", 0, None, "seed of the synthetic world, faults, row orders and suspensions (default: 0)"),
    ("--respondents", "", "C1,C2", "the only respondents of the synthetic world (default: all)"),
    ("--quirks", "eia", ("none", "eia"), "faults of real data in the synthetic world (default: eia)"),
    ("--revise-days", 14, "DAYS", "age below which synthetic hours may still change (default: 14)"),
    ("--now", "2026-06-24T06", "HOUR", "UTC hour at which the emulated clock starts (default: 2026-06-24T06)"),
    ("--clock-scale", 1.0, "X", "emulated seconds a real second (default: 1)"),
    ("--latency-ms", 0.0, "MS", "real time added to every response (default: 0)"),
    ("--policy", "none", ("none", "eia"), "request limits of EIA and OASIS (default: none)"),
    ("--rate", 2.5, None, "requests a second, sustained, in emulated time (default: 2.5)"),
    ("--burst", 5.0, None, "requests at once (default: 5)"),
    ("--suspend", 20.0, "SECONDS", "typical length of a suspension, in emulated time (default: 20)"),
    ("--keys", "", "K1,K2", "the only valid keys (default: all that do not begin with INVALID)"),
    ("--keyless", False, None, "serve requests without a key, too"),
    ("--echo-header-key", False, None, "echo a key that came in X-Api-Key, too"),
    ("--total", "text", ("text", "int"), "type of `total` (default: text)"),
    ("--values", "text", ("text", "number"), "type of `value` (default: text)"),
    ("--cache-mb", 256, "MB", "size limit of the response cache (default: 256)"),
    ("--faults", "", "FILE", "JSON fault plan (see ingest/emulator/faults/plan.py); - for stdin"),
    ("--stop-with-parent", False, None, "end when stdin ends, as it does when the parent process dies"),
)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m ingest.emulator", description=(__doc__ or "").split("\n\n")[0])
    for option, default, form, text in _OPTIONS:
        if default is False:
            parser.add_argument(option, action="store_true", help=text)
            continue
        name = "choices" if isinstance(form, tuple) else "metavar"
        parser.add_argument(option, type=type(default), default=default, help=text, **{name: form})
    parser.add_argument(
        "--recordings",
        action="extend",  # a run names every path with an option of its own
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="files or folders to serve",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="log file, one JSON line a request, without keys")
    return parser


def main() -> None:
    """Serve until stopped; exit with code 2 for a world or plan that can't be served."""
    protect()
    parser = arguments()
    options = parser.parse_args()
    if options.faults == "-" and options.stop_with_parent:
        parser.error("--faults - and --stop-with-parent both read stdin")
    try:
        world = _world(options)
        settings = _settings(options)
        start = datetime.strptime(options.now, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()
    except (ValueError, OSError) as error:  # one line: the coordinator shows it to a user who mistyped a path
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
    asyncio.run(_serve(options, App(world, Clock(start, options.clock_scale), settings), world))


def _world(options: argparse.Namespace) -> World:
    if options.world == "recordings":
        from ingest.emulator.worlds.recordings import RecordingsWorld  # pandas takes half a second to load

        return RecordingsWorld(options.recordings)
    from ingest.emulator.worlds.synthetic import SyntheticWorld

    only = [code for code in options.respondents.split(",") if code]
    return SyntheticWorld(
        options.seed, quirks=options.quirks == "eia", revise_days=options.revise_days, respondents=only
    )


def _settings(options: argparse.Namespace) -> Settings:
    plan = (
        "[]"
        if not options.faults
        else sys.stdin.read()
        if options.faults == "-"
        else Path(options.faults).read_text("utf-8")
    )
    try:
        faults = parse_plan(json.loads(plan))
    except (json.JSONDecodeError, FaultPlanError) as error:
        raise ValueError(f"--faults {options.faults}: {error}") from None
    return Settings(
        seed=options.seed,
        keyless=options.keyless,
        keys=tuple(key for key in options.keys.split(",") if key),
        echo_header_key=options.echo_header_key,
        limits=Limits(options.rate, options.burst, options.suspend) if options.policy == "eia" else None,
        style=Style(options.total == "text", options.values == "text"),
        cache_bytes=options.cache_mb << 20,
        faults=faults,
        log=options.log,
    )


async def _serve(options: argparse.Namespace, app: App, world: World) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    other = f"X-Emulator-World: {world.name}\r\n".encode()
    eia = _EIA_HEADERS.encode() + other

    def head(response: Response) -> bytes:
        date = f"Date: {formatdate(app.now(), usegmt=True)}\r\n".encode()
        return head_of(response, date + (eia if response.content_type == JSON else other))

    latency = options.latency_ms / 1000
    try:
        server = await loop.create_server(
            lambda: Connection(app, head, latency), options.host, options.port, backlog=512
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
        sys.exit(
            f"cannot listen on {options.host}, port {options.port}: {reason}. Name a free port of an address of this host with "
            "--host and --port; the emulator of `coordinator start` uses the address of --bind, e.g. --bind tcp://[::1]:0 "
            "where only IPv6 is up."
        )
    host, port = server.sockets[0].getsockname()[:2]
    name = f"[{host}]" if ":" in host else host  # IPv6
    print(json.dumps({"url": f"http://{name}:{port}", "pid": os.getpid(), "world": world.name}), flush=True)
    if options.stop_with_parent:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    await stop.wait()
    server.close()


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
