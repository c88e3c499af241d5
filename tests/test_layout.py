"""The package rule of the design: who may import whom, an empty coordinator/__init__, and a first line for every module."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("coordinator", "worker", "ringattn", "ingest", "rl")

# Module prefix → our own modules it may import (itself is always allowed). The longest matching prefix counts.
ALLOWED: dict[str, tuple[str, ...]] = {
    "coordinator.protocol": (),
    "coordinator.curve": (),
    "coordinator.failures": (),
    "coordinator.kinds": (),
    "coordinator": ("coordinator", "ingest", "ringattn.planner", "ringattn.launch", "rl"),
    "worker": (
        *("worker", "coordinator.protocol", "coordinator.failures", "coordinator.kinds", "coordinator.curve"),
        *("ingest", "ringattn", "rl"),
    ),
    "ringattn": ("ringattn",),
    "ingest": ("ingest",),
    "rl": ("rl",),
}


def modules() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    module = name_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from coordinator import protocol` imports coordinator.protocol, not all of coordinator.
            found.update(
                f"{base}.{alias.name}" if (ROOT / Path(*base.split("."), f"{alias.name}.py")).exists() else base
                for alias in node.names
            )
    return {name for name in found if name.split(".")[0] in OURS}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_keep_the_package_rule(path: Path) -> None:
    module = name_of(path)
    rule = max((prefix for prefix in ALLOWED if within(module, prefix)), key=len)
    for name in imported(path):
        assert within(name, module) or any(within(name, allowed) for allowed in ALLOWED[rule]), (
            f"{module} imports {name}; {rule} may import {ALLOWED[rule] or 'nothing of ours'}"
        )


def test_a_worker_never_loads_the_scheduler() -> None:
    assert (ROOT / "coordinator" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("path", [p for p in modules() if p.read_text().strip()], ids=name_of)
def test_module_says_in_one_line_what_it_is(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc and len(doc.splitlines()[0]) > 15, f"{path.relative_to(ROOT)}: no first docstring line"


def test_top_level_is_the_fixed_one() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    top = {line.split("/")[0] for line in listed if line and not line.startswith(".")}
    fixed = {*OURS, "tests", "hostfiles", "scripts", "docs", "pyproject.toml", "README.md", "LICENSE"}
    assert top <= fixed, f"not in the fixed top level: {sorted(top - fixed)}"
