"""Check the fixed top level, the empty `coordinator/__init__.py` and a first docstring line in every module.

The import contracts are in pyproject.toml; `lint-imports` checks them.
"""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("coordinator", "worker", "ringattn", "ingest", "rl")


def modules() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_coordinator_package_is_empty() -> None:
    """A worker imports `coordinator.wire`; an empty package loads nothing else with it."""
    assert (ROOT / "coordinator" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("path", [p for p in modules() if p.read_text().strip()], ids=name_of)
def test_module_has_a_docstring(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc and len(doc.splitlines()[0]) > 15, f"{path.relative_to(ROOT)}: no first docstring line"


def without_encoding(tree: ast.AST) -> list[int]:
    """Return the lines that read or write a file as text in the encoding of the locale, which may be ASCII."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        of_file = (
            isinstance(call.func, ast.Attribute) and name == "open"
        )  # `path.open("a")`; `archive.open(member)` is none
        given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        modes = [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        mode = next((mode for mode in modes if mode and set(mode) <= set("rwaxbt+")), "" if of_file else "r")
        as_text = {
            "read_text": not call.args,
            "write_text": len(call.args) < 2,
            "open": bool(mode) and "b" not in mode,
            "fdopen": "b" not in mode,
        }
        if as_text.get(name) and not any(keyword.arg == "encoding" for keyword in call.keywords):
            lines.append(call.lineno)
    return lines


def test_text_files_have_an_encoding() -> None:
    """Without one `LC_ALL=C` makes it ASCII, and a text with another character ends the command."""
    found = {name_of(path): without_encoding(ast.parse(path.read_text("utf-8"))) for path in modules()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_wheel_has_every_package() -> None:
    """pyproject.toml lists the packages one by one; a clone runs without that list, a wheel does not."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({".".join(path.relative_to(ROOT).parent.parts) for path in modules()})


def test_top_level_is_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    top = {line.split("/")[0] for line in listed if line and not line.startswith(".")}
    fixed = {*OURS, "tests", "hostfiles", "scripts", "docs", "pyproject.toml", "README.md", "LICENSE"}
    assert top <= fixed, f"not in the fixed top level: {sorted(top - fixed)}"
