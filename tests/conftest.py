"""Fixtures of several folders, and settings of the whole suite: bytecode cache, groups of tests for pytest-xdist."""

import os
from pathlib import Path

import pytest

from tests.support.eia_client import emulator, recorded
from tests.support.program import coordinator, program, undisturbed

__all__ = ["coordinator", "emulator", "program", "recorded", "undisturbed"]

# The suite starts hundreds of Python processes that import the same modules. Without a bytecode cache each compiles them
# again, which is most of its start-up time. A caller who turned the cache off gets one inside .pytest_cache.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one xdist worker, so that they share session fixtures, unless a mark names a group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
