"""DreamRec's and DiffuRec's equations as printed, in numpy: one row and one step at a time.

The weights are those of an `OracleGenerator` or a `TargetReconstructor`. Behaviors are those of one
row, without padding and as they come; noise and lambda are given.
"""

import numpy as np
from literal import attend, dense, normalize
from literal_fusion import f_theta, sinusoids


def unit(x):
    """Mean 0 and variance 1, of each vector."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def alpha_bars(first, last, num_steps):
    """Of betas that grow evenly from `first` to `last`."""
    alpha_bar = [1.0]
    for t in range(num_steps):
        alpha_bar.append(alpha_bar[-1] * (1 - first - t * (last - first) / (num_steps - 1)))
    return alpha_bar


def perturb(alpha_bar, x_0, t, epsilon):
    return np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * epsilon


def denoise(alpha_bar, num_steps, predict, noise):
    """From pure noise down: x_s ~ q(x_s | x_t, x_0) with the predicted x_0 (Ho et al., eq. 6-7)."""
    first = len(alpha_bar) - 1
    steps = [round(first * k / num_steps) for k in range(num_steps, -1, -1)]
    x = noise[0]
    for k in range(num_steps):
        before, after = alpha_bar[steps[k]], alpha_bar[steps[k + 1]]
        alpha, x_0 = before / after, predict(x, steps[k])
        mean = np.sqrt(after) * (1 - alpha) * x_0 + np.sqrt(alpha) * (1 - after) * x
        deviation = np.sqrt((1 - alpha) * (1 - after) / (1 - before))
        x = mean / (1 - before) + deviation * noise[k + 1]
    return x


def encode(encoder, tokens):
    """Post-norm blocks over tokens (k, d), positions counted from the newest."""
    count, dim = tokens.shape
    tokens = tokens + encoder.positions.numpy()[encoder.length - count :]
    for block in encoder.blocks:
        kernels = [w.reshape(dim, dim) for w in block.attention.get_weights()[::2]]
        biases = [w.reshape(dim) for w in block.attention.get_weights()[1::2]]
        query, key, value = (tokens @ kernels[i] + biases[i] for i in range(3))
        attended = np.zeros_like(tokens)
        for i in range(count):
            attended[i] = attend(query[i : i + 1], key, value, encoder.num_heads)[0]
        tokens = normalize(block.attention_norm, tokens + attended @ kernels[3] + biases[3])
        hidden = np.maximum(dense(block.feed_forward, tokens), 0)
        tokens = normalize(
            block.feed_forward_norm, tokens + dense(block.feed_forward_output, hidden)
        )
    return tokens


# === DreamRec ===


def oracle_alpha_bars(generator):
    return alpha_bars(1e-4, 0.02, generator.num_train_steps)


def condition(generator, behaviors):
    """What behaviors say of the one that follows them."""
    if not len(behaviors):
        return generator.no_condition.numpy()
    return encode(generator.encoder, unit(behaviors.astype("float64")))[-1]


def oracle(generator, behaviors, noise):
    """Algorithm 2: noise (steps + 1, d)."""
    c, none = condition(generator, behaviors), generator.no_condition.numpy()
    w = generator.guidance_weight if len(behaviors) else 0

    def predict(x, t):
        guided = f_theta(generator.denoiser, x, t, c)
        return (1 + w) * guided - w * f_theta(generator.denoiser, x, t, none)

    return denoise(oracle_alpha_bars(generator), generator.num_steps, predict, noise)


def oracle_error(generator, behaviors, t, epsilon, kept):
    """Algorithm 1: the squared error for the newest behavior, averaged over d."""
    x_0 = unit(behaviors[-1])
    c = condition(generator, behaviors[:-1]) if kept else generator.no_condition.numpy()
    x = perturb(oracle_alpha_bars(generator), x_0, t, epsilon)
    return np.mean((f_theta(generator.denoiser, x, t, c) - x_0) ** 2)


# === DiffuRec ===


def target_alpha_bars(generator):
    steps = generator.num_train_steps
    return alpha_bars(0.01 + 0.1 / steps, min(0.01 + 20 / steps, 0.999), steps)


def approximate(generator, behaviors, lambdas, x, t):
    """The last output of the Transformer over z_i = e_i + lambda_i (x_t + d_t)."""
    z = unit(behaviors.astype("float64")) + lambdas * (x + sinusoids(t, len(x)))
    return encode(generator.encoder, z)[-1]


def target(generator, behaviors, lambdas, noise):
    """The reverse phase: noise (steps + 1, d)."""
    return denoise(
        target_alpha_bars(generator),
        generator.num_steps,
        lambda x, t: approximate(generator, behaviors, lambdas, x, t),
        noise,
    )


def target_errors(generator, rows, items, lambdas, t, epsilon):
    """The cross-entropy of each row; `None` without a past. `rows`: behaviors of each."""
    errors = []
    for row, behaviors in enumerate(rows):
        if len(behaviors) < 2:
            errors.append(None)
            continue
        x_0 = unit(behaviors[-1])
        x = perturb(target_alpha_bars(generator), x_0, t[row], epsilon[row])
        predicted = approximate(generator, behaviors[:-1], lambdas[row], x, t[row])
        products = {row: predicted @ x_0}
        for other, its in enumerate(rows):
            if len(its) and items[other] != items[row]:
                products[other] = predicted @ unit(its[-1])
        errors.append(np.log(sum(np.exp([*products.values()]))) - products[row])
    return errors
