"""Adam (Kingma & Ba 2015) on one row of weights, in numpy: for learners whose work is not MLX's, and whose state travels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]


@dataclass
class Adam:
    """Moments, [weight] each; a step changes them."""

    mean: Row
    square: Row

    @classmethod
    def fresh(cls, size: int) -> Adam:
        """Before the first step."""
        return cls(np.zeros(size, np.float32), np.zeros(size, np.float32))

    def step(self, gradient: Row, number: int, learning_rate: float, *, keep: float = 0.999) -> Row:
        """What to take off the weights in step `number`, counted from 1. `keep`: of the square, usually called beta 2."""
        self.mean += np.float32(0.1) * (gradient - self.mean)
        self.square += np.float32(1 - keep) * (gradient * gradient - self.square)
        mean = self.mean / np.float32(1 - 0.9**number)
        square = self.square / np.float32(1 - keep**number)
        return np.float32(learning_rate) * mean / (np.sqrt(square) + np.float32(1e-8))
