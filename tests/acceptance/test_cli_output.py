"""Output of the command line: help with an example, completion, JSON, dry runs, any width, no colour on request."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import ringattn
from coordinator.cli.app import app
from coordinator.cli.errors import run
from coordinator.cli.hints import next_steps
from coordinator.doctor.checks import Finding, describe
from coordinator.stages.years import check_planned, source_of, too_few_for_control, too_few_years
from ingest.errors import UsageError
from tests.support.data_folder import build_all, commit, one_month, shard
from tests.support.program import MONTH, command, environment
from tests.support.waiting import end_of
from worker.argparse_errors import Parser
from worker.forecast.table import format_table

SGR = re.compile(r"\x1b\[[0-9;]*m")  # bold, colours, and their end
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?[349][0-7]m")


def commands(group: Any = None, name: str = "coordinator") -> Iterator[tuple[str, Any]]:
    """Every command's words and the command."""
    group = group or typer.main.get_command(app)
    for word, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, f"{name} {word}")
        else:
            yield f"{name} {word}", one


COMMANDS = dict(commands())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return one_month(tmp_path / "data")


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process, in a separate folder. Returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("COORDINATOR_")]:
        monkeypatch.delenv(name)

    def said(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(app, list(words))
        return code, *capsys.readouterr()

    return said


# -- help --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", ["coordinator", "coordinator keys", "coordinator config", *COMMANDS])
def test_help_fits_the_terminal_and_has_an_example(words: str, columns: int) -> None:
    env = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    said = CliRunner().invoke(app, [*words.split()[1:], "--help"], env=env).stdout
    assert max(map(len, said.splitlines())) <= columns, said
    if words in COMMANDS:
        example = COMMANDS[words].epilog
        assert example.startswith(words)
        assert example in re.sub(r"\s+", " ", said)
        shown = [param for param in COMMANDS[words].params if not getattr(param, "hidden", False)]
        options = [name for param in shown for name in param.opts if name.startswith("--")]
        assert not [name for name in options if name not in said], "an option's name was cut"


@pytest.mark.parametrize("words", ["", "start", "keys add"])
def test_short_help_is_the_help(words: str, coordinator: Said) -> None:
    assert coordinator(*words.split(), "-h") == coordinator(*words.split(), "--help")


def test_version_is_that_of_the_distribution(coordinator: Said, capsys: pytest.CaptureFixture[str]) -> None:
    assert coordinator("--version") == (0, f"coordinator {version('ring-attention-energy')}\n", "")
    assert ringattn.__version__ == version("ring-attention-energy")
    with pytest.raises(SystemExit) as ended:
        Parser("worker", "", "", {"--coordinator": {"required": True}}).parse_args(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"worker {ringattn.__version__}\n")


def test_help_examples_run(coordinator: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples run in the order of the help, in one folder.

    Other tests run the rest with other values: the forecast needs a training, the judge somebody's forecasts, a backtest months before it, the doctor measures
    the machine, and neither a follower nor a page ends.
    """
    monkeypatch.setenv("COORDINATOR_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("COORDINATOR_WORKERS", "1")
    monkeypatch.setenv("COORDINATOR_ROUTES", "all")  # what is balanced needs them
    for words, one in COMMANDS.items():
        if words.split()[1] not in ("backtest", "doctor", "follow", "forecast", "judge", "watch"):
            code, out, err = coordinator(*shlex.split(one.epilog)[1:])
            assert code == 0, f"{one.epilog}\n{err}"
            assert out or words in ("coordinator keys revoke", "coordinator keys list")  # the list is empty then
    assert (tmp_path / "report.html").exists()


# -- completion ----------------------------------------------------------------------------------------------------------------


def completed(shell: str, line: str) -> str:
    """What the program answers when `shell` asks for completions of `line`."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    asked |= {"_COORDINATOR_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(command(), env=environment(**asked), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("shell", "line", "known"),
    [
        ("bash", "coordinator st", {"start", "status"}),
        ("bash", "coordinator start --train", {"train", "train-config"}),
        ("zsh", "coordinator start --train", {"train", "train-config"}),
        ("zsh", "coordinator keys ", {"init", "add", "revoke", "list"}),
        ("fish", "coordinator start --train", {"train", "train-config"}),
    ],
)
def test_completion_knows_commands_and_options(shell: str, line: str, known: set[str]) -> None:
    said = completed(shell, line)
    assert known <= set(re.findall(r"\w[\w-]*", said)), said
    assert "verify" not in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_real_shells_accept_the_completion(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "coordinator"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m coordinator "$@"\n')
    program.chmod(0o755)
    script = {
        "bash": 'eval "$(_COORDINATOR_COMPLETE=source_bash coordinator)"; COMP_WORDS=(coordinator sta); COMP_CWORD=1; '
        '_coordinator_completion coordinator; echo "${COMPREPLY[@]}"',
        "zsh": 'autoload -U compinit; compinit -u; eval "$(_COORDINATOR_COMPLETE=source_zsh coordinator)"; '
        "echo $_comps[coordinator]; _COORDINATOR_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS='coordinator sta' coordinator",
        "fish": "_COORDINATOR_COMPLETE=source_fish coordinator | source; complete -C 'coordinator sta'",
    }[shell]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = environment(PATH=path, HOME=str(tmp_path), PYTHONPATH=str(Path(__file__).resolve().parents[2]))
    done = subprocess.run(
        [shell, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert {"start", "status"} <= set(re.findall(r"\w+", done.stdout)), done.stdout + done.stderr


# -- one result, in words or JSON ------------------------------------------------------------------------------------------------


def test_json_is_one_document_and_errors_are_json(coordinator: Said, data: Path) -> None:
    def result(*words: str) -> Any:
        code, out, err = coordinator(*words, "--json")
        events = [json.loads(line)["event"] for line in err.splitlines()]
        assert code == 0 and set(events) <= {"progress"}  # which a slow machine prints
        return json.loads(out)

    added = result("keys", "add", "m2-1", "--keys", "keys")
    assert added["name"] == "m2-1" and (data.parent / added["key"]).exists()
    assert list(result("keys", "list", "--keys", "keys")) == ["m2-1"]
    assert result("keys", "init", "--keys", "keys") == {"key": "keys/coordinator.key"}
    assert result("keys", "revoke", "m2-1", "--keys", "keys") == {"name": "m2-1", "revoked": True}
    assert result("config", "show")["workers"] == {"value": "2", "origin": "default"}
    assert result("status")["running"] is False
    assert result("verify")["whole"] is True
    assert result("report")["sections"]["training"]["there"] is False
    code, out, err = coordinator("verify", "--json", "--data", "nowhere")
    assert not out
    error = json.loads(err)
    assert (error["event"], error["exit_code"], code) == ("error", 2, 2)
    assert "nowhere" in error["text"]


@pytest.mark.parametrize(("source", "rate"), [("eia", 2.5), ("oasis", 0.2), ("bulk", 0.0), ("synthetic", 0.0)])
def test_dry_run_states_the_ceiling_of_its_source(source: str, rate: float, tmp_path: Path) -> None:
    plan = ("--source", source, "--respondents", "CISO", "--start", "2024", "--end", "2024", "--data", str(tmp_path))
    found = json.loads(CliRunner().invoke(app, ["start", "--extract", "--dry-run", "--json", *plan]).stdout)
    assert found["policy_rate"] == rate
    assert found["policy_seconds"] == (pytest.approx(found["requests"] / rate) if rate else 0)


@pytest.mark.parametrize("more", [("--dry-run",), ()])
def test_training_on_too_few_years_is_refused_before_a_ring_is_started(
    more: tuple[str, ...], coordinator: Said, data: Path
) -> None:
    code, out, err = coordinator("start", "--train", *more)
    assert (code, out) == (2, "")
    assert err.startswith("coordinator: a training needs series of 2 years") and "data holds 1 (2024)" in err
    assert "`coordinator start --extract --start 2023 --end 2024 --respondents PACW --data data`" in err
    assert "UsageError" not in err and "workers" not in err
    assert not (data / "train" / "checkpoints").exists()


@pytest.mark.parametrize("more", [("--dry-run",), ()])
def test_control_training_on_too_few_years_is_refused_before_a_learner_is_started(
    more: tuple[str, ...], coordinator: Said, data: Path
) -> None:
    code, out, err = coordinator("start", "--rollouts", *more)
    assert (code, out) == (2, "")
    assert (
        err.startswith("coordinator: a control training needs series of 3 years in a row")
        and "data holds 1 (2024)" in err
    )
    assert "`coordinator start --extract --start 2022 --end 2024 --respondents PACW --data data`" in err
    assert not (data / "control" / "logs").exists()


@pytest.mark.parametrize(("stages", "first"), [({"train"}, 2023), ({"rollouts"}, 2022), ({"train", "rollouts"}, 2022)])
def test_years_that_a_refusal_names_are_those_that_the_stages_need(stages: set[str], first: int, data: Path) -> None:
    """A training alone needs two years, and three were named."""
    with pytest.raises(UsageError, match=f"--start {first} --end 2024 --respondents PACW"):
        check_planned(data, {name: SimpleNamespace(config=b"") for name in stages}, "")


@pytest.mark.parametrize(
    ("stage", "end", "lacks"), [("--train", "2023", "of 2 years"), ("--rollouts", "2024", "of 3 years in a row")]
)
def test_period_that_is_too_short_is_refused_before_it_is_extracted(
    stage: str, end: str, lacks: str, coordinator: Said, tmp_path: Path
) -> None:
    asked = ("--source", "bulk", "--respondents", "PACW", "--start", "2023", "--data", "short")
    code, out, err = coordinator("start", "--extract", stage, "--end", end, *asked)
    assert (code, out) == (2, "")
    assert lacks in err and "short would hold" in err and "after this extraction" in err
    assert "`coordinator start --extract --source bulk --start " in err
    assert not (tmp_path / "short").exists()
    assert coordinator("start", "--extract", stage, "--end", "2025", "--dry-run", *asked)[0] == 0


def test_dry_run_ends_with_what_it_costs_and_what_it_lacks(coordinator: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EIA_API_KEY", raising=False)
    lines = coordinator("start", "--extract", "--source", "eia", "--dry-run", "--data", "new")[1].splitlines()
    assert len(lines) < 20
    assert "  … 62 more, all listed with --json" in lines
    summary, ceiling, duration, key = lines[-4:]
    assert summary.startswith("70 shards to fetch") and "policy ceiling" in ceiling
    assert duration.startswith("time: about ") and key.startswith("EIA_API_KEY is not set")
    monkeypatch.setenv("EIA_API_KEY", "0" * 40)
    found = json.loads(coordinator("start", "--extract", "--source", "eia", "--dry-run", "--json", "--data", "new")[1])
    assert (len(found["shards"]), found["key"]) == (70, "")


def test_next_command_after_an_extraction_is_one_that_can_run(data: Path) -> None:
    settings = {"data": data, "train-config": None}
    first, lacking = next_steps({"extract"}, settings).splitlines()
    assert first == f"next: coordinator report --data {data}"
    assert "--start 2023 --end 2024 --respondents PACW" in lacking
    commit(data, shard("PACW", "2023-01-01T00", "2023-01-31T23"), {"D": 3000.0, "DF": 3100.0})
    build_all(data)
    assert next_steps({"extract"}, settings) == f"next: coordinator start --train --data {data}"


@pytest.mark.parametrize(
    ("years", "config", "words"),
    [
        ({"PACW": {2023, 2024}}, b"", ""),
        ({"PACW": {2024}}, b'validate = "2024-06:2024-07"', ""),
        ({"PACW": {2022, 2023}, "ERCO": {2023}}, b"", "holds 1 that all respondents have (2023)"),
        ({"PACW": {2022, 2023}, "ERCO": {2023}}, b'respondents = ["PACW"]', ""),
        ({"PACW": {2019}}, b"", "--start 2019 --end 2020 --respondents PACW"),
        ({str(i): {2024} for i in range(13)}, b"", "--end 2024 --data data` with the same --respondents, or"),
        ({}, b"", "holds none with demand (D). Run `coordinator start --extract --start 2019 --end 2020 --data"),
    ],
)
def test_years_that_suffice_for_a_training_are_those_that_it_accepts(
    years: dict[str, set[int]], config: bytes, words: str
) -> None:
    found = too_few_years(Path("data"), config, years)
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(
    ("years", "words"),
    [
        ({"PACW": {2021, 2022, 2023}}, ""),
        ({"PACW": {2020, 2022, 2023}}, "holds 3 (2020, 2022, 2023)"),
        ({"PACW": {2021, 2022, 2023}, "ERCO": {2023}}, "holds 1 that all respondents have (2023)"),
    ],
)
def test_years_that_suffice_for_a_control_training_are_those_that_it_accepts(
    years: dict[str, set[int]], words: str
) -> None:
    found = too_few_for_control(Path("data"), years)
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(
    ("origin", "source"),
    [("synthetic", ""), ("api.eia.gov", "eia"), ("localhost", "eia+URL"), ("recordings", "recordings:PATH")],
)
def test_suggested_extraction_names_the_source_of_the_hours_on_disk(origin: str, source: str, tmp_path: Path) -> None:
    commit(tmp_path, shard("PACW", "2024-01-01T00", "2024-01-31T23"), {"D": 3000.0, "DF": 3100.0}, origin)
    assert source_of(tmp_path) == source
    found = too_few_years(tmp_path, b"", {"PACW": {2024}})
    assert ("--extract --source" in found) == bool(source) and source in found


def test_dry_run_states_its_time_in_words(coordinator: Said) -> None:
    out = coordinator("start", "--extract", "--dry-run", *MONTH)[1]
    assert re.search(
        r"^time: about \d+ s, a rough plan: no such run has ended in this folder yet$", out, re.MULTILINE
    ), out


@pytest.mark.parametrize("name", ["start", "watch"])
def test_help_names_what_http_takes(name: str, coordinator: Said) -> None:
    assert re.search(r"--http [<[]?HOST:PORT[]>]?", coordinator(name, "-h")[1])


def test_dry_run_explains_each_stage_and_writes_nothing(coordinator: Said, data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text('validate = "2024-01-20:2024-01-31"')
    config = ("--train-config", "train.toml")
    for year in (2022, 2023):
        commit(data, shard("PACW", f"{year}-01-01T00", f"{year}-01-31T23"), {"D": 3000.0, "DF": 3100.0})
    build_all(data)
    before = sorted(data.rglob("*"))
    later = json.loads(coordinator("start", "--train", "--rollouts", "--dry-run", "--json", *config)[1])
    assert (later["train"]["would"], later["rollouts"]["would"]) == ("run", "run")
    assert "no checkpoint" in later["train"]["why"] and "train" in later["rollouts"]["why"]
    state = data / "train" / "checkpoints" / "000020" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    code, out, err = coordinator("start", "--train", "--dry-run", *config)
    assert (code, err) == (0, "") and "would go on: from step 20" in out
    shutil.rmtree(data / "train")
    whole = json.loads(coordinator("start", "--extract", "--train", "--dry-run", "--json", *MONTH, *config)[1])
    assert whole["extract"]["shards"] and "extract" in whole["train"]["why"]
    assert sorted(data.rglob("*")) == before


# -- terminals -------------------------------------------------------------------------------------------------------------------


def on_terminal(folder: Path, columns: int, *words: str, **env: str) -> tuple[int, str]:
    """Run a command on a new pseudo-terminal. Returns the exit code and all output."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    kept = {name: value for name, value in environment(TERM="xterm-256color", **env).items() if name != "COLUMNS"}
    process = subprocess.Popen(command(*words), cwd=folder, env=kept, stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown = b""
    with suppress(OSError):  # EIO: the other side is closed
        while part := os.read(main, 65_536):
            shown += part
    os.close(main)
    end_of(process, "the end of a process that has closed its terminal")
    return process.returncode, shown.decode(errors="replace")


@pytest.mark.parametrize(("columns", "colour"), [(40, False), (80, True), (200, True)])
def test_results_fit_terminals_of_any_width(tmp_path: Path, columns: int, colour: bool) -> None:
    code, shown = on_terminal(tmp_path, columns, "config", "show", **({} if colour else {"NO_COLOR": "1"}))
    lines = [SGR.sub("", line).rstrip() for line in shown.replace("\r", "").splitlines()]
    assert code == 0 and max(map(len, lines)) <= columns
    assert "workers" in "".join(lines)
    assert SGR.search(shown) if colour else not COLOUR.search(shown)


def test_run_on_a_narrow_terminal(tmp_path: Path) -> None:
    code, shown = on_terminal(tmp_path, 40, "start", "--extract", "--workers", "1", *MONTH, NO_COLOR="1")
    assert code == 0, shown
    assert "Traceback" not in shown and "2 of 2 shards verified" in shown
    assert not COLOUR.search(shown)


def test_lines_are_not_wrapped_without_a_terminal(coordinator: Said) -> None:
    shown = coordinator("config", "show")[1]
    assert (
        next(line for line in shown.splitlines() if line.startswith("workers "))
        .rstrip()
        .endswith("COORDINATOR_WORKERS")
    )
    assert not SGR.search(shown)


def test_forecast_table_drops_columns_on_narrow_terminals() -> None:
    names = ("q0.025", "q0.1", "q0.5", "q0.9", "q0.975", "operator", "difference", "demand")
    row: dict[str, Any] = {
        "period": "2024-01-10T08",
        "local": "2024-01-10T00:00:00-08:00",
        **dict.fromkeys(names, 12345.0),
        "demand": None,
    }
    assert max(map(len, format_table([row], 40))) <= 40
    assert "median" in format_table([row], 40)[0]
    assert max(map(len, format_table([row], 80))) <= 80
    assert "demand" in format_table([row], 80)[0] and "Wed 00:00" in format_table([row], 80)[1]
    assert "–" in format_table([row])[1]


def test_findings_wrap_to_the_terminal() -> None:
    found = [
        Finding("m2-1.local packages", "problem", "numpy is missing " * 4, "`uv sync` in the project's folder " * 3)
    ]
    for columns in (40, 80, 200):
        assert max(map(len, describe(found, columns).splitlines())) <= columns
    assert len(describe(found).splitlines()) == 2
