"""Four hosts for a test; their processes, addresses and files are gone afterwards, also where the test was killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.testbed.bed import Bed, missing, sweep

HOSTS = 4


@pytest.fixture
def bed() -> Iterator[Bed]:
    """Skipped, with the reason, where namespaces can't be made."""
    if reason := missing():
        pytest.skip(reason)
    sweep()
    with Bed(HOSTS) as hosts:
        yield hosts
