"""Ten optimiser steps of a small model give the same weights at 1 to 4 ranks, with and without mx.checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from ringattn import launch

SCRIPT = str(Path(__file__).parents[2] / "support" / "ranks" / "train.py")


def weights(n: int, folder: Path, *variants: str) -> dict[str, dict[str, np.ndarray]]:
    """Train each variant on one ring of n ranks; return the weights by variant."""
    launch.run(n, [SCRIPT, str(folder), *variants], timeout=120)
    return {variant: dict(np.load(folder / f"{variant}.npz")) for variant in variants}


@pytest.mark.parametrize(
    ("n", "variants"),
    [(2, ("plain", "checkpoint")), pytest.param(4, ("plain",), marks=pytest.mark.long)],
)
def test_weights_agree_at_any_number_of_ranks(n: int, variants: tuple[str, ...], tmp_path: Path) -> None:
    alone = weights(1, tmp_path, "plain")["plain"]
    assert max(np.abs(w).max() for w in alone.values()) > 0.1
    for variant, ring in weights(n, tmp_path, *variants).items():
        for name, weight in alone.items():
            np.testing.assert_allclose(ring[name], weight, atol=1e-5, err_msg=f"{name} at {n} ranks, {variant}")
