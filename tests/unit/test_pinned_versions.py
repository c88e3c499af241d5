"""Check that tests run with the pinned versions, and that uv and pip are given the same pins."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pin_versions", ROOT / "scripts" / "dev" / "pin_versions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_installed_versions_are_the_pinned_ones() -> None:
    pins = script()
    if "{}.{}".format(*sys.version_info) not in pins.PYTHONS:
        pytest.skip(
            f"the versions are pinned for Python {', '.join(pins.PYTHONS)}, not for {platform.python_version()}"
        )
    differing = []
    for pin in map(Requirement, pins.read_pins(ROOT)):
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            installed = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:  # with pip the linters are not installed
            continue
        if installed not in pin.specifier:
            differing.append(f"{pin.name} {installed}, tested with {pin.specifier}")
    assert not differing, f"run `uv sync`, or `pip install -c {pins.CONSTRAINTS} -e .`: {differing}"


def test_uv_and_pip_get_the_same_pins() -> None:
    pins = script().read_pins(ROOT)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pins == settings["tool"]["uv"]["constraint-dependencies"]
    assert not any("@" in pin or "/" in pin for pin in pins)  # no address of a registry or of a file
    pinned = {Requirement(pin).name for pin in pins}
    groups = settings["project"]["dependencies"] + settings["dependency-groups"]["dev"]
    assert {Requirement(text).name for text in groups} <= pinned


def test_pins_are_replaced_and_differences_named() -> None:
    pins = script()
    before = '[tool.uv]\ndefault-groups = ["dev"]\n\n[tool.other]\n'
    once = pins.pinned(before, ["a==1"])
    assert pins.unpinned(once) == before
    assert tomllib.loads(pins.pinned(once, ["b==2"]))["tool"]["uv"]["constraint-dependencies"] == ["b==2"]
    assert pins.differences(["a==1", "b==1; x"], ["b==1; x", "c==2"]) == ["a: 1 → absent", "c: absent → 2"]
