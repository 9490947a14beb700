import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.diffusion.schedule import Schedule


@pytest.fixture
def schedule():
    return Schedule.linear()


def test_linear_tables_follow_the_recurrence(schedule):
    alpha_bar = 1.0
    assert schedule.num_steps == 1000
    assert schedule.betas[0] == 0 and schedule.alpha_bars[0] == 1
    for t in range(1, 1001):
        beta = 0.0001 + 0.0199 * (t - 1) / 999
        alpha_bar *= 1 - beta
        assert schedule.betas[t] == pytest.approx(beta, rel=1e-12)
        assert schedule.alpha_bars[t] == pytest.approx(alpha_bar, rel=1e-12)


def test_constants_of_ddpm(schedule):
    assert schedule.betas[[1, 1000]] == pytest.approx([1e-4, 0.02])
    assert schedule.alpha_bars[1000] == pytest.approx(4.0358e-5, rel=1e-4)
    assert np.sqrt(1 - schedule.alpha_bars[20]) == pytest.approx(0.0760, abs=1e-4)


def test_cosine_is_equation_10_until_beta_would_be_1():
    schedule = Schedule.cosine()
    angle = np.pi / 2 * (np.arange(1001) / 1000 + 0.008) / 1.008
    printed = np.cos(angle) / np.cos(np.pi / 2 * 0.008 / 1.008)
    np.testing.assert_allclose(schedule.alpha_bars[:-1], printed[:-1], rtol=1e-9)
    np.testing.assert_allclose(schedule.betas[1:-1], 1 - printed[1:-1] / printed[:-2], rtol=1e-9)
    assert schedule.num_steps == 1000 and schedule.betas[1000] == 0.999


def test_cosine_ends():
    schedule = Schedule.cosine()
    assert schedule.alpha_bars[0] == 1
    assert 0 < schedule.alpha_bars[1000] < 1e-5
    assert (np.diff(schedule.alpha_bars) < 0).all()
    # Half-way between: cos(pi / 4 * 1.016 / 1.008), and not its square.
    assert schedule.alpha_bars[500] == pytest.approx(0.7027, abs=1e-3)


def test_cosine_by_hand():
    """T = 3, s = 0: cos(30), cos(60) and cos(90 degrees)."""
    schedule = Schedule.cosine(3, offset=0, largest_beta=0.9)
    np.testing.assert_allclose(schedule.alpha_bars, [1, 0.75**0.5, 0.5, 0.05])


def test_tables_by_hand():
    schedule = Schedule([0.5, 0.2])
    np.testing.assert_allclose(schedule.betas, [0, 0.5, 0.2])
    np.testing.assert_allclose(schedule.alpha_bars, [1, 0.5, 0.4])
    assert schedule.num_steps == 2


def test_q_sample_by_hand():
    x = Schedule([0.36, 0.75]).q_sample(
        tf.constant([[10.0, 0.0], [10.0, 0.0], [10.0, 0.0]]),
        np.array([0, 1, 2]),
        tf.constant([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]),
    )
    expected = [[10, 0], [8.6, 1.2], [4 + 0.84**0.5, 2 * 0.84**0.5]]
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_step_0_changes_nothing(schedule):
    x_0, noise = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype("f")
    np.testing.assert_array_equal(schedule.q_sample(x_0, 0, noise), x_0)


def test_each_vector_has_its_own_step(schedule):
    rng = np.random.default_rng(0)
    x_0, noise = rng.normal(size=(2, 5, 3, 4)).astype("f")
    t = rng.integers(0, 1001, (5, 3))
    x = schedule.q_sample(x_0, t, noise)
    for index in np.ndindex(*t.shape):
        alone = schedule.q_sample(x_0[index], t[index], noise[index])
        np.testing.assert_allclose(x[index], alone, rtol=1e-6)


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine])
def test_the_noise_in_a_sample_is_what_made_it(make):
    schedule = make()
    x_0, noise = np.random.default_rng(0).normal(size=(2, 1000, 3))
    t = np.arange(1, 1001)
    x = schedule.q_sample(tf.constant(x_0), t, noise)
    np.testing.assert_allclose(schedule.noise_in(x, t, x_0), noise, atol=1e-9)


def test_noise_to_signal(schedule):
    t = np.array([[0, 1], [20, 1000]])
    alpha_bar = np.cumprod(1 - schedule.betas)[t]
    expected = np.sqrt((1 - alpha_bar) / alpha_bar)[..., None]
    np.testing.assert_allclose(schedule.noise_to_signal(t, "float64"), expected, atol=1e-12)


@pytest.mark.parametrize("t", [1, 20, 300, 1000])
def test_mean_and_variance(schedule, t):
    noise = np.random.default_rng(0).normal(size=(100_000, 2)).astype("f")
    x_0 = tf.constant([3.0, -1.0])
    x = schedule.q_sample(x_0, t, noise).numpy()
    alpha_bar = np.prod(1 - schedule.betas[1 : t + 1])
    np.testing.assert_allclose(x.mean(0), np.sqrt(alpha_bar) * x_0, atol=0.02)
    np.testing.assert_allclose(x.var(0), 1 - alpha_bar, rtol=0.02)


def test_many_small_steps_are_one_large_one(schedule):
    """q(x_t | x_0) is the chain of q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t)."""
    mean, variance = 1.0, 0.0
    for t in range(1, 301):
        mean *= np.sqrt(1 - schedule.betas[t])
        variance = (1 - schedule.betas[t]) * variance + schedule.betas[t]
    one, zero = np.ones(1, "f"), np.zeros(1, "f")
    np.testing.assert_allclose(schedule.q_sample(one, 300, zero), [mean], rtol=1e-6)
    np.testing.assert_allclose(schedule.q_sample(zero, 300, one), [np.sqrt(variance)], rtol=1e-6)


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [-0.1], [np.nan], [[0.1]], 0.1])
def test_wrong_betas(betas):
    with pytest.raises(ValueError, match=r"`betas` must be numbers in \(0, 1\). Received: betas="):
        Schedule(betas)
