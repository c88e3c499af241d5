"""The live page in a real browser beside a real pipeline with faults, and a page that stays open for a night of a scaled clock.

The screenshots stay in the test's folder for inspection.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from coordinator.watch.views import PANELS
from ingest.emulator.process import Emulator
from tests.support.browser import CHROMIUM, Page, chromium
from tests.support.program import ROOT, TRAINING, command, environment
from tests.support.waiting import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on this host: apt-get install chromium"),
]
SHOTS = os.environ.get("SHOTS", "")  # folder for the screenshots, in place of the test's own
WIDER = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.table') && !one.matches('.skip') &&
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
        until(lambda: tab.value("document.getElementById('link').textContent") == "live", "the connection")
        until(lambda: tab.value("document.querySelectorAll('#workers-panel tbody tr').length") == 2, "two workers")
        for panel, wanted in (("stages", "extract"), ("stages", "left"), ("requests", "a second at most")):
            shows(tab, panel, wanted)
        os.kill(a_worker(data), signal.SIGKILL)
        for panel, wanted in (("workers", "started again: 1"), ("log", "died"), ("tasks", "was given up")):
            shows(tab, panel, wanted)
        until(lambda: tab.value("document.querySelectorAll('#requests-panel svg').length") == 2, "the rates")
        shoot(tab, tmp_path, "extract")
        tab.value("filter.value = 'died'; filter.dispatchEvent(new Event('input')); 0")
        lines = "[...document.querySelectorAll('#log-panel li')].filter(one => !one.hidden)"
        assert tab.value(f"{lines}.length") and tab.value(f"{lines}.every(one => one.innerText.includes('died'))")
        tab.open("about:blank", 1280, 900, "light")
        assert extract.wait(900) == 75
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
        tab.open("about:blank", 1280, 900, "light")
        assert run.wait(900) == 0
        hosts = {urlsplit(one).hostname for one in tab.requested if one.startswith("http")}
        assert (tab.messages, hosts) == ([], {"127.0.0.1"})


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
