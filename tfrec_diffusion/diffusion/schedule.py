"""Noise schedules and the forward process q (DiffuMIN, eq. 9-10; HierDiffuse, eq. 2, 10-11)."""

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

    @classmethod
    def cosine(cls, num_steps=1000, offset=0.008, largest_beta=0.999):
        """HierDiffuse, eq. 10-11: the cosine itself, where others take its square.

        Args:
            num_steps: T.
            offset: s.
            largest_beta: Cuts beta_T, which would be 1.
        """
        angles = np.pi / 2 * (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)
        alpha_bars = np.cos(angles) / np.cos(angles[0])
        return cls(np.minimum(1 - alpha_bars[1:] / alpha_bars[:-1], largest_beta))

    def q_sample(self, x_0, t, noise):
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, eq. 10.

        Args:
            x_0: float (..., d).
            t: int (...) or scalar, in [0, T].
            noise: As `x_0`, standard normal.
        """
        signal, deviation = self._signal_and_deviation(t, x_0.dtype)
        return signal * x_0 + deviation * noise

    def noise_in(self, x, t, x_0):
        """The noise with which `q_sample` makes x at t in [1, T] from x_0; arguments as there."""
        signal, deviation = self._signal_and_deviation(t, x.dtype)
        return (x - signal * x_0) / deviation

    def _signal_and_deviation(self, t, dtype):
        tables = np.sqrt(self.alpha_bars), np.sqrt(1 - self.alpha_bars)
        return (ops.take(ops.cast(table, dtype), t)[..., None] for table in tables)
