"""Reverse processes as chains over any steps of a schedule: DDPM, DDIM, consistency; their loop."""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """x <- signal[i] x + prediction[i] f(x, t[i]) + deviation[i] z, for i = 0..S-1.

    Every sampler is of this form, with a network f that predicts the noise or, after
    `predicting_x0`, the sample. All arrays are numpy (S,), in the order of sampling.

    Attributes:
        timesteps: int64, t of each step, decreasing.
        signal: float64.
        prediction: float64.
        deviation: float64; 0 in the last step.
    """

    timesteps: np.ndarray
    signal: np.ndarray
    prediction: np.ndarray
    deviation: np.ndarray

    def __len__(self):
        return len(self.timesteps)

    def __getitem__(self, steps):
        """The chain of a slice of its steps."""
        names = (field.name for field in dataclasses.fields(self))
        return Chain(**{name: getattr(self, name)[steps] for name in names})

    def predicting_x0(self, schedule):
        """The same chain for an f that predicts x_0, from which the noise follows (eq. 10)."""
        alpha_bar = schedule.alpha_bars[self.timesteps]
        deviation = np.sqrt(1 - alpha_bar)
        return dataclasses.replace(
            self,
            signal=self.signal + self.prediction / deviation,
            prediction=-self.prediction * np.sqrt(alpha_bar) / deviation,
        )


def consecutive(num_steps):
    """Timesteps T', T' - 1, .., 1 (DiffuMIN, algorithm 2)."""
    return np.arange(num_steps, 0, -1)


def strided(num_steps, first):
    """`num_steps` timesteps, evenly from `first` down; the one after the last would be 0."""
    return np.round(first * np.arange(num_steps, 0, -1) / num_steps).astype("int64")


def ddpm(schedule, timesteps, sigma="beta"):
    """Ancestral sampling (DiffuMIN, eq. 12-13): on steps left out, with their betas compounded.

    Args:
        schedule: `Schedule`.
        timesteps: Decreasing ints in [1, T].
        sigma: "beta": sigma_t^2 = beta_t, as DiffuMIN; "posterior": the variance of
            q(x_{t-1} | x_t, x_0), smaller (both are in Ho et al., 2020, section 3.2).

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
    """Deterministic sampling (Song et al., 2021, eq. 12 with sigma = 0); arguments as `ddpm`."""
    alpha_bar, alpha_bar_next = _alpha_bars(schedule, timesteps)
    signal = np.sqrt(alpha_bar_next / alpha_bar)
    return Chain(
        np.asarray(timesteps),
        signal=signal,
        prediction=np.sqrt(1 - alpha_bar_next) - signal * np.sqrt(1 - alpha_bar),
        deviation=np.zeros(len(timesteps)),
    )


def consistency(schedule, timesteps):
    """From any x_t to x_0 in one evaluation (HierDiffuse, eq. 7); f predicts x_0.

    With more timesteps, x_0 is perturbed anew to each and estimated again (Song et al., 2023,
    algorithm 1). Arguments as `ddpm`.
    """
    _, alpha_bar_next = _alpha_bars(schedule, timesteps)
    return Chain(
        np.asarray(timesteps),
        signal=np.zeros(len(timesteps)),
        prediction=np.sqrt(alpha_bar_next),
        deviation=np.sqrt(1 - alpha_bar_next),
    )


def _alpha_bars(schedule, timesteps):
    """alpha_bar at each timestep and at the one after it, 0 at the end."""
    steps = np.append(timesteps, 0)
    if len(steps) < 2 or (np.diff(steps) >= 0).any() or steps[0] > schedule.num_steps:
        raise ValueError(
            f"`timesteps` must decrease within [1, {schedule.num_steps}]. Received: {timesteps}"
        )
    return schedule.alpha_bars[steps[:-1]], schedule.alpha_bars[steps[1:]]


def sample(chain, denoise, x, noise):
    """Runs a chain from `x` to its end.

    Args:
        chain: `Chain`.
        denoise: Called with x and the number of the step, an int scalar; returns what the chain's f
            predicts, shaped as x.
        x: float (..., d), at the chain's first timestep.
        noise: float (S, ...): z of each step, broadcast to x.

    Returns:
        As `x`, at t = 0.
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
    """As `sample`, with the gradient of the last evaluation alone.

    That is how a generator is trained that no paper trains through its chain, at a fraction of the
    cost. The last step must add no noise.
    """
    last = len(chain) - 1
    if last > 0:
        x = tf.stop_gradient(sample(chain[:last], denoise, x, noise))
    return chain.signal[last] * x + chain.prediction[last] * denoise(x, last)
