"""What the live page says and draws: advice, shards, ring, tables, contrast of both colour schemes. No server, no browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as with_fields

from coordinator.scheduling.progress import StageProgress
from coordinator.scheduling.records import Added, Failed, TaskSpec
from coordinator.scheduling.waits import WaitStatus
from coordinator.server.journal import Journal
from coordinator.stages.run_log import RunLog, RunState
from coordinator.watch.advice import SAME, advice, causes
from coordinator.watch.assets import asset
from coordinator.watch.folder import MAX_TEXT, FolderReader, StageRun, View
from coordinator.watch.ring import MAX_DRAWN, sent_per_s, size, topology
from coordinator.watch.shards import MAX_COLUMNS, ROWS, shard_figures
from coordinator.watch.tasks import DONE, FAILED, LEASED, PENDING, Place
from coordinator.watch.views import Renderer
from tests.unit.coordinator.test_hostile_text import STATUS

RUN = with_fields(STATUS, quarantined=(), waits=(), tasks={**STATUS.tasks, "leased": 2})
SOURCE_WAIT = WaitStatus("api.eia.gov", "HTTP 503", 30.0, 8.0, 3, 2)


def state(**fields: object) -> RunState:
    base = RunState(at=100.0, pid=7, stage="extract", began=50.0, restarts=0, run=RUN, view={})
    return with_fields(base, **fields)


def view(folder: Path, found: RunState | None = None, *, running: bool = False, message: str = "") -> View:
    stages = (StageRun("extract", 50.0, found.ended, message, 50.0),) if found is not None and found.ended else ()
    return replace(FolderReader(folder).read(), data="data", state=found, now=160.0, running=running, stages=stages)


def test_advice_says_what_failed_why_and_what_to_do_next(tmp_path: Path) -> None:
    nothing = advice(view(tmp_path))
    assert (nothing.state, nothing.command) == ("none", "coordinator start --extract --data data")
    gone = advice(view(tmp_path, state()))
    assert (gone.state, gone.then) == ("gone", SAME)
    assert "process 7" in gone.why[0] and "60 s" in gone.why[0]
    done = advice(view(tmp_path, state(ended="done")))
    assert (done.state, done.command) == ("done", "coordinator start --train --data data")
    assert advice(view(tmp_path, state(ended="drain"))).state == "stopped"
    refused = advice(view(tmp_path, state(ended="authentication"), message="api.eia.gov rejects the API key"))
    assert refused.state == "failed" and "EIA_API_KEY" in refused.then and refused.why[1].startswith("api.eia.gov")
    crashed = advice(view(tmp_path, state(ended="failed"), message="ValueError: no"))
    assert crashed.why == ("ValueError: no",) and "terminal" in crashed.then


def test_advice_about_a_run_names_its_waits_and_what_was_given_up_meanwhile(tmp_path: Path) -> None:
    waits = with_fields(RUN, waits=(SOURCE_WAIT,))
    waiting = advice(view(tmp_path, state(run=waits), running=True))
    assert waiting.state == "waiting" and "waiting for api.eia.gov: HTTP 503" in waiting.why[0]
    busy = with_fields(RUN, waits=(SOURCE_WAIT,), tasks={**RUN.tasks, "leased": 9}, quarantined=(("a", "E", "no"),))
    running = advice(view(tmp_path, state(run=busy), running=True))
    assert running.state == "running" and running.causes[0].tasks == ("a",) and "afterwards" in running.then


def test_one_cause_of_many_tasks_stands_once() -> None:
    failed = [(f"eia/{n}", "SourceError", f"eia/{n}, page at 0: 404") for n in range(30)] + [("x", "Other", "")]
    first, second = causes(failed)
    assert (first.title, len(first.tasks)) == ("eia/0 and 29 more", 30)
    assert (second.title, second.why) == ("x", "Other")


def shards(respondents: int, years: int, routes: tuple[str, ...] = ("region-data", "fuel-type-data")) -> list[Place]:
    return [
        Place(f"R{number:02d}", route, f"{2000 + year}-01-01T00")
        for number in range(respondents)
        for year in range(years)
        for route in routes
    ]


def test_shards_of_every_authority_stay_a_grid_in_which_the_one_given_up_stands_out() -> None:
    places = shards(69, 11)
    states = [(place, FAILED if place == places[500] else DONE) for place in places]
    figures = shard_figures("fetch", states)
    assert len(figures) == 2
    text = "".join(figure.chart for figure in figures)
    assert (
        text.count("<rect") == 69 * 2 + 2
    )  # a rectangle for each authority and route, but three where one is given up
    lost = places[500]
    assert text.count(f"<title>{lost.respondent} {lost.route} {lost.start[:4]}: given up</title>") == 1
    assert f"{lost.respondent} {lost.route}" in re.findall('aria-label="([^"]*)"', text)[lost.respondent >= "R35"]
    assert figures[0].caption == "From left to right: region-data 2000 to 2010; fuel-type-data 2000 to 2010."
    mixed = [(place, (DONE, LEASED, PENDING, FAILED)[i % 4]) for i, place in enumerate(shards(ROWS, 100))]
    (figure,) = shard_figures("fetch", mixed)
    assert figure.chart.count("<rect") <= ROWS * MAX_COLUMNS
    widths = [float(x) + float(w) for x, w in re.findall(r'x="([\d.]+)"[^>]*? width="([\d.]+)"', figure.chart)]
    assert max(widths) < 380
    assert shard_figures("fetch", [(place, DONE) for place in shards(500, 1)]) == []


def test_shards_of_months_are_named_by_month_and_the_newest_generation_counts(tmp_path: Path) -> None:
    (figure,) = shard_figures("fetch", [(Place("PACW", "r", f"2020-{month:02d}-01T00"), DONE) for month in (1, 2, 3)])
    assert figure.caption == "From left to right: r 2020-01 to 2020-03."
    journal = Journal(tmp_path / "journal.sqlite")
    shard = {"respondent": "PACW", "route": "r", "start": "2020-01-01T00"}
    journal.append([Added(f"s/g{n}", TaskSpec(f"s/g{n}", "fetch", {"shard": shard})) for n in range(2)])
    journal.append([Failed("s/g0", 1, "SourceError", "no", True, True)])
    journal.append([Added("x", TaskSpec("x", "other", {"shard": "not an object"}))])
    journal.close()
    fetch, other = FolderReader(tmp_path).read().tasks.kinds
    assert fetch.placed == ((Place("PACW", "r", "2020-01-01T00"), PENDING),)
    assert (other.counts[PENDING], other.placed) == (1, ())


def test_ring_is_drawn_with_its_links_and_the_rank_that_is_silent() -> None:
    ranks = [
        {"rank": n, "worker": f"m{n}-10-abc", "phase": "step", "step": 4, "silent_s": 9.0 * (n == 2)} for n in range(3)
    ]
    figure = topology(ranks, 1.0, 2.5e6)
    assert figure is not None
    assert figure.chart.count('class="link"') == figure.chart.count('class="arrow"') == 3
    assert figure.chart.count('class="late"') == 1 and "2 → 0" in figure.chart
    assert "Rank 0 sends 2.5 MB/s" in figure.caption
    assert topology(ranks[:1], 0.0, None) is None
    assert topology([{**ranks[0], "rank": n} for n in range(MAX_DRAWN + 1)], 0.0, None) is None
    assert [size(n) for n in (5, 1_500, 20_000_000, 3e9)] == ["5 B", "1.5 kB", "20 MB", "3.0 GB"]
    assert (sent_per_s({"sent_bytes": 10, "seconds": 2.0}), sent_per_s({"sent_bytes": 10})) == (5.0, None)


def test_ring_that_has_ended_is_told_in_the_past(tmp_path: Path) -> None:
    """Beside `finished` stood `0 of 2 ranks`, and what rank 0 sends."""
    training = {"round": 1, "ranks": [], "wanted": 2, "step": 8, "steps": 8, "restarts": 0, "rounds": []}
    for stage, ended in (("running", ""), ("finished", ""), ("finished", "done")):
        found = state(stage="train", ended=ended, view={**training, "stage": stage})
        seen = replace(view(tmp_path, found, running=not ended), newest={"sent_bytes": 43e6, "seconds": 1.0})
        html = Renderer().panels(seen)["ring"]
        now = stage == "running"
        assert ("0 of 2" in html) == ("rank 0 sends" in html) == now
        assert ("ranks asked for" in html) == ("rank 0 sent at last" in html) == (not now)


@pytest.mark.parametrize(("eta_s", "until"), [(40.0, "00:03:20 UTC"), (300.0, "00:07 UTC")])
def test_end_of_a_stage_within_a_minute_has_its_seconds(eta_s: float, until: str, tmp_path: Path) -> None:
    """`until about 22:13` stood beside a newest change at 22:13:44."""
    run = with_fields(RUN, progress=StageProgress(eta_s, 0.5, "", ()))
    html = Renderer().panels(view(tmp_path, state(at=160.0, run=run), running=True))["stages"]
    assert f"(until about {until})" in html


def test_worker_has_the_rate_of_the_last_seconds(tmp_path: Path) -> None:
    import msgspec

    reader = FolderReader(tmp_path)
    (tmp_path / "logs").mkdir()
    for second in range(14):
        worker = with_fields(RUN.workers[0], rows=1000 * max(0, second - 2), requests=second)
        found = state(at=100.0 + second, run=with_fields(RUN, workers=(worker,)))
        (tmp_path / "logs" / "status.json").write_bytes(msgspec.json.encode(found))
        seen = reader.read()
        if second == 2:  # nothing is verified yet, and 2 s do not tell that nothing will be
            assert seen.worker_rates == {RUN.workers[0].name: (None, 1.0)}
            assert ">–</td>" in Renderer().panels(seen)["workers"]
    assert seen.worker_rates == {RUN.workers[0].name: (1000.0, 1.0)}
    assert "1,000" in Renderer().panels(seen)["workers"]


def test_log_line_of_megabytes_is_cut_and_a_line_of_html_is_text(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.add("note", stage="extract", text="<img src=x onerror=alert(1)>" + "x" * 1_000_000)
    log.add("end", stage="extract", status="failed", message="y" * 100_000, seconds=1.0)
    html = Renderer().panels(FolderReader(tmp_path).read())
    assert len(html["log"]) < 3 * MAX_TEXT and "1,000,028 characters" in html["log"]
    assert "<img" not in html["log"] and len(html["stages"]) < 3 * MAX_TEXT


def test_folder_that_goes_is_named_and_read_anew_when_it_is_back(tmp_path: Path) -> None:
    data = tmp_path / "data"
    RunLog(data).add("note", stage="extract", text="first")
    reader = FolderReader(data)
    assert not reader.read().missing
    data.rename(tmp_path / "away")
    seen = reader.read()
    assert seen.missing and [line.text for line in seen.log] == ["first"]
    assert advice(seen).state == "gone" and "is gone" in Renderer().panels(seen)["summary"]
    RunLog(data).add("note", stage="extract", text="second")
    assert [line.text for line in reader.read().log] == ["second"]


def test_journal_that_is_cut_keeps_what_was_read_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.append([Added(f"t{n}", TaskSpec(f"t{n}", "fetch", {"fill": "x" * 400})) for n in range(2_000)])
    journal.close()
    whole = path.read_bytes()
    reader = FolderReader(tmp_path)
    while reader.read().tasks.read < 1:
        pass
    path.write_bytes(whole[: len(whole) // 2])
    html = Renderer().panels(reader.read())["tasks"]
    assert "0 of 2,000 done" in html and "cannot be read" in html and "--rebuild" in html
    fresh = FolderReader(tmp_path).read().tasks
    assert fresh.problem
    path.write_bytes(whole)
    assert FolderReader(tmp_path).read().tasks.problem == ""


def test_tables_have_names_and_headers_and_repeat_them_on_a_narrow_screen(tmp_path: Path) -> None:
    found = view(tmp_path, state(), running=True)
    for panel in ("stages", "workers"):
        html = Renderer().panels(replace(found, stages=(StageRun("extract", 1.0),)))[panel]
        headers = re.findall(r'<th role="columnheader" scope="col"[^>]*>([^<]*)</th>', html)
        assert headers and re.findall('data-name="([^"]*)"', html)[: len(headers)] == headers
        assert re.search('tabindex="0" role="region" aria-label="[^"]+"', html)


# -- colours -----------------------------------------------------------------------------------------------------------

TEXT, GRAPHIC = 4.5, 3.0  # WCAG 2.2 AA: contrast of text (1.4.3), of graphics and controls (1.4.11)
PAIRS = [
    *[(front, back, TEXT) for front in ("ink", "soft") for back in ("ground", "raised")],
    ("c0", "ground", TEXT),  # links
    *[("ground", badge, TEXT) for badge in ("soft", "c0", "c1", "c2", "h0")],
    *[(front, back, GRAPHIC) for front in ("c0", "c1", "c2", "c3", "c4", "h0") for back in ("ground", "raised")],
]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    css = asset("watch.css")[0].decode()
    light, dark = css.split("@media (prefers-color-scheme: dark)", 1)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", dark))
    for front, back, least in PAIRS:
        low, high = sorted((luminance(colours[front]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= least, (front, back, colours[front], colours[back])


def test_nothing_moves_by_itself() -> None:
    """The page has no animation, so `prefers-reduced-motion` has nothing to switch off."""
    css = asset("watch.css")[0].decode()
    assert not re.search(r"\b(animation|transition|scroll-behavior)\b", css)
    assert json.dumps("smooth") not in asset("watch.js")[0].decode()
