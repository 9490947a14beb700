"""Sampling by DDPM (DiffuMIN, eq. 12-13), DDIM or consistency (HierDiffuse, eq. 7).

All three are a `Chain` of coefficients over some steps of a schedule, which `sample` runs.
"""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Coefficients of x <- signal[i] x + prediction[i] f(x, t[i]) + deviation[i] z, i = 0..S-1.

    Every sampler has this form. f is a denoiser, which predicts the noise or, for
    `predicting_x0` and `consistency`, x_0. z is standard normal noise.

    Args:
        timesteps: int64 array of shape (S,). The steps t in the order of sampling, decreasing.
        signal: float64 array of shape (S,).
        prediction: float64 array of shape (S,).
        deviation: float64 array of shape (S,). 0 in the last step.
    """

    timesteps: np.ndarray
    signal: np.ndarray
    prediction: np.ndarray
    deviation: np.ndarray

    def __len__(self):
        return len(self.timesteps)

    def __getitem__(self, steps):
        """Returns the chain of a slice of the steps."""
        names = (field.name for field in dataclasses.fields(self))
        return Chain(**{name: getattr(self, name)[steps] for name in names})

    def predicting_x0(self, schedule):
        """The same chain for a denoiser that predicts x_0, from which the noise follows (eq. 10).

        Args:
            schedule: `Schedule`. The one that the chain was made with.

        Returns:
            `Chain`.
        """
        alpha_bar = schedule.alpha_bars[self.timesteps]
        deviation = np.sqrt(1 - alpha_bar)
        return dataclasses.replace(
            self,
            signal=self.signal + self.prediction / deviation,
            prediction=-self.prediction * np.sqrt(alpha_bar) / deviation,
        )

    def predicting_noise(self, schedule):
        """The same chain for a denoiser that predicts the noise, from which x_0 follows (eq. 10).

        Args:
            schedule: `Schedule`. The one that the chain was made with.

        Returns:
            `Chain`.
        """
        alpha_bar = schedule.alpha_bars[self.timesteps]
        return dataclasses.replace(
            self,
            signal=self.signal + self.prediction / np.sqrt(alpha_bar),
            prediction=-self.prediction * np.sqrt((1 - alpha_bar) / alpha_bar),
        )


def consecutive(num_steps):
    """The timesteps T', T' - 1, .., 1 (DiffuMIN, algorithm 2).

    Args:
        num_steps: int. T'.

    Returns:
        int array of shape (num_steps,).
    """
    return np.arange(num_steps, 0, -1)


def strided(num_steps, first):
    """Timesteps at even distances from `first` down. The one after the last would be 0.

    Args:
        num_steps: int. Number of timesteps, at most `first`.
        first: int. The first and largest timestep.

    Returns:
        int64 array of shape (num_steps,).
    """
    return np.round(first * np.arange(num_steps, 0, -1) / num_steps).astype("int64")


def ddpm(schedule, timesteps, sigma="beta"):
    """Ancestral sampling (DiffuMIN, eq. 12-13).

    Where the timesteps leave out steps of the schedule, the betas of these are compounded.

    Args:
        schedule: `Schedule`.
        timesteps: sequence of decreasing ints in [1, T].
        sigma: str. Variance of the noise that each step adds, one of the two of Ho et al. (2020),
            section 3.2: `"beta"` is beta_t, as in DiffuMIN; `"posterior"` is the smaller variance
            of q(x_{t-1} | x_t, x_0). Defaults to `"beta"`.

    Returns:
        `Chain`.
    """
    if sigma not in ("beta", "posterior"):
        raise ValueError(f'`sigma` must be "beta" or "posterior". Received: sigma={sigma!r}')
    alpha_bar, alpha_bar_next = _alpha_bars(schedule, timesteps)
    alpha = alpha_bar / alpha_bar_next
    beta = 1 - alpha
    variance = beta if sigma == "beta" else beta * (1 - alpha_bar_next) / (1 - alpha_bar)
    return Chain(
        np.asarray(timesteps),
        signal=1 / np.sqrt(alpha),
        prediction=-beta / np.sqrt(alpha * (1 - alpha_bar)),
        deviation=np.append(np.sqrt(variance)[:-1], 0.0),
    )


def ddim(schedule, timesteps):
    """Deterministic sampling (Song et al., 2021, eq. 12 with sigma = 0).

    Args:
        schedule: `Schedule`.
        timesteps: sequence of decreasing ints in [1, T].

    Returns:
        `Chain`.
    """
    alpha_bar, alpha_bar_next = _alpha_bars(schedule, timesteps)
    signal = np.sqrt(alpha_bar_next / alpha_bar)
    return Chain(
        np.asarray(timesteps),
        signal=signal,
        prediction=np.sqrt(1 - alpha_bar_next) - signal * np.sqrt(1 - alpha_bar),
        deviation=np.zeros(len(timesteps)),
    )


def consistency(schedule, timesteps):
    """From any x_t to x_0 in one evaluation of a denoiser that predicts x_0 (HierDiffuse, eq. 7).

    With more than one timestep, the estimate of x_0 is perturbed to the next timestep with new
    noise and estimated again (Song et al., 2023, algorithm 1).

    Args:
        schedule: `Schedule`.
        timesteps: sequence of decreasing ints in [1, T].

    Returns:
        `Chain`.
    """
    _, alpha_bar_next = _alpha_bars(schedule, timesteps)
    return Chain(
        np.asarray(timesteps),
        signal=np.zeros(len(timesteps)),
        prediction=np.sqrt(alpha_bar_next),
        deviation=np.sqrt(1 - alpha_bar_next),
    )


def _alpha_bars(schedule, timesteps):
    """alpha_bar at each timestep, and at the one after it, which is 0 for the last."""
    steps = np.append(timesteps, 0)
    if len(steps) < 2 or (np.diff(steps) >= 0).any() or steps[0] > schedule.num_steps:
        raise ValueError(
            f"`timesteps` must decrease within [1, {schedule.num_steps}]. Received: {timesteps}"
        )
    return schedule.alpha_bars[steps[:-1]], schedule.alpha_bars[steps[1:]]


def sample(chain, denoise, x, noise):
    """Runs a chain from `x` to its end.

    Args:
        chain: `Chain` of S steps.
        denoise: function. Maps x and the number i of the step in the chain, an int scalar, to the
            prediction of the denoiser, a tensor with the shape of x.
        x: float tensor of shape (..., d). The sample at the first timestep of the chain.
        noise: float tensor of shape (S, ...). z of each step, broadcast to `x`.

    Returns:
        float tensor of shape (..., d). The sample at t = 0.
    """
    signal, prediction, deviation = (
        tf.constant(table, x.dtype) for table in (chain.signal, chain.prediction, chain.deviation)
    )

    def step(i, x):
        return i + 1, signal[i] * x + prediction[i] * denoise(x, i) + deviation[i] * noise[i]

    if len(chain) == 1:
        return step(0, x)[1]
    _, x = tf.while_loop(
        lambda i, _: i < len(chain), step, (tf.constant(0), x), maximum_iterations=len(chain)
    )
    return x


def sample_with_last_gradient(chain, denoise, x, noise):
    """As `sample`, but gradients flow through the last evaluation only.

    This costs a fraction of the gradient through all steps. It serves generators whose papers do
    not train them through their chain. The last step of the chain must add no noise.

    Args:
        chain: `Chain` of S steps.
        denoise: function. As in `sample`.
        x: float tensor of shape (..., d). As in `sample`.
        noise: float tensor of shape (S, ...). As in `sample`; the last is unused.

    Returns:
        float tensor of shape (..., d). As in `sample`.
    """
    last = len(chain) - 1
    if last > 0:
        x = tf.stop_gradient(sample(chain[:last], denoise, x, noise))
    return chain.signal[last] * x + chain.prediction[last] * denoise(x, last)
