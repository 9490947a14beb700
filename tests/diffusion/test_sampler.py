import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.diffusion.sampler import (
    consecutive,
    consistency,
    ddim,
    ddpm,
    sample,
    sample_with_last_gradient,
    strided,
)
from tfrec_diffusion.diffusion.schedule import Schedule

SCHEDULE = Schedule.linear()
BETA, ALPHA_BAR = SCHEDULE.betas, SCHEDULE.alpha_bars

CHAINS = {
    "ddpm": ddpm(SCHEDULE, consecutive(20)),
    "ddpm, posterior": ddpm(SCHEDULE, consecutive(20), "posterior"),
    "ddpm, strided": ddpm(SCHEDULE, strided(7, 300)),
    "ddpm, strided, posterior": ddpm(SCHEDULE, strided(7, 1000), "posterior"),
    "ddim": ddim(SCHEDULE, consecutive(20)),
    "ddim, strided": ddim(SCHEDULE, strided(7, 1000)),
    "ddim, one step": ddim(SCHEDULE, [500]),
}
each_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)


def only(prefix, suffix=""):
    chains = {k: v for k, v in CHAINS.items() if k.startswith(prefix) and k.endswith(suffix)}
    return pytest.mark.parametrize("chain", chains.values(), ids=chains)


def alpha_bars(chain):
    """At each timestep, and at the one after it."""
    return ALPHA_BAR[chain.timesteps], ALPHA_BAR[np.append(chain.timesteps[1:], 0)]


def perfect_denoiser(chain, x_0):
    """Knows x_0: what noise makes it x?"""
    alpha_bar = tf.constant(ALPHA_BAR[chain.timesteps], x_0.dtype)

    def denoise(x, step):
        return (x - tf.sqrt(alpha_bar[step]) * x_0) / tf.sqrt(1 - alpha_bar[step])

    return denoise


# === Timesteps ===


def test_timesteps_by_hand():
    np.testing.assert_array_equal(consecutive(4), [4, 3, 2, 1])
    np.testing.assert_array_equal(strided(4, 1000), [1000, 750, 500, 250])
    np.testing.assert_array_equal(strided(3, 10), [10, 7, 3])
    np.testing.assert_array_equal(strided(1, 1000), [1000])


def test_strided_timesteps_decrease_from_the_first_to_at_least_1():
    for first in range(1, 60):
        for num_steps in range(1, first + 1):
            steps = strided(num_steps, first)
            assert len(steps) == num_steps and steps[0] == first and steps[-1] >= 1
            assert (np.diff(steps) < 0).all()


def test_stride_1_is_consecutive():
    for make in (ddpm, ddim):
        chain, expected = make(SCHEDULE, strided(20, 20)), make(SCHEDULE, consecutive(20))
        for field in dataclasses.fields(chain):
            actual = getattr(chain, field.name)
            np.testing.assert_array_equal(actual, getattr(expected, field.name))


# === Coefficients ===


def test_consecutive_ddpm_is_equation_13():
    chain = ddpm(SCHEDULE, consecutive(20))
    assert len(chain) == 20
    for i, t in enumerate(range(20, 0, -1)):
        root = np.sqrt(1 - BETA[t])
        assert chain.timesteps[i] == t
        assert chain.signal[i] == pytest.approx(1 / root)
        assert chain.prediction[i] == pytest.approx(-BETA[t] / np.sqrt(1 - ALPHA_BAR[t]) / root)
        assert chain.deviation[i] == pytest.approx(np.sqrt(BETA[t]) if t > 1 else 0)


def test_posterior_variance():
    chain, larger = (ddpm(SCHEDULE, consecutive(20), sigma) for sigma in ("posterior", "beta"))
    for i, t in enumerate(range(20, 1, -1)):
        variance = BETA[t] * (1 - ALPHA_BAR[t - 1]) / (1 - ALPHA_BAR[t])
        assert chain.deviation[i] == pytest.approx(np.sqrt(variance))
    np.testing.assert_array_equal(chain.signal, larger.signal)
    np.testing.assert_array_equal(chain.prediction, larger.prediction)
    assert (chain.deviation[:-1] < larger.deviation[:-1]).all()


@only("ddpm")
def test_ddpm_s_mean_is_that_of_the_posterior_given_the_predicted_x_0(chain):
    """Ho et al. (2020), eq. 7, on the steps of the chain."""
    alpha_bar, following = alpha_bars(chain)
    alpha = alpha_bar / following
    x, epsilon = 1.7, -0.6
    x_0 = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
    mean = np.sqrt(following) * (1 - alpha) * x_0 + np.sqrt(alpha) * (1 - following) * x
    expected = mean / (1 - alpha_bar)
    np.testing.assert_allclose(chain.signal * x + chain.prediction * epsilon, expected, rtol=1e-9)


@only("ddpm", "posterior")
def test_posterior_variance_is_exact_where_all_data_are_one_point(chain):
    """The perfect denoiser's x_t then has the variance of q(x_t | x_0) all along the chain."""
    alpha_bar, following = alpha_bars(chain)
    slope = chain.signal + chain.prediction / np.sqrt(1 - alpha_bar)
    variance = slope**2 * (1 - alpha_bar) + chain.deviation**2
    np.testing.assert_allclose(variance, 1 - following, atol=1e-12)


@pytest.mark.parametrize("timesteps", [consecutive(20), strided(7, 1000)], ids=len)
def test_beta_variance_is_exact_where_the_data_are_standard_normal(timesteps):
    """Then epsilon(x, t) = sqrt(1 - alpha_bar_t) x, and x_t is standard normal at every t."""
    chain = ddpm(SCHEDULE, timesteps)
    slope = chain.signal + chain.prediction * np.sqrt(1 - ALPHA_BAR[timesteps])
    np.testing.assert_allclose((slope**2 + chain.deviation**2)[:-1], 1)


@only("ddim")
def test_ddim_predicts_x_0_and_adds_the_same_noise_again(chain):
    alpha_bar, following = alpha_bars(chain)
    x, epsilon = 1.7, -0.6
    x_0 = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
    expected = np.sqrt(following) * x_0 + np.sqrt(1 - following) * epsilon
    np.testing.assert_allclose(chain.signal * x + chain.prediction * epsilon, expected, rtol=1e-9)
    assert (chain.deviation == 0).all()


@each_chain
@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine])
def test_a_chain_of_estimates_of_x_0_is_that_of_their_noise(chain, make):
    schedule, x, x_0 = make(), 1.7, -0.6
    make_chain = ddim if (chain.deviation == 0).all() else ddpm
    chain = make_chain(schedule, chain.timesteps)
    alpha_bar = schedule.alpha_bars[chain.timesteps]
    epsilon = (x - np.sqrt(alpha_bar) * x_0) / np.sqrt(1 - alpha_bar)
    other = chain.predicting_x0(schedule)
    actual, expected = other.signal * x + other.prediction * x_0, chain.signal * x
    np.testing.assert_allclose(actual, expected + chain.prediction * epsilon, atol=1e-9)
    np.testing.assert_array_equal(other.deviation, chain.deviation)
    np.testing.assert_array_equal(other.timesteps, chain.timesteps)
    assert other.signal[-1] == pytest.approx(0, abs=1e-9)  # what is left is the estimate
    assert other.prediction[-1] == pytest.approx(1)


def test_a_chain_for_a_denoiser_that_predicts_the_noise():
    """It moves any x as its original does with the x_0 that follows from the noise."""
    chain = consistency(SCHEDULE, [1000, 500, 1])
    other = chain.predicting_noise(SCHEDULE)
    x, epsilon = np.random.default_rng(0).normal(size=(2, len(chain)))
    alpha_bar = SCHEDULE.alpha_bars[chain.timesteps]
    x_0 = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
    actual = other.signal * x + other.prediction * epsilon
    np.testing.assert_allclose(actual, chain.signal * x + chain.prediction * x_0, rtol=1e-9)
    np.testing.assert_array_equal(other.deviation, chain.deviation)
    np.testing.assert_array_equal(other.timesteps, chain.timesteps)


def test_consistency_perturbs_each_estimate_anew():
    chain = consistency(SCHEDULE, [1000, 500])
    root = np.sqrt([ALPHA_BAR[500], 1 - ALPHA_BAR[500]])
    np.testing.assert_array_equal(chain.signal, [0, 0])
    np.testing.assert_allclose(chain.prediction, [root[0], 1])
    np.testing.assert_allclose(chain.deviation, [root[1], 0])


# === Sampling ===


@each_chain
def test_a_perfect_denoiser_leads_to_x_0(chain):
    """From any x: the last step returns the predicted x_0."""
    x_0, x = np.random.default_rng(0).normal(size=(2, 5, 3))
    noise = np.random.default_rng(1).normal(size=(len(chain), 5, 3))
    x_0 = tf.constant(x_0)
    result = sample(chain, perfect_denoiser(chain, x_0), tf.constant(x), noise)
    np.testing.assert_allclose(result, x_0, atol=1e-9)


@each_chain
def test_the_last_step_adds_no_noise(chain):
    x = tf.ones([4, 2])
    noise = np.zeros((len(chain), 4, 2), "f")
    expected = sample(chain, lambda x, _: 0.5 * x, x, noise)
    noise[-1] = 1e6
    np.testing.assert_array_equal(sample(chain, lambda x, _: 0.5 * x, x, noise), expected)


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "XLA"])
def test_sample_is_a_loop_over_the_chain(jit_compile):
    chain = CHAINS["ddpm, strided"]
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(4, 2)), rng.normal(size=len(chain))
    noise = tf.constant(rng.normal(size=(len(chain), 1, 2)))  # shared by all rows

    def run(x, weights):
        with tf.GradientTape() as tape:
            tape.watch([x, weights])
            outputs = sample(chain, lambda x, step: weights[step] * x, x, noise)
        return outputs, *tape.gradient(outputs, [x, weights])

    expected, slopes = x, []
    for i in range(len(chain)):
        slopes.append(chain.signal[i] + chain.prediction[i] * weights[i])
        expected = slopes[i] * expected + chain.deviation[i] * noise[i].numpy()

    if jit_compile is not None:
        signature = [tf.TensorSpec([None, 2], "float64"), tf.TensorSpec([7], "float64")]
        run = tf.function(run, input_signature=signature, jit_compile=jit_compile)
    outputs, gradient, weights_gradient = run(tf.constant(x), tf.constant(weights))
    np.testing.assert_allclose(outputs, expected)
    np.testing.assert_allclose(gradient, np.full((4, 2), np.prod(slopes)))
    assert np.isfinite(weights_gradient).all() and (weights_gradient.numpy() != 0).all()


def test_a_slice_of_a_chain_goes_on_where_the_other_stopped():
    chain = ddpm(SCHEDULE, strided(5, 1000), "posterior")
    rng = np.random.default_rng(0)
    noise = tf.constant(rng.normal(size=(5, 2, 3)), tf.float32)
    start = tf.constant(rng.normal(size=(2, 3)), tf.float32)

    def denoise(x, step):
        return 0.5 * tf.sin(x)

    assert (len(chain[:3]), len(chain[3:])) == (3, 2)
    np.testing.assert_array_equal(chain[1:4].timesteps, [800, 600, 400])
    middle = sample(chain[:3], denoise, start, noise[:3])
    outputs = sample(chain[3:], denoise, middle, noise[3:])
    np.testing.assert_allclose(outputs, sample(chain, denoise, start, noise), rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_last_evaluation_alone_has_a_gradient(num_steps):
    chain = ddpm(SCHEDULE, strided(num_steps, 1000), "posterior")
    rng = np.random.default_rng(0)
    noise = tf.constant(rng.normal(size=(num_steps, 2, 3)), tf.float32)
    start = tf.Variable(rng.normal(size=(2, 3)), dtype=tf.float32)
    scale = tf.Variable(0.3)
    seen = []

    def denoise(x, step):
        seen.append(x)
        return scale * x

    with tf.GradientTape() as tape:
        x = sample_with_last_gradient(chain, denoise, start, noise)
        loss = tf.reduce_sum(x)
    of_scale, of_start = tape.gradient(loss, [scale, start])
    np.testing.assert_allclose(x, sample(chain, denoise, start, noise), rtol=1e-5)
    last_x = seen[num_steps - 1]
    np.testing.assert_allclose(of_scale, chain.prediction[-1] * np.sum(last_x), rtol=1e-5)
    if num_steps == 1:
        expected = chain.signal[0] + 0.3 * chain.prediction[0]
        np.testing.assert_allclose(of_start, np.full((2, 3), expected), rtol=1e-4)
    else:
        assert of_start is None


# === Arguments ===


@pytest.mark.parametrize("make", [ddpm, ddim, consistency])
@pytest.mark.parametrize(
    "timesteps", [[], [0], [2, 1, 0], [1, 2], [3, 3, 1], [1001, 1], [5, -1], strided(5, 3)], ids=str
)
def test_wrong_timesteps(make, timesteps):
    with pytest.raises(ValueError, match=r"`timesteps` must decrease within \[1, 1000\]. Received"):
        make(SCHEDULE, timesteps)


def test_wrong_sigma():
    message = '`sigma` must be "beta" or "posterior". Received: sigma=\'small\''
    with pytest.raises(ValueError, match=message):
        ddpm(SCHEDULE, consecutive(3), "small")
