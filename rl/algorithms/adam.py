"""Adam (Kingma & Ba 2015) on one row of weights, in numpy: for learners without MLX whose optimizer state travels in jobs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
EPS = 1e-8


@dataclass
class Adam:
    """The moment estimates `m` and `v`, float32 [weight] each, 0 before the first step. `step` updates them in place."""

    m: Row
    v: Row

    def step(
        self, gradient: Row, number: int, learning_rate: float, *, beta1: float = 0.9, beta2: float = 0.999
    ) -> Row:
        """Return what to subtract from the weights in step `number`, counted from 1."""
        self.m += np.float32(1 - beta1) * (gradient - self.m)
        self.v += np.float32(1 - beta2) * (gradient * gradient - self.v)
        m_hat = self.m / np.float32(1 - beta1**number)
        v_hat = self.v / np.float32(1 - beta2**number)
        return np.float32(learning_rate) * m_hat / (np.sqrt(v_hat) + np.float32(EPS))
