"""Run the emulator of EIA API v2, CAISO OASIS and EIA's bulk files: `python -m ingest.emulator --port 0`.

Prints one JSON line {"url", "pid", "world"} on stdout when it accepts connections; ends on SIGTERM, SIGINT and, with
--stop-with-parent, when its stdin ends.
"""

from __future__ import annotations

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

from ingest.emulator.clock import Clock
from ingest.emulator.eia.pages import Style
from ingest.emulator.faults.plan import FaultPlanError, parse_plan
from ingest.emulator.http.app import App, Settings
from ingest.emulator.http.responses import JSON, Answer
from ingest.emulator.http.server import Connection, head_of
from ingest.emulator.policy import Limits
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


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ingest.emulator", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback)")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--world", choices=("synthetic", "recordings"), default="synthetic")
    parser.add_argument(
        "--recordings", nargs="+", type=Path, default=[], metavar="PATH", help="files or folders to serve"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic world, faults, orders and suspensions")
    parser.add_argument(
        "--quirks", choices=("none", "eia"), default="eia", help="faults of real data in the synthetic world"
    )
    parser.add_argument(
        "--revise-days", type=int, default=14, help="hours younger than this may still change (synthetic)"
    )
    parser.add_argument(
        "--now", default="2026-06-24T06", metavar="HOUR", help="UTC hour at which the emulated clock starts"
    )
    parser.add_argument("--clock-scale", type=float, default=1.0, metavar="X", help="emulated seconds a real second")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="real time added to every answer")
    parser.add_argument("--policy", choices=("none", "eia"), default="none", help="request limits of EIA and OASIS")
    parser.add_argument("--rate", type=float, default=2.5, help="requests a second, sustained (emulated time)")
    parser.add_argument("--burst", type=float, default=5.0, help="requests at once")
    parser.add_argument("--suspend", type=float, default=20.0, help="seconds of a suspension, typical")
    parser.add_argument("--keys", default="", metavar="K1,K2", help="the only valid keys (default: all but INVALID…)")
    parser.add_argument("--keyless", action="store_true", help="serve requests without a key, too")
    parser.add_argument("--echo-header-key", action="store_true", help="echo a key that came in X-Api-Key, too")
    parser.add_argument("--total", choices=("text", "int"), default="text", help="type of `total`")
    parser.add_argument("--values", choices=("text", "number"), default="text", help="type of `value`")
    parser.add_argument("--cache-mb", type=int, default=256, help="bound of the kept answers")
    parser.add_argument(
        "--faults", metavar="FILE", help="JSON fault plan (see ingest/emulator/faults/plan.py); - for stdin"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="JSON lines, one a request, without keys")
    parser.add_argument("--stop-with-parent", action="store_true", help="end when stdin ends, as when the parent dies")
    return parser


def main() -> None:
    """Serve until stopped; exit code 2 for a world or plan that can't be served."""
    parser = arguments()
    options = parser.parse_args()
    if options.faults == "-" and options.stop_with_parent:
        parser.error("--faults - and --stop-with-parent both read stdin")
    try:
        world = _world(options)
        settings = _settings(options)
        start = datetime.strptime(options.now, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    asyncio.run(_serve(options, App(world, Clock(start, options.clock_scale), settings), world))


def _world(options: argparse.Namespace) -> World:
    if options.world == "recordings":
        from ingest.emulator.worlds.recordings import RecordingsWorld  # pandas takes half a second to load

        return RecordingsWorld(options.recordings)
    from ingest.emulator.worlds.synthetic import SyntheticWorld

    return SyntheticWorld(options.seed, quirks=options.quirks == "eia", revise_days=options.revise_days)


def _settings(options: argparse.Namespace) -> Settings:
    text = "[]"
    if options.faults:
        text = sys.stdin.read() if options.faults == "-" else Path(options.faults).read_text()
    try:
        faults = parse_plan(json.loads(text))
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

    def head(answer: Answer) -> bytes:
        date = f"Date: {formatdate(app.now(), usegmt=True)}\r\n".encode()
        return head_of(answer, date + (eia if answer.content_type == JSON else other))

    latency = options.latency_ms / 1000
    server = await loop.create_server(lambda: Connection(app, head, latency), options.host, options.port, backlog=512)
    host, port = server.sockets[0].getsockname()[:2]
    print(json.dumps({"url": f"http://{host}:{port}", "pid": os.getpid(), "world": world.name}), flush=True)
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
