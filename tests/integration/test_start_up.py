"""What programs load when they start: none of the packages that take longer than all else, and that only some of their work needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"scipy", "pandas", "holidays", "matplotlib", "requests", "rich.console"}


@pytest.mark.parametrize(
    "modules",
    [
        ("worker.control.learner", "worker.training.loop", "worker.forecast.cli", "rl.gym"),
        ("coordinator.cli.app", "coordinator.cli.status", "worker.agent.handlers"),
    ],
    ids=lambda modules: modules[0],
)
def test_start_loads_no_package_that_only_some_work_needs(modules: tuple[str, ...]) -> None:
    script = f"import sys, {', '.join(modules)}; print(*sorted({SLOW} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
