"""Noise schedules: their tables, and the forward process q (DiffuMIN, eq. 9-10)."""

import numpy as np
from keras import ops


class Schedule:
    """How much noise a sample holds at each step t = 0..T; at 0 it holds none.

    Args:
        betas: beta_1..beta_T, each in (0, 1).

    Attributes:
        num_steps: T.
        betas: float64 numpy (T + 1,), beta_0 = 0.
        alpha_bars: float64 numpy (T + 1,): the product of 1 - beta_1 .. 1 - beta_t.
    """

    def __init__(self, betas):
        betas = np.asarray(betas, "float64")
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"`betas` must be numbers in (0, 1). Received: betas={betas}")
        self.num_steps = len(betas)
        self.betas = np.concatenate([[0.0], betas])
        self.alpha_bars = np.cumprod(1 - self.betas)

    @classmethod
    def linear(cls, num_steps=1000, first=1e-4, last=0.02):
        """DDPM's schedule (Ho et al., 2020, section 4)."""
        return cls(np.linspace(first, last, num_steps))

    def q_sample(self, x_0, t, noise):
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, eq. 10.

        Args:
            x_0: float (..., d).
            t: int (...) or scalar, in [0, T].
            noise: As `x_0`, standard normal.
        """
        signal = ops.take(ops.cast(np.sqrt(self.alpha_bars), x_0.dtype), t)
        deviation = ops.take(ops.cast(np.sqrt(1 - self.alpha_bars), x_0.dtype), t)
        return signal[..., None] * x_0 + deviation[..., None] * noise
