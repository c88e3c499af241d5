"""The live page in a real browser beside a real pipeline with faults, and a page that stays open for a night of a scaled clock.

The screenshots stay in the test's folder for inspection.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
import requests

from coordinator.scheduling.progress import Part, StageProgress
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import Added, AnyRecord, Committed, Failed, Leased, TaskSpec
from coordinator.scheduling.waits import WaitStatus
from coordinator.server.journal import Journal
from coordinator.stages.run_log import STATUS as STATUS_FILE
from coordinator.stages.run_log import RunLog, RunState
from coordinator.watch.views import PANELS
from ingest.emulator.process import Emulator
from tests.support.browser import CHROMIUM, Page, chromium
from tests.support.program import ROOT, TRAINING, command, environment
from tests.support.waiting import until
from tests.unit.coordinator.test_hostile_text import STATUS

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on this host: apt-get install chromium"),
]
SHOTS = os.environ.get("SHOTS", "")  # folder for the screenshots, in place of the test's own
WIDER = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.table') && !one.matches('.skip,.unseen') &&
    one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML.slice(0, 200))"""
# Every page of one shard is always short, so that the shard is given up.
FAULTS = [
    {"kind": "short", "match": {"route": "region-data", "respondent": "ERCO", "start": "2019-01-01T00"}, "times": None}
]
CONTROL = (
    'every = 16\nbaselines = "hour rule"\nevaluate_every = 2\n[pathwise]\nmembers = 2\niterations = 4\nsteps = 20\n'
)


def text(tab: Page, panel: str) -> str:
    return str(tab.value(f"document.getElementById('{panel}-panel').innerText"))


def shows(tab: Page, panel: str, wanted: str) -> None:
    until(lambda: wanted in text(tab, panel), f"{wanted!r} in {panel}", lambda: text(tab, "stages"))


def shoot(tab: Page, folder: Path, name: str) -> None:
    """Take the page at both widths, light and dark; nothing may be wider than the screen."""
    folder = Path(SHOTS) if SHOTS else folder
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            tab.resize(width, 900, scheme)
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value(WIDER) == []
            tab.screenshot(folder / f"{name}-{width}-{scheme}.png")
    tab.resize(1280, 900, "light")


def test_every_panel_follows_a_pipeline_with_faults(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "train.toml").write_text("".join(f"{k} = {v}\n" for k, v in {**TRAINING, "steps": 60}.items()))
    (tmp_path / "control.toml").write_text(CONTROL)
    plan = ("--respondents", "PACW,ERCO", "--start", "2019", "--end", "2021", "--data", data, "--retries", "2")
    with Emulator(faults=FAULTS) as emulator, chromium(tmp_path / "profile") as tab:
        extract = start("--extract", "--source", emulator.url, *plan, "--http", "127.0.0.1:0", "--rate", "8")
        tab.open(address_of(extract), 1280, 900, "light")
        assert tab.value("[...document.querySelectorAll('section')].map(one => one.id)") == list(PANELS)
        until(lambda: tab.value("document.getElementById('link').textContent") == "connected", "the connection")
        until(
            lambda: "extract" in tab.value("document.querySelector('[role=status]').textContent"), "what is read aloud"
        )
        until(lambda: tab.value("document.querySelectorAll('#workers-panel tbody tr').length") == 2, "two workers")
        for panel, wanted in (("stages", "extract"), ("stages", "left"), ("requests", "a second at most")):
            shows(tab, panel, wanted)
        os.kill(a_worker(data), signal.SIGKILL)
        for panel, wanted in (
            ("workers", "started again: 1"),
            ("log", "ended with signal 9"),
        ):
            shows(tab, panel, wanted)
        until(lambda: tab.value("document.querySelectorAll('#requests-panel svg').length") == 2, "the rates")
        shoot(tab, tmp_path, "extract")
        tab.value("filter.value = 'signal 9'; filter.dispatchEvent(new Event('input')); 0")
        lines = "[...document.querySelectorAll('#log-panel li')].filter(one => !one.hidden)"
        assert tab.value(f"{lines}.length") and tab.value(f"{lines}.every(one => one.innerText.includes('signal 9'))")
        until(lambda: "given up" in tab.value("document.getElementById('advice-panel').innerText"), "what failed")
        assert extract.wait(900) == 75
        until(lambda: "has ended" in tab.value("document.getElementById('link').textContent"), "the end of the page")
        shows(tab, "stages", "incomplete")
        assert "not complete" in tab.value("document.title")
        assert "Start the same command again" in tab.value("document.getElementById('advice-panel').innerText")
        shoot(tab, tmp_path, "incomplete")
        emulator.set_faults([])
        assert start("--extract", "--source", emulator.url, *plan).wait(900) == 0
        run = start(
            *("--train", "--rollouts", "--data", data, "--train-config", tmp_path / "train.toml"),
            *("--control-config", tmp_path / "control.toml", "--http", "127.0.0.1:0"),
        )
        url = address_of(run)
        tab.open(url, 1280, 900, "light")
        for panel, wanted in (("stages", "train"), ("ring", "2 of 2"), ("ring", "0 → 1"), ("ring", "of 60")):
            shows(tab, panel, wanted)
        until(
            lambda: tab.value("document.querySelectorAll('#curves-panel svg').length"),
            "a curve",
            lambda: text(tab, "ring"),
        )
        os.kill(a_worker(data), signal.SIGKILL)
        for panel, wanted in (("ring", "fault"), ("ring", "Compute and waiting"), ("curves", "Validation skill")):
            shows(tab, panel, wanted)
        shoot(tab, tmp_path, "train")
        for panel, wanted in (("stages", "rollouts"), ("control", "share of the perfect-foresight saving")):
            shows(tab, panel, wanted)
        until(
            lambda: tab.value("document.querySelectorAll('#control-panel svg').length"),
            "PoP",
            lambda: text(tab, "stages"),
        )
        shoot(tab, tmp_path, "rollouts")
        assert requests.get(f"{url}status.json", timeout=60).json()["state"]["stage"] == "rollouts"
        assert run.wait(900) == 0
        until(lambda: "has ended" in tab.value("document.getElementById('link').textContent"), "the end of the page")
        shoot(tab, tmp_path, "done")
        hosts = {urlsplit(one).hostname for one in tab.requested if one.startswith("http")}
        assert (tab.messages, hosts) == ([], {"127.0.0.1"})


def every_authority(data: Path) -> None:
    """Leave a folder in which a run of 69 authorities, eleven years and two routes is under way, waits, and has lost some shards."""
    journal, states = Journal(data / "journal.sqlite"), list[AnyRecord]()
    for number in range(69):
        for year in range(2015, 2026):
            for route in ("region-data", "fuel-type-data"):
                name = f"R{number:02d}"
                shard = {"respondent": name, "route": route, "start": f"{year}-01-01T00"}
                task = f"eia/{route}/{name}/{year}/g000"
                states.append(Added(task, TaskSpec(task, "fetch", {"shard": shard})))
                if number < 60:
                    states += [Leased(task, 1, "w"), Committed(task)]
                if (number, year) in ((7, 2019), (44, 2021)):
                    states.append(Failed(task, 1, "SourceError", f"{task}: <b>404</b>", True, True))
    journal.append(states)
    journal.close()
    log = RunLog(data)
    log.add("begin", stage="extract", pid=1)
    for text in ("<script>document.title = 'taken'</script><img src=x onerror=alert(1)>", "x" * 1_000_000):
        log.add("note", stage="extract", text=text)
    budget = RequestBudget(2.5, burst=5)
    budget.grant(0.0, 5)
    worker = msgspec.structs.replace(
        STATUS.workers[0], name="m2-7-abc", host="m2", executing=("eia/region-data/R61/2019/g000",)
    )
    run = msgspec.structs.replace(
        STATUS,
        progress=StageProgress(3_725.0, 0.41, "fetch", (Part("fetch", "rows", 12_345_678, 50_000_000),)),
        workers=tuple(msgspec.structs.replace(worker, pid=n) for n in range(4)),
        waits=(WaitStatus("api.eia.gov", "HTTP 503", 30.0, 8.0, 3, 1),),
        quarantined=tuple((f"eia/x/R{n}/2019/g000", "SourceError", "404") for n in (7, 44)),
        budgets={"source": budget.status(0.0)},
    )
    state = RunState(at=time.time() + 10_000, pid=1, stage="extract", began=time.time(), restarts=2, run=run, view={})
    (data / STATUS_FILE).write_bytes(msgspec.json.encode(state))


FOCUSED = """(() => { const one = document.activeElement, box = one.getBoundingClientRect();
    return [one.id || one.getAttribute('aria-label') || one.textContent, getComputedStyle(one).outlineStyle,
            box.bottom > 0 && box.top < innerHeight && box.width > 0] })()"""


def test_page_of_every_authority_is_usable_on_a_phone_and_by_keyboard(tmp_path: Path) -> None:
    every_authority(tmp_path)
    server = subprocess.Popen([sys.executable, "-c", SERVER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        with chromium(tmp_path.parent / "profile") as tab:
            tab.open(server.stdout.readline().strip(), 1280, 900, "light")
            until(lambda: tab.value("document.getElementById('link').textContent") == "connected", "the connection")
            until(lambda: tab.value("document.querySelectorAll('#tasks-panel svg').length") == 2, "the shards")
            assert tab.value("document.title").startswith("waiting: extract 41%, 62 min left")
            assert "and 1 more" in tab.value("document.getElementById('advice-panel').innerText")
            shoot(tab, tmp_path, "every")
            reached = []
            for _ in range(40):
                for kind in ("rawKeyDown", "keyUp"):
                    tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
                name, outline, visible = tab.value(FOCUSED)
                assert (outline, visible) == ("solid", True), name
                reached.append(name)
                if name == "metrics":
                    break
            assert reached[:2] == ["Skip to the panels", "Stages"]
            assert [one for one in reached if one in ("Workers", "filter", "Notes, the newest first", "metrics")] == [
                *("Workers", "Workers", "filter", "Notes, the newest first", "metrics")  # its link, and its table
            ]
            assert tab.messages == []
    finally:
        server.kill()
        server.wait()


def test_page_says_why_it_is_not_connected_and_connects_again(tmp_path: Path) -> None:
    def serve(port: str, token: str) -> tuple[subprocess.Popen[str], str]:
        arguments = [sys.executable, "-c", SERVER, str(tmp_path), port, token]
        server = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        return server, server.stdout.readline().strip()

    def says(wanted: str) -> None:
        until(lambda: wanted in tab.value("document.getElementById('link').textContent"), wanted)

    server, url = serve("0", "first")
    try:
        with chromium(tmp_path.parent / "profile") as tab:
            tab.open(f"{url}?token=first", 1280, 900, "light")
            says("connected")
            assert "token" not in tab.value("location.href")
            server.kill()
            server.wait()
            says("connection lost")
            server, url = serve(str(urlsplit(url).port), "second")  # as after a new start: the cookie is of the first
            says("the token is no longer right")
            server.kill()
            server.wait()
            server, url = serve(str(urlsplit(url).port), "first")
            says("connected")
            RunLog(tmp_path).add("note", stage="extract", text="news")
            shows(tab, "log", "news")
    finally:
        server.kill()
        server.wait()


NIGHT = int(os.environ.get("NIGHT", "28800"))  # looks at the folder: 8 hours of one a second
SERVER = """import sys  # FOLDER [PORT TOKEN]
from pathlib import Path
from coordinator.watch.access import Address
from coordinator.watch.app import PageServer, create_app
from coordinator.watch.folder import FolderReader
from coordinator.watch.run import listen
port, token = sys.argv[2:] or (0, "")
listening, address = listen(Address("127.0.0.1", int(port)))
print(address.url, flush=True)
PageServer(create_app(FolderReader(Path(sys.argv[1])), address, token, 0.01)).run(sockets=[listening])
"""


def test_page_that_stays_open_for_a_night_does_not_grow(tmp_path: Path) -> None:
    """The clock is scaled: the folder changes and is looked at as fast as the machine can, as often as in a night."""
    server = subprocess.Popen([sys.executable, "-c", SERVER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    over, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            write_a_night(tmp_path, over)
        except BaseException as error:  # without changes there is nothing to see
            failures.append(error)

    writer = threading.Thread(target=write)

    def progress() -> object:
        assert (failures, server.poll()) == ([], None)
        return tab.value("[seen, link.textContent]")

    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        writer.start()
        with chromium(tmp_path / "profile") as tab:
            tab.open(url, 1280, 900, "light")
            tab.value("window.seen = 0; source.addEventListener('message', () => { window.seen += 1 }); 0")
            sizes = []
            for looks in (0.15 * NIGHT, float(NIGHT)):
                seen = partial(tab.value, f"seen >= {looks}")
                until(seen, f"{looks:.0f} changes", progress)
                until(partial(few_nodes, tab), "the browser to drop replaced panels", progress)
                elements = tab.value("document.querySelectorAll('*').length")
                heap = tab.call("Runtime.getHeapUsage")["usedSize"]
                sizes.append((heap, elements, psutil.Process(server.pid).memory_info().rss))
            assert tab.messages == []
        (heap, elements, rss), (heap_later, elements_later, rss_later) = sizes
        print(
            f"heap {heap / 1e6:.2f} -> {heap_later / 1e6:.2f} MB, elements {elements} -> {elements_later}, "
            f"server {rss / 1e6:.1f} -> {rss_later / 1e6:.1f} MB"
        )
        assert heap_later < 1.2 * heap + 500_000
        assert elements_later < 1.2 * elements + 1000  # the log fills up to its bound
        assert rss_later < rss + 20_000_000
    finally:
        over.set()
        server.kill()
        server.wait()
        writer.join()


def few_nodes(tab: Page) -> bool:
    """Whether the browser holds no more nodes than a few pages have. It collects replaced ones when it likes."""
    tab.call("HeapProfiler.collectGarbage")
    return bool(tab.call("Memory.getDOMCounters")["nodes"] < 10_000)


def write_a_night(data: Path, over: threading.Event) -> None:
    """Change everything that the page reads, again and again: status, notes, steps, tasks."""
    log, number = RunLog(data), 0
    (data / "train").mkdir()
    log.add("begin", stage="extract", pid=1)
    journal = Journal(data / "journal.sqlite")
    journal.append([Added(f"t{n}", TaskSpec(f"t{n}", "fetch", {})) for n in range(1_000)])
    with (data / "train" / "metrics.jsonl").open("a") as metrics:
        while not over.is_set():
            number += 1
            now = time.time()
            run = msgspec.structs.replace(STATUS, departed_rows=1000 * number, elapsed_s=float(number))
            state = RunState(at=now, pid=1, stage="extract", began=1.0, restarts=number, run=run, view={})
            (data / ".new").write_bytes(msgspec.json.encode(state))
            (data / ".new").replace(data / STATUS_FILE)
            log.add("note", stage="extract", text=f"note {number} of a night")
            line = {
                "step": number,
                "loss": 1 / number,
                "attention_share": 0.5,
                "wait_share": 0.1,
                "tokens_per_s": 9.0,
                "ranks": 2,
            }
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            if number % 20 == 0:
                task, attempt = f"t{number // 20 % 1000}", number // 20_000 + 1
                journal.append([Leased(task, attempt, "w")])
            over.wait(0.01)
    journal.close()


def start(*arguments: Any) -> subprocess.Popen[str]:
    """Start `coordinator start …` in the project's folder."""
    return subprocess.Popen(
        command("start", *map(str, arguments)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def address_of(process: subprocess.Popen[str]) -> str:
    """Return the address that the command prints; go on reading what it prints, so that it never waits for us."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("page: "):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return line.split()[1]
    raise AssertionError("no address was printed")


def a_worker(data: Path) -> int:
    """Return the process of a worker of the run."""
    return int(json.loads((data / "logs" / "status.json").read_bytes())["run"]["workers"][0]["pid"])
