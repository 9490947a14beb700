"""DiffuMIN's algorithms 1 and 2 as printed, in numpy: one row, one interest, one step at a time.

Beside them, HierDiffuse's eq. 8 over DiffuMIN's denoiser.

The weights are those of a `DiffusionGenerator`. Noise is given: for algorithm 1 (rows, c, d), for
algorithm 2 (T' + 1, rows, c, d), of the perturbation and then of each step.
"""

import functools

import numpy as np


def denoising_error(generator, r, o, t, noise):
    """Algorithm 1: the squared error of each interest, averaged over d: (rows, c)."""
    error = np.zeros(r.shape[:2])
    for row, i in np.ndindex(*r.shape[:2]):
        epsilon, step = noise[row, i], t[row, i]
        r_it = perturb(generator, r[row, i], step, epsilon)
        predicted = epsilon_theta(generator.denoiser, r_it, step, r[row], o[row], i)
        error[row, i] = np.mean((epsilon - predicted) ** 2)
    return error


def generate(generator, r, o, t, noise):
    """Algorithm 2: r*, (rows, c, d)."""
    augmented = np.zeros(r.shape)
    steps = timesteps(generator)
    for row, i in np.ndindex(*r.shape[:2]):
        if generator.start == "gaussian":
            x = noise[0, row, i]
        else:
            step = steps[0] if generator.start == "matched" else t[row, i]
            x = perturb(generator, r[row, i], step, noise[0, row, i])
        for k, step in enumerate(steps):
            predicted = epsilon_theta(generator.denoiser, x, step, r[row], o[row], i)
            following = steps[k + 1] if step > steps[-1] else 0
            z = noise[k + 1, row, i] if following > 0 else 0.0
            x = reverse_step(generator, x, predicted, step, following, z)
        augmented[row, i] = x
    return augmented


def x_0_errors(generator, denoiser, r, o, t, noise):
    """f(x_t, t) - x_0 of HierDiffuse's eq. 8, from the noise that a denoiser predicts in x_t."""
    _, _, alpha_bar = schedule(generator.num_train_steps)
    errors = np.zeros(r.shape)
    for row, i in np.ndindex(*r.shape[:2]):
        step = t[row, i]
        x = perturb(generator, r[row, i], step, noise[row, i])
        predicted = epsilon_theta(denoiser, x, step, r[row], o[row], i)
        x_0 = (x - np.sqrt(1 - alpha_bar[step]) * predicted) / np.sqrt(alpha_bar[step])
        errors[row, i] = x_0 - r[row, i]
    return errors


def convergence_errors(generator, r, o, t, noise, teacher_errors):
    """Both terms of HierDiffuse's eq. 8, in units of the noise at t: two of (rows, c).

    `teacher_errors` is the teacher's f(x_{t-delta}, t - delta) - x_0.
    """
    _, _, alpha_bar = schedule(generator.num_train_steps)
    unit = np.array([[(1 - alpha_bar[step]) / alpha_bar[step] for step in row] for row in t])
    errors = x_0_errors(generator, generator.denoiser, r, o, t, noise)
    return [np.mean(e**2, axis=-1) / unit for e in (errors, errors - teacher_errors)]


def timesteps(generator):
    steps = range(generator.num_steps, 0, -1)
    if generator.spacing == "consecutive" and generator.sampler != "tcc":
        return list(steps)
    return [round(generator.start_step * k / generator.num_steps) for k in steps]


@functools.cache
def schedule(num_train_steps):
    """beta_t, alpha_t and alpha_bar_t for each t."""
    alpha, beta, alpha_bar = {}, {}, {0: 1.0}
    for t in range(1, num_train_steps + 1):
        beta[t] = 0.0001 + (0.02 - 0.0001) * (t - 1) / (num_train_steps - 1)
        alpha[t] = 1 - beta[t]
        alpha_bar[t] = alpha_bar[t - 1] * alpha[t]
    return beta, alpha, alpha_bar


def perturb(generator, r_i, t, epsilon):
    """Eq. 10."""
    _, _, alpha_bar = schedule(generator.num_train_steps)
    return np.sqrt(alpha_bar[t]) * r_i + np.sqrt(1 - alpha_bar[t]) * epsilon


def reverse_step(generator, x, predicted, t, following, z):
    """From t to `following`: eq. 13; Song et al. (2021), eq. 12 with sigma = 0; or (2023)."""
    beta, alpha, alpha_bar = schedule(generator.num_train_steps)
    if generator.sampler != "ddpm":
        x_0 = (x - np.sqrt(1 - alpha_bar[t]) * predicted) / np.sqrt(alpha_bar[t])
        return perturb(generator, x_0, following, predicted if generator.sampler == "ddim" else z)
    alpha_t, beta_t = alpha[t], beta[t]
    if generator.spacing == "strided":
        alpha_t = np.prod([alpha[step] for step in range(following + 1, t + 1)])
        beta_t = 1 - alpha_t
    variance = beta_t
    if generator.sigma == "posterior":
        variance = beta_t * (1 - alpha_bar[following]) / (1 - alpha_bar[t])
    mean = (x - beta_t / np.sqrt(1 - alpha_bar[t]) * predicted) / np.sqrt(alpha_t)
    return mean + np.sqrt(variance) * z


def epsilon_theta(denoiser, r_it, t, r, o, i):
    """The noise in r_{i,t}, guided by g_1, which is r without r_i, and by g_2 = o_i."""
    tokens = np.array([*r[:i], r_it, *r[i + 1 :]] if denoiser.context_guidance else [r_it])
    noised = i if denoiser.context_guidance else 0
    tokens = tokens + time_embedding(denoiser, t)
    for block in denoiser.blocks:
        tokens = normalize(block.attention_norm, tokens + self_attention(block, tokens))
        if denoiser.channel_guidance:
            tokens = normalize(block.guide_norm, tokens + cross_attention(block, tokens, o[i]))
        hidden = np.maximum(dense(block.ffn_in, tokens), 0)
        tokens = normalize(block.ffn_norm, tokens + dense(block.ffn_out, hidden))
    return dense(denoiser.noise, tokens[noised])


def time_embedding(denoiser, t):
    width = denoiser.noise.units
    angles = [t / 10_000 ** (k / width) for k in range(0, width, 2)]
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)])[:width]
    hidden = dense(denoiser.time_layers[0], sinusoids)
    return dense(denoiser.time_layers[1], hidden / (1 + np.exp(-hidden)))


def self_attention(block, tokens):
    """Eq. 14-15."""
    key, value = np.split(dense(block.key_value, tokens), 2, axis=1)
    return dense(block.out, attend(dense(block.query, tokens), key, value, block.num_heads))


def cross_attention(block, tokens, o_i):
    """Eq. 16-17. The block has no W^Q and W^K: with a single key, any will do."""
    width = len(o_i)
    w_query, w_key = np.random.default_rng(0).normal(size=(2, width, width))
    g_2 = o_i[None]
    attended = attend(tokens @ w_query, g_2 @ w_key, dense(block.guide_value, g_2), block.num_heads)
    return dense(block.guide_out, attended)


def attend(query, key, value, num_heads):
    """softmax(Q K^T / sqrt(d)) V in each head."""
    width = query.shape[1] // num_heads
    attended = np.zeros(query.shape)
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(width))
        weights /= weights.sum(axis=1, keepdims=True)
        attended[:, part] = weights @ value[:, part]
    return attended


def dense(layer, x):
    return x @ layer.kernel.numpy().astype("float64") + layer.bias.numpy()


def normalize(layer, x):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * layer.gamma.numpy() + layer.beta.numpy()
