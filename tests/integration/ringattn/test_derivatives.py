"""First derivatives are exact, with mx.checkpoint and through unshard; every other derivative is an error, on every rank."""

import json
from pathlib import Path

import pytest

from ringattn import launch

SCRIPT = str(Path(__file__).parents[2] / "support" / "ranks" / "derivatives.py")


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(3, marks=pytest.mark.long)])
def test_first_derivatives_are_exact_and_all_others_are_refused(ranks: int) -> None:
    for lines in launch.run(ranks, [SCRIPT], timeout=60):
        seen = json.loads(lines[-1])
        for name, refused in seen["refused"].items():
            assert set(refused.values()) == {"TransformError"}, (name, refused)
        for name, errors in seen["errors"].items():
            assert max(errors.values()) < 2e-6, (name, errors)
