"""Benchmark the extraction against its peers.

    uv run --group bench-extract python -m scripts.bench.extract [--rounds 3] [--only speed,latency,policy,linear,bulk]

All clients use one emulator in one run, each as a separate process, in turn, round after round:
- ours: `coordinator start --extract`, 2 workers × 5 connections; verifies pages, syncs raw files, Parquet, journal and manifests
- gridstatus' EIA client (BASE_URL patched) with 1, 2 and 5 threads; keeps a DataFrame in memory and writes nothing
- bare: `requests` with 5 and 10 threads over the same pages; decompresses bodies and discards them

Writes JSON lines to docs/benchmarks/extract.jsonl, then the plot and docs/internals/extraction_benchmark.md from these lines
alone. A client that is not installed is named and skipped.
"""

import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ingest.emulator.process import Emulator
from ingest.plan import DEFAULT_RESPONDENTS
from scripts.bench.common import BENCHMARKS, ROOT, drawn, machine_line, markdown_table, parser, read_lines
from scripts.bench.common import emit as emit_line
from scripts.bench.extract_text import DOC_HEAD, DOC_SHARES

LINES = BENCHMARKS / "extract.jsonl"
DOCS = ROOT / "docs" / "internals" / "extraction_benchmark.md"
RUNS = ROOT / "runs"  # data folders of the measured runs: on the disk of the checkout, not in memory
KEY = "BENCHMARK-KEY-OF-40-CHARACTERS-OR-SO"
Period = tuple[str, str]  # first and last year
RESPONDENTS = DEFAULT_RESPONDENTS  # what ours fetches; the peer is given the same
POLICY_RATE = 2.5  # requests per second, sustained: EIA's limit
CLOCK = 2.0  # speed-up of the clock in the policy benchmark: the faster, the more a delay of this machine weighs

GRIDSTATUS = """
import sys, json, time
from gridstatus import EIA
url, start, end, threads, respondents = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5].split(",")
EIA.BASE_URL = url + "/v2/"
client = EIA(api_key="BENCHMARK-KEY-OF-40-CHARACTERS-OR-SO")
rows = 0
def counted(fetch):
    def page(*arguments):
        global rows
        frame, total = fetch(*arguments)
        rows += len(frame)
        return frame, total
    return page
client._fetch_page = counted(client._fetch_page)
began = time.perf_counter()
for dataset in ("electricity/rto/region-data", "electricity/rto/fuel-type-data"):
    client.get_dataset(dataset, start, end, facets={"respondent": respondents}, n_workers=threads)
print(json.dumps({"rows": rows, "s": time.perf_counter() - began}))
"""

BARE = """
import sys, json, time, requests
from concurrent.futures import ThreadPoolExecutor
requests_, threads = json.load(open(sys.argv[1])), int(sys.argv[2])
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=threads))
def fetch(url):
    answer = session.get(url, headers={"X-Api-Key": "BENCHMARK-KEY-OF-40-CHARACTERS-OR-SO"})
    answer.raise_for_status()
    return len(answer.content)
began = time.perf_counter()
with ThreadPoolExecutor(threads) as pool:
    size = sum(pool.map(fetch, requests_))
print(json.dumps({"bytes": size, "s": time.perf_counter() - began}))
"""

# Spends requests of the same key at a steady rate, and waits after a refusal.
OTHER = """
import sys, time, requests
url, rate = sys.argv[1], float(sys.argv[2])
session, due = requests.Session(), time.monotonic()
query = {"frequency": "hourly", "data[0]": "value", "facets[respondent][]": "CISO", "start": "2024-01-01T00", "end": "2024-01-02T00"}
while True:
    answer = session.get(url + "/v2/electricity/rto/region-data/data/", params=query, headers={"X-Api-Key": "BENCHMARK-KEY-OF-40-CHARACTERS-OR-SO"})
    if answer.status_code != 200:
        time.sleep(1)
    due = max(due + 1 / rate, time.monotonic())
    time.sleep(max(0, due - time.monotonic()))
"""


def timed(command: list[str], **environment: str) -> dict[str, Any]:
    """Return the JSON output of a client, after running it to its end, and the seconds of the whole process: wall and processor.

    Raises:
        RuntimeError: the client failed; its error output is in the message.
    """
    # With bytecode on disk, as installed: else each client compiles all that it imports, at every start.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COORDINATOR_", "PYTHONDONTWRITEBYTECODE"))}
    began, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **environment}, check=False)
    seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command[:4]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cpu_s = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime  # its workers' too, which it has waited for
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": seconds, "cpu_s": cpu_s}


def emit(event: str, **line: Any) -> None:
    """Append a line to the JSON lines and print it to stderr."""
    emit_line({"event": event, **line}, LINES, progress=True)


def ours(url: str, period: Period, *extra: str, keep: Path | None = None) -> dict[str, Any]:
    """Return the line of one extraction into an empty folder, everything synced. `s`: from the first lease to the summary."""
    folder = keep or Path(tempfile.mkdtemp(dir=RUNS))
    command = [sys.executable, "-m", "coordinator", "start", "--extract", "--json", "--quiet", "--source", url]
    command += ["--data", str(folder), "--start", period[0], "--end", period[1], *extra]
    try:
        result = timed(command, EIA_API_KEY=KEY)
    finally:
        if keep is None:
            shutil.rmtree(folder)
    assert result["rows"] == result["total"]
    return {
        "client": "ours",
        "setting": "2 workers × 5 connections",
        "rows": result["new_rows"],
        "requests": result["requests"],
        "s": result["seconds"],
        "wall_s": result["wall_s"],
        "cpu_s": result["cpu_s"],
        "peak_mb": result["peak_worker_mb"],
        "budgets": result["budgets"],
    }


def gridstatus(url: str, period: Period, threads: int) -> dict[str, Any]:
    """Return the line of one run of gridstatus' client."""
    arguments = [url, f"{period[0]}-01-01T00", f"{period[1]}-12-31T23", str(threads), ",".join(RESPONDENTS)]
    result = timed([sys.executable, "-c", GRIDSTATUS, *arguments])
    return {"client": "gridstatus", "setting": f"{threads} threads", **result}


def bare(pages: Path, rows: int, threads: int) -> dict[str, Any]:
    """Return the line of one run of the bare reader over the URLs in `pages`."""
    result = timed([sys.executable, "-c", BARE, str(pages), str(threads)])
    return {"client": "bare", "setting": f"{threads} threads", "rows": rows, **result}


def pages_of(url: str, period: Period, folder: Path) -> tuple[Path, int]:
    """Return a file with the URLs of all pages, for the bare reader, and their rows: from the manifests of one run."""
    data = folder / "pages"
    rows = ours(url, period, keep=data)["rows"]
    manifests = [json.loads(path.read_text()) for path in sorted((data / "manifests" / "eia").rglob("g*.json"))]
    requests = [url + page["request"] for manifest in manifests for page in manifest["proof"]["pages"]]
    listed = folder / "requests.json"
    listed.write_text(json.dumps(requests))
    shutil.rmtree(data)
    return listed, rows


def speed(rounds: int) -> None:
    """Measure rows per second without throttle or latency, every client in turn on one emulator with rendered pages."""
    period = ("2019", "2025")
    with Emulator("--quirks", "none") as emulator, tempfile.TemporaryDirectory(dir=RUNS) as folder:
        pages, rows = pages_of(emulator.url, period, Path(folder))  # renders every page of ours and of bare
        clients: list[Callable[[], dict[str, Any]]] = [partial(ours, emulator.url, period)]
        clients += [partial(bare, pages, rows, threads) for threads in (5, 10)]
        if importlib.util.find_spec("gridstatus"):
            clients += [partial(gridstatus, emulator.url, period, threads) for threads in (1, 2, 5)]
            gridstatus(emulator.url, period, 2)  # renders its pages
        else:
            emit("skipped", client="gridstatus", why="not installed: uv run --group bench-extract …")
        for number in range(rounds):
            for client in clients:
                emit("speed", round=number, **client())


def latency(rounds: int) -> None:
    """Measure with 150 ms per request, against the bound of latency and number of connections."""
    milliseconds, period = 150, ("2019", "2025")
    with Emulator("--quirks", "none", "--latency-ms", str(milliseconds)) as emulator:
        ours(emulator.url, ("2019", "2025"))  # renders the pages
        for number in range(rounds):
            for connections in (5, 20):
                before = len(emulator.requests())
                line = ours(emulator.url, period, "--connections", str(connections))
                times = [datetime.fromisoformat(request["time"]) for request in emulator.requests()[before:]]
                line["span_s"] = (times[-1] - times[0]).total_seconds() + milliseconds / 1000
                bound = line["requests"] * milliseconds / 1000 / (2 * connections)
                line |= {"bound_s": bound, "connections": 2 * connections}
                emit("latency", round=number, latency_ms=milliseconds, **line)


def share_of(stats: dict[str, Any], requests: int, rate: float) -> float:
    """Return our requests as a share of those that the policy allows between the emulator's first and last request."""
    key = max(stats["keys"].values(), key=lambda entry: entry["requests"])
    return requests / ((key["last"] - key["first"]) * rate)


def policy() -> None:
    """Measure the share of EIA's rate limit used, and suspensions, on a fast clock, alone and with a second client on the key."""
    period, rate = ("2023", "2025"), POLICY_RATE * CLOCK
    for second in (False, True):
        with Emulator("--quirks", "none", "--policy", "eia", "--clock-scale", str(CLOCK)) as emulator:
            other = subprocess.Popen([sys.executable, "-c", OTHER, emulator.url, str(rate * 0.2)]) if second else None
            line = ours(emulator.url, period, "--rate", str(rate))
            if other is not None:
                other.terminate()
                other.wait()
            stats = emulator.stats()
        about = {"second_client": second, "clock": CLOCK, "ceiling": rate}
        share = share_of(stats, line["requests"], POLICY_RATE)
        counts = {name: stats[name] for name in ("suspensions", "while_suspended")}
        emit("policy", **about, share=share, **counts, **line)


def linear(rounds: int) -> None:
    """Measure time and the largest worker's memory for one year and for seven, `rounds` times: both should grow linearly with the rows, or less."""
    with Emulator("--quirks", "none") as emulator:
        ours(emulator.url, ("2019", "2025"))
        for number in range(rounds):
            for period in (("2022", "2022"), ("2019", "2025")):
                years = int(period[1]) - int(period[0]) + 1
                emit("linear", round=number, years=years, **ours(emulator.url, period))


def bulk(rounds: int) -> None:
    """Measure EIA's six-month files against its API for every authority, in turn on one emulator that has rendered both before.

    Both make the same series, so their valid values a second are compared: a line of a file holds up to 20, a row of the API one.
    """
    period = ("2019", "2025")
    with (
        Emulator("--quirks", "none", "--cache-mb", "4000") as emulator,
        tempfile.TemporaryDirectory(dir=RUNS) as held,
    ):
        sources = {"api": emulator.url, "bulk": f"bulk+{emulator.url}"}
        for number in range(-1, rounds):
            for route, source in sources.items():
                folder = Path(held) / f"{route}{number}"
                line = ours(source, period, "--respondents", "bas", keep=folder)
                line["rows"] = json.loads((folder / "manifest.json").read_text())["valid"]
                shutil.rmtree(folder)
                if number >= 0:  # the first round renders the pages and files
                    emit("bulk", round=number, route=route, start=period[0], end=period[1], **line)


# -- the report ------------------------------------------------------------------------------------------------------


def median(lines: Iterable[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
    """Return the median of `of(line)`."""
    return statistics.median(of(line) for line in lines)


def best_of(lines: list[dict[str, Any]], client: str, seconds: str) -> tuple[str, float] | None:
    """Return a client's best setting and its median rows per second; None without lines of it."""
    settings = {line["setting"] for line in lines if line["client"] == client}
    rates = {
        s: median((x for x in lines if x["client"] == client and x["setting"] == s), lambda x: x["rows"] / x[seconds])
        for s in settings
    }
    return max(rates.items(), key=lambda item: item[1]) if rates else None


def write_docs() -> None:
    """Write docs/internals/extraction_benchmark.md and its plot from the JSON lines alone."""
    lines = read_lines(LINES)
    by_event = {
        event: [line for line in lines if line["event"] == event] for event in {line["event"] for line in lines}
    }
    text = [DOC_HEAD, *(machine_text(where) for where in by_event["machine"]), "Shared and noisy: read the ratios.\n"]
    if speeds := by_event.get("speed"):
        text.append(speed_section(speeds))
        plot(speeds)
    if lines_of := by_event.get("latency"):
        rows = []
        for connections in sorted({line["connections"] for line in lines_of}):
            of = [line for line in lines_of if line["connections"] == connections]
            spans, ratios = ([line[name] / line["bound_s"] for line in of] for name in ("span_s", "s"))
            medians = [f"{statistics.median(values):.2f}" for values in (spans, ratios)]
            rows.append([str(connections), str(of[0]["requests"]), *medians, f"{min(ratios):.2f}–{max(ratios):.2f}"])
        header = ["connections", "requests", "first to last answer / bound", "whole run / bound", "range"]
        text.append(f"## With 150 ms per request\n\n{markdown_table(header, rows)}")
        text.append("\nThe bound is requests × latency / connections: the time of an infinitely fast client.\n")
    if lines_of := by_event.get("policy"):
        rows = [
            [
                "yes" if x["second_client"] else "no",
                f"{x['share']:.3f}",
                str(x["suspensions"]),
                str(x["while_suspended"]),
            ]
            for x in lines_of
        ]
        header = ["second client on the key", "share of the limit used", "suspensions", "requests while suspended"]
        text.append(f"## Under EIA's policy\n\n{markdown_table(header, rows)}")
        text.append(
            f"\n2.5 requests per second sustained, 5 in a burst, on a clock {CLOCK:g} times as fast. With a second client that takes a fifth of the limit, ours can use at most 0.8 of it.\n"
        )
    if lines_of := by_event.get("linear"):
        one, seven = ([line for line in lines_of if line["years"] == years] for years in (1, 7))
        ratio = median(seven, lambda x: x["s"]) / median(one, lambda x: x["s"])
        text.append(
            f"## Cost in years\n\nSeven years take {ratio:.2f}× the time of one (medians of {len(one)}); the largest worker peaks at {max(x['peak_mb'] for x in lines_of):.0f} MB.\n"
        )
    if lines_of := by_event.get("bulk"):
        text.append(bulk_section(lines_of))
    text.append(DOC_SHARES)
    DOCS.write_text("\n".join(text))


def machine_text(where: dict[str, Any]) -> str:
    """Return a line about a machine and a day, and which lines were measured there."""
    what = f"{where['cores']} cores, {where['platform']}, Python {where['python']}, {where['date']}"
    return f"Machine of {', '.join(where['measured'])}: {what}."


def with_machine(lines: list[dict[str, Any]], measured: list[str]) -> list[dict[str, Any]]:
    """Return kept lines with one about this machine and day, for the events that are `measured` now."""
    kept = []
    for line in lines:
        own = [name for name in line.get("measured", ()) if name not in measured]
        if line["event"] != "machine" or own:
            kept.append({**line, "measured": own} if own else line)
    return [*kept, machine_line(measured=measured)]


def bulk_section(lines: list[dict[str, Any]]) -> str:
    """Return the Markdown of the comparison of files and API."""
    rows, rates, costs = [], {}, {}
    for route in ("bulk", "api"):
        of = [line for line in lines if line["route"] == route]
        rates[route], costs[route] = (median(of, lambda x, name=name: x["rows"] / x[name]) for name in ("s", "cpu_s"))  # type: ignore[misc]
        seconds = [f"{median(of, lambda x, name=name: x[name]):.1f}" for name in ("s", "cpu_s")]  # type: ignore[misc]
        cells = [f"{of[0]['rows']:,}", *seconds, f"{rates[route]:,.0f}", f"{max(x['peak_mb'] for x in of):.0f}"]
        rows.append([route, str(of[0]["requests"]), *cells])
    header = [
        "route",
        "requests",
        "values",
        "s in the run",
        "processor s, whole process",
        "values/s in the run",
        "worker, MB",
    ]
    years = f"{lines[0]['start']} to {lines[0]['end']}"
    return (
        f"## Six-month files and API\n\nEvery authority, {years}, the balance routes of both: the same series, in turn.\n\n{markdown_table(header, rows)}\n\n"
        f"The files give {rates['bulk'] / rates['api']:.2f}× the values a second of the API, and {costs['bulk'] / costs['api']:.2f}× those a second of processor time. The emulator has\n"
        "rendered pages and files before, as a server of files has: making a file takes it 5 s of processor time, which is the generator's and not an ingestion's.\n"
    )


def speed_section(speeds: list[dict[str, Any]]) -> str:
    """Return the Markdown of the speed benchmark."""
    rows = []
    for client in ("ours", "gridstatus", "bare"):
        for setting in sorted({line["setting"] for line in speeds if line["client"] == client}):
            of = [line for line in speeds if line["client"] == client and line["setting"] == setting]
            rates = [median(of, lambda x: x["rows"] / x["s"]), median(of, lambda x: x["rows"] / x["wall_s"])]
            rows.append([client, setting, *(f"{rate:,.0f}" for rate in rates)])
    header = ["client", "setting", "rows/s in the run", "rows/s of the whole process"]
    text = [f"## Rows per second\n\n{markdown_table(header, rows)}\n"]
    for seconds, name in (("s", "in the run"), ("wall_s", "whole process")):
        mine, peer, floor = (best_of(speeds, client, seconds) for client in ("ours", "gridstatus", "bare"))
        assert mine and floor
        against = f"{mine[1] / peer[1]:.2f}× gridstatus at its best ({peer[0]}), " if peer else ""
        text.append(f"- {name}: ours is {against}{mine[1] / floor[1]:.2f} of the bare reader at its best ({floor[0]})")
    return "\n".join(text) + "\n\n![rows per second](../benchmarks/extract.png)\n"


def plot(speeds: list[dict[str, Any]]) -> None:
    """Draw the speed benchmark next to the JSON lines."""
    with drawn(LINES.with_suffix(".png"), size=(6.4, 3.6)) as axes:
        best = {client: best_of(speeds, client, "s") for client in ("gridstatus", "ours", "bare")}
        colours = {"gridstatus": "#9aa5b1", "ours": "#1f6f8b", "bare": "#d9dee3"}
        for client, setting in ((client, found[0]) for client, found in best.items() if found):
            own = [line for line in speeds if (line["client"], line["setting"]) == (client, setting)]
            rates = [line["rows"] / line["s"] / 1e3 for line in own]
            name = f"{client}\n{setting}"
            axes.bar(name, statistics.median(rates), color=colours[client], zorder=2)
            axes.plot([name] * len(rates), rates, "k.", markersize=4)
        axes.set_ylabel("thousand rows per second")
        axes.set_title("One emulator, one run; dots are rounds, bars their medians")


def main() -> None:
    """Run the benchmarks of --only and write the report."""
    command = parser(__doc__)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--only", default="speed,latency,policy,linear,bulk")
    command.add_argument("--add", action="store_true", help="keep existing lines; replace only those of --only")
    command.add_argument("--docs", action="store_true", help="only write the page and the plot from existing lines")
    options = command.parse_args()
    RUNS.mkdir(exist_ok=True)
    if not options.docs:
        names = options.only.split(",")
        kept = [line for line in read_lines(LINES) if line["event"] not in names] if options.add else []
        LINES.unlink(missing_ok=True)
        for line in with_machine(kept, names):
            emit_line(line, LINES, progress=True)
        parts: dict[str, Callable[[], None]] = {
            "speed": partial(speed, options.rounds),
            "latency": partial(latency, options.rounds),
            "policy": policy,
            "linear": partial(linear, options.rounds),
            "bulk": partial(bulk, options.rounds),
        }
        for name in names:
            parts[name]()
    write_docs()


if __name__ == "__main__":
    main()
