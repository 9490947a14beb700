"""HierDiffuse's equations as printed, in numpy: one row, one condition, one step at a time.

The weights are those of a `DiffusionFusion`. Noise is given.
"""

import functools

import numpy as np
from literal import dense, normalize, self_attention

from tfrec_diffusion.diffusion.denoisers import MLPDenoiser


@functools.cache
def alpha_bars(num_steps):
    """Eq. 10-11, beta at most 0.999."""
    s = 0.008
    printed = [
        np.cos(np.pi / 2 * (t / num_steps + s) / (1 + s)) / np.cos(np.pi / 2 * s / (1 + s))
        for t in range(num_steps + 1)
    ]
    alpha_bar = [1.0]
    for t in range(1, num_steps + 1):
        beta = min(1 - printed[t] / printed[t - 1], 0.999)
        alpha_bar.append(alpha_bar[-1] * (1 - beta))
    return alpha_bar


def perturb(fusion, x_0, t, epsilon):
    """What the forward process of eq. 2 makes of x_0 in t steps."""
    alpha_bar = alpha_bars(fusion.num_train_steps)[t]
    return np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * epsilon


def fuse(fusion, interest, conditions, weights, noise):
    """Eq. 1, with the guidance of eq. 5-6, by the fusion's own sampler."""
    alpha_bar = alpha_bars(fusion.num_train_steps)
    first, count = fusion.start_step or fusion.num_train_steps, fusion.num_steps
    steps = [round(first * k / count) for k in range(count, 0, -1)]
    fused = np.zeros(interest.shape)
    for row in range(len(interest)):
        x = perturb(fusion, interest[row], steps[0], noise[0, row])
        for k, t in enumerate(steps):
            following = steps[k + 1] if k + 1 < count else 0
            x_0 = guided(fusion, x, t, conditions[row], weights[row])
            epsilon = (x - np.sqrt(alpha_bar[t]) * x_0) / np.sqrt(1 - alpha_bar[t])
            if fusion.sampler == "tcc":
                x = perturb(fusion, x_0, following, noise[k + 1, row])
            elif fusion.sampler == "ddim":
                x = perturb(fusion, x_0, following, epsilon)
            else:
                alpha = alpha_bar[t] / alpha_bar[following]
                x = (x - (1 - alpha) / np.sqrt(1 - alpha_bar[t]) * epsilon) / np.sqrt(alpha)
                x += np.sqrt(1 - alpha) * noise[k + 1, row] * (following > 0)
        fused[row] = x
    return fused


def guided(fusion, x, t, conditions, weights):
    """Eq. 6 (eq. 5 where there is one condition), on predictions of x_0."""
    mixed = (1 - sum(weights)) * f_theta(fusion.denoiser, x, t, fusion.no_condition.numpy())
    for y, omega in zip(conditions, weights, strict=True):
        mixed += omega * f_theta(fusion.denoiser, x, t, y)
    return mixed


def states(fusion, x_0, conditions, t, span, noise):
    """x_t and x_{t - delta} of eq. 8, both (rows, conditions, d)."""
    alpha_bar = alpha_bars(fusion.num_train_steps)
    late, early = np.zeros((2, *conditions.shape))
    for row, i in np.ndindex(*conditions.shape[:2]):
        x = perturb(fusion, x_0[row], t[row], noise[row])
        origin, epsilon = x_0[row], noise[row]
        if fusion.trajectory_state == "ddim":
            origin = f_theta(fusion.denoiser, x, t[row], conditions[row, i])
            signal, deviation = np.sqrt(alpha_bar[t[row]]), np.sqrt(1 - alpha_bar[t[row]])
            epsilon = (x - signal * origin) / deviation
        late[row, i] = x
        early[row, i] = perturb(fusion, origin, t[row] - span[row], epsilon)
    return late, early


def errors(fusion, x_0, conditions, t, span, late, early):
    """Both terms of eq. 8 for each condition, averaged over d: (rows, conditions) each."""
    reconstruction, trajectory = np.zeros((2, *conditions.shape[:2]))
    for row, i in np.ndindex(*conditions.shape[:2]):
        y, step = conditions[row, i], t[row]
        estimate = f_theta(fusion.denoiser, late[row, i], step, y)
        other = f_theta(fusion.denoiser, early[row, i], step - span[row], y)
        reconstruction[row, i] = np.mean((estimate - x_0[row]) ** 2)
        trajectory[row, i] = np.mean((estimate - other) ** 2)
    return reconstruction, trajectory


def f_theta(denoiser, x_t, t, y):
    """x_0 as predicted from x_t under the condition y."""
    time = sinusoids(t, len(x_t))
    if isinstance(denoiser, MLPDenoiser):
        parts = (denoiser.of_x, denoiser.of_time, denoiser.of_condition)
        kernel = np.concatenate([part.kernel.numpy() for part in parts])
        hidden = silu(np.concatenate([x_t, time, y]) @ kernel + denoiser.of_x.bias.numpy())
        for layer in denoiser.hidden:
            hidden = silu(dense(layer, hidden))
        return dense(denoiser.x_0, hidden)
    tokens = np.array([x_t, y]) + dense(denoiser.of_time, time)
    for block in denoiser.blocks:
        tokens = normalize(block.attention_norm, tokens + self_attention(block, tokens))
        hidden = np.maximum(dense(block.ffn_in, tokens), 0)
        tokens = normalize(block.ffn_norm, tokens + dense(block.ffn_out, hidden))
    return dense(denoiser.x_0, tokens[0])


def sinusoids(t, width):
    angles = [t / 10_000 ** (k / width) for k in range(0, width, 2)]
    return np.concatenate([np.sin(angles), np.cos(angles)])[:width]


def silu(x):
    return x / (1 + np.exp(-x))
