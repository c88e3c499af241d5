"""Check that each command quoted in README and docs is run: here, by a test that is named here, or by `scripts/dev/run_readme.py`.

A command that nothing runs has its reason here. `test_tutorials.py` runs those of the tutorials; the generated pages quote examples of the
help, which `test_cli_output.py` parses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from coordinator.cli.app import app
from coordinator.scheduling import events, records
from coordinator.stages import runner
from coordinator.stages.rollouts import stage as rollouts_stage
from coordinator.stages.stage import Stage
from coordinator.wire.exit_codes import ExitCode
from scripts.dev import generate_docs, run_readme
from tests.support.data_folder import build_all, commit, daily, shard
from tests.support.pages import PAGES, ROOT, blocks, commands, name_of
from worker.agent import handlers

# Run as written, in a folder with series. Keys are written to a folder of the test.
HERE = (
    "coordinator config show",
    "coordinator status",
    "coordinator status --json",
    "coordinator clean --dry-run",
    "coordinator clean",
    "coordinator report",
    "coordinator export --out ercot.csv --respondents ERCO --variables D,DF --period 2024 --local-time",
    "coordinator impute --data data --workers 2",
    "coordinator keys init",
    "coordinator keys add m2-1",
    "coordinator keys list",
    "coordinator keys revoke m2-1",
)

BENCHMARK = "not run: a measurement of minutes that needs an idle machine; `-m long` checks its options"
SUITE = "not run: it is the suite itself"
HOST = "not run: it changes this machine, or needs another one"

# Pattern of a whole command → the test that runs it (possibly with smaller settings), or the reason why none does.
ELSEWHERE = {
    r"coordinator (start|doctor|forecast|judge|backtest)|mlx.launch|python -m (ringattn.launch|ingest.emulator)": (
        "not run: prose names the command"
    ),
    r"python -m worker.train( --help)?": "tests/acceptance/test_wheel.py::test_a_run_needs_no_clone",
    r"python -m ringattn.blas MODULE": "tests/integration/ringattn/test_blas.py::test_module_that_loads_mlx_first_has_the_fast_blas",
    r"uv sync --extra lm": HOST,
    r"(python -m ringattn.launch -n 2 -m |python -m )ringattn.lm.finetune( .*)?": (
        "tests/integration/ringattn/test_finetune.py::test_the_command_writes_what_mlx_lm_reads_and_resumes"
    ),
    r"coordinator forecast --(issue (latest|tomorrow)|region ERCO --issue tomorrow --out tomorrow.csv)": (
        "tests/integration/worker/test_forecast.py::test_names_of_issue_times_follow_the_demand_on_disk"
    ),
    r"coordinator start (--extract --rollouts )?--engine .*": "tests/acceptance/test_engines.py",
    r"worker --engine": "not run: prose names the process that the coordinator starts",
    r"uv sync --group engines": HOST,
    r"--group sb3 python -m scripts.evaluate.control_sb3 .*": "not run: three trainings of minutes, whose results the page quotes",
    r"coordinator start (--train --rollouts )?--report-to .*": "tests/acceptance/test_trackers.py",
    r"python -m ringattn.planner .*--layers .*": "tests/integration/ringattn/test_planner.py",
    r"coordinator init( --out DIR)?": "tests/unit/coordinator/test_init.py",
    r"python -m ringattn.launch -n 2 -m MODULE": "tests/integration/ringattn/test_launch.py::test_module_runs_as_python_runs_it",
    r"coordinator start --extract --rebuild": "tests/acceptance/test_extract_errors.py::test_damaged_journal_is_rebuilt_from_the_manifests",
    r"coordinator start --extract( --data \S+)?": "tests/acceptance/test_extract_resume.py::test_default_run_needs_no_key_and_the_next_one_requests_nothing",
    r"coordinator start --extract --source auto .*": (
        "tests/acceptance/test_extract_sources.py::test_auto_takes_old_hours_from_files_and_compares_the_overlap"
    ),
    r"coordinator balance( --data \S+)?": "tests/unit/ingest/test_reconcile.py::test_folder_is_checked_and_reconciled_by_year",
    r"coordinator catalog( --source eia( --data real)?)?": "tests/integration/ingest/test_catalog_listing.py",
    r"coordinator start --extract --data grid --respondents all --routes all .*": (
        "tests/acceptance/test_extract_sources.py::test_all_routes_are_extracted_and_agree"
    ),
    r"coordinator start --extract --source recordings:.*": "tests/acceptance/test_extract_sources.py::test_recorded_real_hours_reach_the_series",
    r"coordinator start --(extract --update|update --source eia --data real)": (
        "tests/acceptance/test_extract_resume.py::test_update_refetches_revisable_hours_and_keeps_both_generations"
    ),
    r"coordinator (watch|start …|start --extract --train --rollouts)( --data data)?( --http( [\d.]+:8787| HOST:PORT)?)?": (
        "tests/acceptance/test_watch.py::test_every_panel_follows_a_pipeline_with_faults"
    ),
    r"ssh -L 8787:127.0.0.1:8787 HOST": "not run: OpenSSH's own, to another host",
    r"coordinator follow( --source eia --data real --respondents PACW,ERCO)?": (
        "tests/acceptance/test_follow.py::test_command_prints_a_line_a_cycle_and_ends_with_0_when_told_to"
    ),
    r"coordinator start --extract --source eia --data real( --dry-run)?": (
        "tests/acceptance/test_extract_sources.py::test_dry_run_prints_the_plan_and_requests_nothing"
    ),
    r"coordinator verify": "tests/acceptance/test_extract_resume.py::test_default_run_needs_no_key_and_the_next_one_requests_nothing",
    r"coordinator verify --data real": "tests/acceptance/test_extract_sources.py::test_bulk_files_and_oasis_are_extracted_the_same_way",
    r"coordinator start --train( --data (DATA|HELD))?( --train-config TRAIN.toml)?": "tests/acceptance/test_supervision.py",
    r"coordinator start --rollouts( --data (data|DATA))?( --control-config (CONTROL|control).toml)?": "tests/acceptance/test_rollouts.py",
    r"coordinator start --extract --train --rollouts": "scripts/dev/run_readme.py",
    r"coordinator start --extract (--train --rollouts )?--dry-run": (
        "tests/acceptance/test_cli_output.py::test_dry_run_explains_each_stage_and_writes_nothing"
    ),
    r"coordinator start (--extract --train )?--hostfile( \S+)?( --data \S+ --host-data \S+)?": (
        "tests/acceptance/cluster/test_fleet.py::test_killed_run_leaves_no_process_and_resumes"
    ),
    r"coordinator start (--extract --train --rollouts )?--hostfile \S+( --extract --train --rollouts)?": (
        "tests/acceptance/cluster/test_fleet.py::test_pipeline_on_four_hosts_gives_the_policy_of_one_host"
    ),
    r"coordinator start --extract --train --ranks 4 --bind tcp://10.0.0.1:5555": (
        "tests/integration/worker/test_agent.py; tests/integration/coordinator/test_uploads_keys_lock.py::test_bind_off_loopback_needs_keys"
    ),
    r"coordinator doctor --hostfile \S+": "tests/integration/coordinator/test_doctor_hosts.py::test_host_that_is_down_is_a_finding",
    r"coordinator forecast --region ERCO --issue 2025-08-12T10": "tests/integration/worker/test_forecast.py::test_local_day_is_forecast_hour_by_hour",
    r"coordinator forecast (--region ERCO --issue 2025-08-12T15 --(paths 20|horizon 3)|--hourly data/hourly\.parquet --period 2024 --horizon 36 --paths 20|--hourly HOURLY\.parquet --data DATA --period 2018:2019 --horizon 36 --paths 20)": "tests/integration/worker/test_forecast.py::test_other_issue_hours_are_forecast_by_the_hourly_regressions",
    r"(coordinator forecast|python -m worker.forecast) --table.*": "tests/integration/worker/test_forecast.py::test_table_for_control_has_every_hour",
    r"coordinator backtest --from \S+ --to \S+( --data (DATA|HELD))?( --publication deadline --out HELD/.*)?": "tests/integration/worker/test_backtest.py::test_summary_names_skill_and_coverage_by_month",
    r"coordinator judge (FILE|theirs.csv( --data data)?|data/backtest/linear.parquet|HELD/.* --data HELD --json > HELD.json)": "tests/unit/worker/test_judge.py::test_command_prints_a_verdict_and_exits_with_1_for_a_peek",
    r"coordinator keys revoke NAME": "tests/integration/coordinator/test_auth_proxy.py::test_key_commands_create_list_and_revoke",
    r"worker --(coordinator tcp://.*|key FILE)": (
        "tests/acceptance/test_extract_resume.py::test_worker_with_its_own_folder_uploads_its_files"
    ),
    r"mlx.launch --hostfile \S+ (worker/train|script).py": "tests/integration/worker/test_train.py::test_mlx_launch_with_a_hostfile",
    r"mlx.launch --backend jaccl": "tests/integration/ringattn/test_process_group.py::test_jaccl_is_refused_before_mlx_waits_for_it",
    r"mlx.launch -n 2 worker/train.py": "tests/integration/worker/test_train.py::test_mlx_launch_with_a_hostfile",
    r"python -m ringattn.launch -n 2 (script|program).py": "tests/integration/ringattn/test_launch.py::test_output_arguments_and_environment_by_rank",
    r"python -m (ringattn.blas )?ringattn.kernels.bench": "tests/unit/ringattn/test_kernel_bench.py::test_command_prints_one_line_that_fills_the_page",
    r"python -m ringattn.launch -n 2 -m ringattn.lm.generate --model \S+ --prompt-file \S+ .*|python -m ringattn.lm.(generate|tiny_model)": (
        "tests/acceptance/test_tutorials.py::test_tutorial_runs"
    ),
    r"python -m ringattn.planner": "tests/integration/ringattn/test_planner.py::test_command_line_measures_and_prints_json",
    r"scripts/bench/soak.py": "tests/acceptance/test_soak.py::test_killed_workers_lose_no_lease_and_memory_is_flat",
    r"python -m scripts\.testbed .*": "scripts/dev/run_readme.py; tests/acceptance/cluster/test_bed.py::test_testbed_command_line",
    r"python3 -m venv .venv && .*": "scripts/dev/run_readme.py",
    r"uv sync": "scripts/dev/run_readme.py",
    r"python -m scripts.evaluate.outlier_table --write": "not run: it writes these docs, from recordings next to the checkout",
    r"scripts/dev/draw_run.py|python scripts/dev/generate_docs.py": "not run: it writes these docs",
    r"(--group \S+ )?(python (-m )?)?scripts[/.](bench|evaluate)[/.][a-z_]+(\.py)?( .*)?": BENCHMARK,
    r"scripts/dev/run_readme.py": "not run: minutes; parts of it are tested below",
    r"python3 scripts/dev/pin_versions.py try": "not run: it installs the newest versions and runs the tests; its parts: tests/unit/test_pinned_versions.py",
    r"scripts/check": SUITE,
    r"pytest.*": SUITE,
    r"(scp|ssh|apt-get|systemctl|launchctl) .*": HOST,
}


def quoted() -> dict[str, list[str]]:
    """Return command → pages that quote it."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        if page.parent.name == "tutorials" or page in (generate_docs.CLI, generate_docs.API):
            continue
        for line in commands(page.read_text()):
            found.setdefault(line, []).append(name_of(page))
    return found


def test_every_command_is_run_or_has_a_reason() -> None:
    found = quoted()
    patterns = [re.compile(pattern) for pattern in ELSEWHERE]
    lost = [line for line in found if line not in HERE and not any(p.fullmatch(line) for p in patterns)]
    assert not lost, "\n".join(f"{', '.join(found[line])}: {line}" for line in lost)
    idle = [p.pattern for p in patterns if not any(p.fullmatch(line) for line in found)]
    assert not idle, f"no page quotes {idle}"
    assert not set(HERE) - set(found)
    assert len(found) > 50


def test_named_tests_exist() -> None:
    for what in ELSEWHERE.values():
        for node in [] if what.startswith("not run: ") else what.split("; "):
            path, _, name = node.partition("::")
            assert (ROOT / path).exists(), node
            assert not name or f"def {name}(" in (ROOT / path).read_text(), node


def test_quoted_commands_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = shard("ERCO", "2024-01-01T00", "2024-01-31T23")
    commit(tmp_path / "data", one, {"D": daily(one.hours), "DF": daily(one.hours)})
    build_all(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("COORDINATOR_", "EIA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COORDINATOR_KEYS", str(tmp_path / "keys"))
    output = {}
    for line in HERE:
        ran = CliRunner().invoke(app, line.split()[1:])
        assert ran.exit_code == 0, f"{line}: {ran.output} {ran.exception!r}"
        output[line] = ran.stdout
    assert "hostfile" in output["coordinator config show"]
    assert "m2-1" in output["coordinator keys list"]
    assert (tmp_path / "data" / "report.html").stat().st_size > 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_measurements_accept_the_quoted_options() -> None:
    """A measurement that no test runs starts at least, and accepts every option quoted with it."""
    helped = {}
    for line in quoted():
        if not re.search(r"scripts[/.]", line) or "testbed" in line or "check" in line or "draw_run" in line:
            continue
        script = re.search(r"scripts[/.]\w+[/.]\w+", line)
        assert script
        path = ROOT / f"{script[0].replace('.', '/')}.py"
        if path not in helped:
            command = [sys.executable, str(path), "--help"]
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
            assert done.returncode == 0, f"{path}: {done.stderr.decode()[-500:]}"
            helped[path] = path.read_text() + done.stdout.decode()
        for option in re.findall(r"--[a-z-]+", line.partition(script[0])[2]):
            assert option in helped[path], f"{line}: no {option}"
    assert len(helped) > 5


# Page whose Python is not run here → the test that runs it, or the reason.
FRAGMENTS = {
    "engines.md": "tests/acceptance/test_engines.py",
    "data.md": "tests/unit/ingest/test_daily.py",  # it needs daily values too
    "imputation.md": "it needs files of `coordinator impute`",
    "language_models.md": "it needs a model and hosts; its tutorial runs",
    "ring_attention.md": "the last ones are parts of a program on four hosts",
}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_python_of_pages_runs(tmp_path: Path) -> None:
    """README's snippets run in `test_docs.py`, those of tutorials in `test_tutorials.py`."""
    for respondent in ("PACW", "ERCO"):
        one = shard(respondent, "2024-01-01T00", "2024-12-31T23")
        commit(tmp_path / "data", one, {"D": daily(one.hours), "DF": daily(one.hours)})
    build_all(tmp_path / "data")
    ran, failed = [], []
    for page in PAGES[1:]:
        if page.parent.name == "tutorials" or page.name in FRAGMENTS:
            continue
        code = "\n".join(blocks(page.read_text(), "python"))
        if not code:
            continue
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        ran.append(name_of(page))
        failed += [f"{name_of(page)}: {done.stderr[-1000:]}"] if done.returncode else []
    assert not failed, "\n".join(failed)
    assert {"docs/how-to/control.md", "docs/reference/control.md", "docs/reference/environment.md"} <= set(ran)


def test_run_readme_reads_every_block() -> None:
    """`scripts/dev/run_readme.py` reads every block; each one runs or has a reason."""
    page = (ROOT / "README.md").read_text()
    steps = run_readme.steps(page)
    lines = [line for block in blocks(page, "sh") for line, _ in run_readme.lines(block)]
    assert [step.text for step in steps if step.kind == "sh"] == lines
    assert {step.mode for step in steps} == {"", *run_readme.MODES}
    assert all(step.skip for step in steps if "--source eia" in step.text and "--dry-run" not in step.text)
    assert any("70 of 70 shards" in step.output for step in steps)
    assert {step.codes for step in steps} == {(0,), (0, 1)}
    with pytest.raises(ValueError, match="on the moon"):
        run_readme.steps("<!-- run: on the moon -->\n```sh\nls\n```\n")


def test_output_is_compared_with_page() -> None:
    output = "3 of 3 shards\nrows 5\n  gap one\n  gap two\n3 shards in 1.5 s (12,000 rows/s), 4 requests\n"
    assert not run_readme.missing_line(
        output, "3 of 3 shards\n  gap one\n  …\n3 shards in 22.0 s (7 rows/s), 4 requests\n"
    )
    assert run_readme.missing_line(output, "rows 6\n") == "rows 6"
    assert run_readme.missing_line(output, "rows 5\n3 of 3 shards\n") == "3 of 3 shards"
    assert run_readme.missing_line(output, "3 shards in 1.5 s (12,000 rows/s), 5 requests\n")


def test_example_stage_of_contributing_works(tmp_path: Path) -> None:
    """The classes of "Add a stage" fit the stage interface; their imports are those of the other stages."""
    text = (ROOT / "docs" / "CONTRIBUTING.md").read_text().split("## Add a stage")[1].split("\n## ")[0]
    code = [textwrap.dedent(block) for block in re.findall(r"^   ```py\n(.*?)^   ```$", text, re.MULTILINE | re.DOTALL)]
    assert len(code) == 3
    names: dict[str, Any] = dict(vars(rollouts_stage)) | {
        name: value for module in (records, events, runner, handlers) for name, value in vars(module).items()
    }
    names["Iterable"] = Iterable
    exec("from __future__ import annotations\n" + "\n".join(code), names)
    controller = names["PeaksController"]()
    task = records.ephemeral_task("peaks/PACW", "peak", {"respondent": "PACW"}, ())
    assert controller.on_task_done(events.TaskDone(task, 1, "w", 0.1, {"respondent": "PACW", "peak": 3000.0})) == ()
    summary = names["PeaksSummary"](exit_code=ExitCode.DONE, status="done", message="", peaks=controller.peaks)
    assert names["PeaksStage"]().describe(summary) == "PACW: highest demand 3,000 MWh"
    assert names["PeaksDryRun"](("PACW",), "").to_text() == "peaks: would read the series of PACW"
    # The series of an earlier stage do not exist yet: an empty folder must not be read.
    after = names["PeaksStage"]().dry_run(SimpleNamespace(data_dir=tmp_path), "extract")
    assert after.to_text() == "peaks: would read the series that extract makes"
    for method in ("options_from", "dry_run", "run", "describe"):
        assert signature(getattr(names["PeaksStage"], method)).parameters.keys() == (
            signature(getattr(Stage, method)).parameters.keys()
        )
