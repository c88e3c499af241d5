"""Ten optimiser steps of a small model give the same weights at 1, 2 and 4 ranks, with and without mx.checkpoint."""

from pathlib import Path

import numpy as np

from ringattn import launch

SCRIPT = str(Path(__file__).parents[2] / "support" / "ranks" / "train.py")


def weights(n: int, path: Path, *options: str) -> dict[str, np.ndarray]:
    launch.run(n, [SCRIPT, str(path), *options], timeout=120)
    with np.load(path) as saved:
        return dict(saved)


def test_weights_agree_at_any_number_of_ranks(tmp_path: Path) -> None:
    alone = weights(1, tmp_path / "one.npz")
    assert max(np.abs(w).max() for w in alone.values()) > 0.1
    for n, options in ((2, ()), (2, ("checkpoint",)), (4, ())):
        ring = weights(n, tmp_path / "ring.npz", *options)
        for name, weight in alone.items():
            np.testing.assert_allclose(ring[name], weight, atol=1e-5, err_msg=f"{name} at {n} ranks {options}")
