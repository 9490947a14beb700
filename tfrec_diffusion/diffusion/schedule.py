"""Noise schedules and the forward process q (DiffuMIN, eq. 9-10; HierDiffuse, eq. 2, 10-11)."""

import numpy as np
from keras import ops


class Schedule:
    """How much noise a sample contains at each step t = 0..T. At step 0 it contains none.

    Args:
        betas: sequence of floats in (0, 1). beta_1..beta_T.

    Attributes:
        num_steps: int. T.
        betas: float64 array of shape (T + 1,). beta_0 = 0, then beta_1..beta_T.
        alpha_bars: float64 array of shape (T + 1,). Products of 1 - beta_1, .., 1 - beta_t.

    Reference:
        https://arxiv.org/abs/2006.11239
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
        """Betas that grow linearly, as in DDPM (Ho et al., 2020, section 4).

        Args:
            num_steps: int. T. Defaults to `1000`.
            first: float. beta_1. Defaults to `1e-4`.
            last: float. beta_T. Defaults to `0.02`.

        Returns:
            `Schedule`.
        """
        return cls(np.linspace(first, last, num_steps))

    @classmethod
    def cosine(cls, num_steps=1000, offset=0.008, largest_beta=0.999):
        """The cosine schedule of HierDiffuse (eq. 10-11).

        alpha_bar_t is a cosine of t, where Nichol and Dhariwal (2021) use its square.

        Args:
            num_steps: int. T. Defaults to `1000`.
            offset: float. s of eq. 11. Defaults to `0.008`.
            largest_beta: float. Upper bound of the betas; without it beta_T would be 1.
                Defaults to `0.999`.

        Returns:
            `Schedule`.
        """
        angles = np.pi / 2 * (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)
        alpha_bars = np.cos(angles) / np.cos(angles[0])
        return cls(np.minimum(1 - alpha_bars[1:] / alpha_bars[:-1], largest_beta))

    def q_sample(self, x_0, t, noise):
        """Perturbs samples: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (eq. 10).

        Args:
            x_0: float tensor of shape (..., d).
            t: int tensor of shape (...), or a scalar, in [0, T].
            noise: float tensor of shape (..., d). Standard normal noise.

        Returns:
            float tensor of shape (..., d).
        """
        signal, deviation = self._signal_and_deviation(t, x_0.dtype)
        return signal * x_0 + deviation * noise

    def noise_in(self, x, t, x_0):
        """The noise with which `q_sample` makes x from x_0.

        Args:
            x: float tensor of shape (..., d).
            t: int tensor of shape (...), or a scalar, in [1, T].
            x_0: float tensor of shape (..., d).

        Returns:
            float tensor of shape (..., d).
        """
        signal, deviation = self._signal_and_deviation(t, x.dtype)
        return (x - signal * x_0) / deviation

    def noise_to_signal(self, t, dtype):
        """sqrt((1 - alpha_bar_t) / alpha_bar_t): the noise in x_t in units of x_0.

        An error of the noise that is predicted in x_t, times this, is one of x_0 (eq. 10).

        Args:
            t: int tensor of shape (...), in [0, T].
            dtype: str. Dtype of the result.

        Returns:
            Tensor of shape (..., 1). 0 at step 0.
        """
        signal, deviation = self._signal_and_deviation(t, dtype)
        return deviation / signal

    def _signal_and_deviation(self, t, dtype):
        tables = np.sqrt(self.alpha_bars), np.sqrt(1 - self.alpha_bars)
        return (ops.take(ops.cast(table, dtype), t)[..., None] for table in tables)
