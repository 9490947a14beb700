import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.noise import normal, randint, uniform


@functools.cache
def compiled(jit_compile):
    """Draws of 20,000 numbers each: standard normal, integers in [3, 7), uniform in [0, 1)."""
    seed_generator = keras.random.SeedGenerator(0)

    def numbers():
        shape = (5000, 4)
        integers = randint(shape, 3, 7, seed_generator)
        return normal(shape, seed_generator), integers, uniform(shape, seed_generator)

    if jit_compile is not None:
        numbers = tf.function(numbers, jit_compile=jit_compile)
    return seed_generator, numbers


def draw(jit_compile, seed=5, times=1):
    seed_generator, numbers = compiled(jit_compile)
    seed_generator.state.assign(keras.random.SeedGenerator(seed).state)
    draws = [numbers() for _ in range(times)]
    return [np.stack(kind) for kind in zip(*draws, strict=True)]


each_mode = pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "tf", "XLA"])


@each_mode
def test_normal_moments(jit_compile):
    (x,), _, _ = draw(jit_compile)
    assert x.dtype == np.float32
    assert x.mean() == pytest.approx(0, abs=0.03)
    assert x.var() == pytest.approx(1, abs=0.03)
    assert (x**3).mean() == pytest.approx(0, abs=0.1)
    assert (x**4).mean() == pytest.approx(3, abs=0.2)
    np.testing.assert_allclose(np.corrcoef(x.T), np.eye(4), atol=0.05)


@each_mode
def test_randint_takes_the_lower_bound_and_leaves_the_upper(jit_compile):
    _, (t,), _ = draw(jit_compile)
    values, counts = np.unique(t, return_counts=True)
    assert t.dtype == np.int32
    np.testing.assert_array_equal(values, [3, 4, 5, 6])
    np.testing.assert_allclose(counts / t.size, 0.25, atol=0.01)


@each_mode
def test_uniform_moments_and_bounds(jit_compile):
    _, _, (u,) = draw(jit_compile)
    assert u.dtype == np.float32
    assert 0 <= u.min() < 0.001 and 0.999 < u.max() < 1
    assert u.mean() == pytest.approx(1 / 2, abs=0.01)
    assert u.var() == pytest.approx(1 / 12, abs=0.002)


@each_mode
def test_each_draw_is_new(jit_compile):
    x, t, u = draw(jit_compile, times=2)
    for numbers in (x, u):
        assert abs(np.corrcoef(numbers.reshape(2, -1))[0, 1]) < 0.03
    assert (t[0] == t[1]).mean() == pytest.approx(0.25, abs=0.02)


@each_mode
def test_a_seed_repeats_its_draws(jit_compile):
    for first, again, other in zip(
        draw(jit_compile), draw(jit_compile), draw(jit_compile, seed=6), strict=True
    ):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


def test_xla_draws_the_same_integers_but_other_floats():
    """What a run draws can be repeated only in the mode that it ran in."""
    (x, t, u), graph, xla = draw(None), draw(False), draw(True)
    for numbers, same in zip((x, t, u), graph, strict=True):
        np.testing.assert_array_equal(numbers, same)
    np.testing.assert_array_equal(t, xla[1])
    for numbers, other in ((x, xla[0]), (u, xla[2])):
        assert (np.abs(numbers - other) > 1e-3).mean() > 0.9


def test_open_shapes():
    seed_generator = keras.random.SeedGenerator(0)

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def like(x):
        shape = keras.ops.shape(x)
        draws = normal(shape, seed_generator), uniform(shape, seed_generator)
        return *draws, randint(shape, 0, 9, seed_generator)

    for rows in (5, 0):
        assert [x.shape for x in like(np.zeros((rows, 3), "f"))] == [(rows, 3)] * 3
