"""A fixture that starts servers and stops them with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import Running


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(*tasks: str, **more: Any) -> Running:
        running.append(Running(tmp_path, tasks or ("a",), **more))
        return running[-1]

    yield start
    for one in running:
        one.close()
