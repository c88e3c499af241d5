"""Where the project can be installed: markers and docs agree, wheels exist, and a Python that cannot run it is told why."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from scripts.dev.pin_versions import OLDEST_MACOS, PLATFORMS, PYTHONS
from tests.support.program import ROOT
from tests.support.registry import uv

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("darwin", "arm64", ["mlx"]),
        ("darwin", "x86_64", []),
        ("linux", "x86_64", ["mlx[cpu]"]),
        ("linux", "aarch64", ["mlx[cpu]"]),
    ],
)
def test_markers_ask_for_mlx_where_it_has_wheels(system: str, machine: str, wanted: list[str]) -> None:
    here = {"sys_platform": system, "platform_machine": machine}
    found = [Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "mlx"]
    assert [str(one).partition(">")[0] for one in found if one.marker is None or one.marker.evaluate(here)] == wanted


def test_range_of_python_is_the_one_that_versions_are_pinned_for() -> None:
    accepted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(9, 20) if f"3.{minor}.1" in accepted] == list(PYTHONS)
    stated = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert stated == list(PYTHONS)


def test_docs_state_what_is_needed() -> None:
    for page in ("README.md", "docs/how-to/several_machines.md"):
        text = (ROOT / page).read_text()
        for words in (f"macOS {OLDEST_MACOS.partition('.')[0]}", "Apple Silicon", "3.11 to 3.14", "glibc 2.35"):
            assert words in text, f"{page} does not say {words}"


def test_training_says_why_an_intel_mac_cannot_run_it() -> None:
    code = (
        "import platform, runpy, sys; sys.platform = 'darwin'; platform.machine = lambda: 'x86_64'; "
        "sys.argv = ['worker/train.py']; runpy.run_path('worker/train.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 2 and done.stderr.startswith("train.py: this Python is built for x86_64"), done.stderr


@pytest.mark.parametrize(
    ("program", "options"),
    [("coordinator.__main__", "['start', '--extract']"), ("worker.cli", "['--coordinator', 'tcp://h:1']")],
)
def test_entry_point_says_why_an_intel_mac_cannot_run_it(program: str, options: str) -> None:
    code = (
        "import platform, sys; sys.platform = 'darwin'; platform.machine = lambda: 'x86_64'; "
        f"sys.argv[1:] = {options}; from {program} import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 2, done.stderr
    assert "mlx exists for Apple Silicon alone: an Intel Mac cannot run this project" in done.stderr
    assert "Traceback" not in done.stderr


def test_library_says_why_an_intel_mac_cannot_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ringattn

    monkeypatch.setattr(ringattn, "refused_python", lambda: "an Intel Mac")
    with pytest.raises(ImportError, match=r"ringattn.ring_attention: an Intel Mac"):
        ringattn.__getattr__("ring_attention")


def compile_requirements(python: str, platform: str, macos: str = OLDEST_MACOS) -> subprocess.CompletedProcess[str]:
    """Resolve dependencies and tools for a platform from wheels alone, by uv."""
    words = ["pip", "compile", "-q", "pyproject.toml", "--group", "dev", "--only-binary", ":all:"]
    words += ["--python-version", python, "--python-platform", platform, "--no-annotate", "--no-header"]
    return uv(*words, cwd=ROOT, env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": macos})


@pytest.mark.long  # a step of its own in CI: it asks the package registry
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_a_wheel(python: str, platform: str) -> None:
    done = compile_requirements(python, platform)
    assert done.returncode == 0, done.stderr
    pins = {line.partition("==")[0] for line in done.stdout.splitlines()}
    assert {"mlx", "mlx-metal" if "darwin" in platform else "mlx-cpu", "pyarrow", "scipy"} <= pins


@pytest.mark.long
def test_intel_mac_installs_all_but_mlx_and_is_told_why_at_the_start() -> None:
    done = compile_requirements("3.12", "x86_64-apple-darwin")
    assert done.returncode == 0 and "numpy==" in done.stdout and "mlx" not in done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("platform", "macos", "tag"),
    [
        ("aarch64-apple-darwin", "13.0", "macosx_13_0_arm64"),
        ("aarch64-manylinux_2_34", "14.0", "manylinux_2_34_aarch64"),
    ],
)
def test_older_system_is_refused_with_its_tag(platform: str, macos: str, tag: str) -> None:
    done = compile_requirements("3.12", platform, macos)
    assert done.returncode != 0 and "has no wheels with a matching platform tag" in done.stderr and tag in done.stderr
