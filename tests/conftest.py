"""Configure the whole suite: bytecode cache, Hypothesis profiles, pytest-xdist workers, shared fixtures."""

import fcntl
import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".pytest_cache"

# The suite starts hundreds of Python processes that import the same modules. Without a bytecode cache each compiles them
# again, which is most of its start-up time. A caller who turned the cache off gets one inside .pytest_cache; this process
# uses it too, so what it imports from here on is compiled before pytest-xdist's workers start.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(CACHE / "bytecode")
    sys.dont_write_bytecode = False

from hypothesis import HealthCheck, settings

from tests.support import single_threaded_blas
from tests.support.eia_client import emulator, recorded
from tests.support.program import coordinator, program, undisturbed

__all__ = ["coordinator", "emulator", "program", "recorded", "single_threaded_blas", "undisturbed"]

MAX_WORKERS = 8

# No deadline per example and no bound on drawing: a busy machine must not fail a property.
# `HYPOTHESIS_PROFILE=thorough` searches longer.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("suite"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return three workers a core, because tests wait more than they compute; none for a run of single files."""
    if all(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    return min(MAX_WORKERS, 3 * (os.cpu_count() or 1))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let one worker of pytest-xdist collect first in a new checkout: all would compile the same modules at the same time."""
    compiled = CACHE / "compiled"
    if "PYTEST_XDIST_WORKER" not in os.environ or compiled.exists():
        return (yield)
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "compiling").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.exists():
            collected = yield
            compiled.touch()
            return collected
    return (yield)


def pytest_collection_finish() -> None:
    """Leave modules and test items out of later garbage collections, which took a sixth of the unit tests' processor time."""
    gc.freeze()
    gc.set_threshold(10_000)  # objects made since the last one
