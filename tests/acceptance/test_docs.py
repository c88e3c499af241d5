"""Check README and docs: links resolve, commands parse, listed paths exist, cited figures are in the linked page."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from coordinator.cli.app import app
from ingest.sources import SOURCES
from tests.support.data_folder import build_all, commit, daily, shard
from tests.support.pages import FENCE, PAGES, ROOT, blocks, commands, name_of
from worker.cli import OPTIONS

COMMAND = typer.main.get_command(app)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if not re.match("https?:|#|mailto:", link)]
    broken = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    for link in set(links) - set(broken):
        file, _, anchor = link.partition("#")
        if anchor and anchor not in anchors(page.parent / file):
            broken.append(link)
    assert not broken, f"{name_of(page)}: {broken}"


def anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    for line in commands(page.read_text()):
        if not line.startswith("coordinator "):
            continue
        command, _, _ = line.partition(" > ")  # what a shell does with the output is no argument
        words = [word for word in shlex.split(command, comments=True) if word != "…"][1:]
        parse(words, f"{name_of(page)}: {line}")


def parse(words: list[str], what: str) -> None:
    """Parse the words with Typer, group by group; run nothing."""
    command: Any = COMMAND
    name = "coordinator"
    while True:
        children = getattr(command, "commands", None)
        if children is None:
            try:
                command.make_context(name, list(words))
            except Exception as error:
                # Prose may name a command alone, or an option without a value.
                if words and not (words[-1].startswith("--") and "requires an argument" in str(error)):
                    pytest.fail(f"{what}: {error}")
            return
        if not words:
            return  # a group without a command, e.g. `coordinator keys`
        assert words[0] in children, f"{what}: no command {words[0]}; there are {', '.join(children)}"
        name, command, words = words[0], children[words[0]], words[1:]


def test_wrong_command_is_found() -> None:
    with pytest.raises(AssertionError, match="no command strat"):
        parse(["strat"], "here")
    with pytest.raises(pytest.fail.Exception, match="--extrakt"):
        parse(["start", "--extrakt"], "here")
    page = "```toml\na = 1\n```\n```sh\nuv run coordinator verify  # proves\n```\n`coordinator keys`"
    assert list(commands(page)) == ["coordinator verify", "coordinator keys"]


def source_tree() -> list[str]:
    """Folders that the architecture page lists."""
    page = (ROOT / "docs" / "internals" / "architecture.md").read_text()
    block = page.split("## The source tree", 1)[1].split("```")[1]
    return re.findall(r"^([\w/]+/) ", block, re.MULTILINE)


def test_source_tree_lists_all_folders() -> None:
    listed = source_tree()
    assert not [path for path in listed if not (ROOT / path).exists()]
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    code = {str(Path(path).parent) + "/" for path in known if path.endswith((".py", ".c"))}
    packages = {"coordinator/", "worker/", "rl/", "tests/"}  # their own few modules are described by their folders
    assert not [folder for folder in code if not folder.startswith(tuple(listed)) and folder not in packages]


def test_index_lists_all_pages() -> None:
    contents = (ROOT / "docs" / "README.md").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    pages = {page for page in pages if not page.startswith("decisions/")} - {"README.md"}
    assert not [page for page in pages if f"({page})" not in contents]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_quoted_paths_exist(page: Path) -> None:
    """A path between backticks that begins with one of our folders exists. Generated sections have the paths of their measurement."""
    text = re.sub(r"<!-- \w+: begin.*?end -->", "", page.read_text(), flags=re.DOTALL)
    quoted = re.findall(
        r"`((?:coordinator|worker|ringattn|ingest|rl|tests|scripts|hostfiles|docs)/[\w./-]+)(?:::\w+)?`",
        text,
    )
    assert not [path for path in quoted if not (ROOT / path).exists()]


def test_cited_figures_are_in_the_linked_page() -> None:
    """The page of benchmarks prints figures bold, in a line that links the page with the table."""
    cited = 0
    for line in (ROOT / "docs" / "benchmarks.md").read_text().splitlines():
        figures = [figure for figure in re.findall(r"\*\*([^*]+)\*\*", line) if re.search(r"\d", figure)]
        pages = [link for link in LINK.findall(line) if link.endswith(".md")]
        for figure in figures:
            assert pages, f"{line}: no page is linked"
            assert any(figure in (ROOT / "docs" / page).read_text() for page in pages), f"{figure} is not in {pages}"
            cited += 1
    assert cited >= 4


def test_paths_of_scripts_check_exist() -> None:
    words = (
        (ROOT / "scripts" / "check").read_text().split("uv run pytest", 1)[1].partition("||")[0].replace("\\\n", " ")
    )
    for word in words.split():
        head, brace, rest = word.partition("{")
        names = rest.removesuffix("}.py").split(",") if brace else [""]
        for name in names:
            path = f"{head}{name}.py" if brace else word
            assert (ROOT / path).exists(), path


def test_every_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *(one for group in project["dependency-groups"].values() for one in group),
    ]
    wanted = {re.split(r"[\[>=; ]", line)[0] for line in asked}
    section = (ROOT / "docs" / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("| ") and "|" in line)
    cells = [line.split("|")[1] if "`" in line.split("|")[1] else line.split("|")[2] for line in table.splitlines()]
    assert {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)} == wanted


def test_help_shows_brackets() -> None:
    """Defaults are in brackets, which rich would take for markup."""
    output = CliRunner().invoke(app, ["start", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    whole = re.sub(r"[\s│]+", " ", output)
    assert "[default: synthetic]" in whole
    assert f"[{'|'.join(f'{name}+' for name in SOURCES)}]URL" in whole


def test_readme_begins_without_terms_that_it_has_not_explained() -> None:
    first = (ROOT / "README.md").read_text().split("```")[0]
    assert re.findall(r"NEON|Metal|qemu|stand-in|barrier", first) == []
    assert "never run** on Apple hardware" in first  # what is untested is said before the first command


@pytest.mark.timeout(600)
def test_readme_python_runs(tmp_path: Path) -> None:
    one = shard("ERCO")
    commit(tmp_path / "data", one, {"D": daily(one.hours), "DF": daily(one.hours)})
    build_all(tmp_path / "data")
    snippets = blocks((ROOT / "README.md").read_text(), "python")
    assert len(snippets) == 3
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "(8784, 2)" in ran.stdout
    assert "2024-12-31 17:00:00-06:00" in ran.stdout
    assert "(1, 8, 4096, 64)" in ran.stdout


def test_launchd_unit_is_a_daemon_that_macos_does_not_throttle() -> None:
    """A LaunchAgent is refused the local network; without `ProcessType` launchd throttles; its worker's options are the real ones."""
    page = ROOT / "docs" / "how-to" / "operations.md"
    units = [plistlib.loads(text.encode()) for kind, text in FENCE.findall(page.read_text()) if kind == "xml"]
    unit, follower = sorted(units, key=lambda one: one["Label"], reverse=True)
    assert unit["UserName"] and unit["ProcessType"] == "Interactive" and unit["KeepAlive"]
    caffeinate, flags, worker, *options = unit["ProgramArguments"]
    assert (caffeinate, flags, Path(worker).name) == ("/usr/bin/caffeinate", "-is", "worker")
    assert options[::2] == ["--coordinator", "--key", "--data", "--address", "--patience"] and set(options[::2]) <= set(
        OPTIONS
    )
    assert "`/Library/LaunchDaemons/" in page.read_text()
    assert follower["UserName"] and follower["ProcessType"] == "Interactive"
    assert follower["KeepAlive"] == {"SuccessfulExit": False}  # told to end, it ends with 0 and stays so
    follow = typer.main.get_command(app).commands["follow"]  # type: ignore[attr-defined]
    known = {name for param in follow.params for name in param.opts}
    assert set(follower["ProgramArguments"][4::2]) <= known
    assert "RestartPreventExitStatus=2 4" in page.read_text()


def test_quoted_tests_exist() -> None:
    """A test between backticks exists; `…` at its end matches the rest of the name."""
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    files = {path.name for path in (ROOT / "tests").rglob("*.py")}
    missing = []
    for page in PAGES:
        text = re.sub(r"<!-- \w+: begin.*?end -->", "", page.read_text(), flags=re.DOTALL)
        for name in re.findall(r"`(?:[\w/]*test_\w+\.py::)?(test_\w+…?(?:\.py)?)`", text):
            known = name in files if name.endswith(".py") else f"def {name.removesuffix('…')}" in sources
            missing += [] if known else [f"{name_of(page)}: {name}"]
    assert not missing
