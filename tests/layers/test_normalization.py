import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.normalization import (
    Standardization,
    layer_norm,
    masked_softmax,
    root_mean_square,
    unit_length,
    unit_scale,
)


def test_unit_scale_by_hand():
    x = np.array([[1, 3], [0, 0], [5, 5], [-400, 400]], "f")
    np.testing.assert_allclose(unit_scale(x), [[-1, 1], [0, 0], [0, 0], [-1, 1]], rtol=1e-5)


def test_unit_length_by_hand():
    interests = np.array([[3, 4], [0, 0], [-1e-3, 0]], "f")
    np.testing.assert_allclose(unit_length(interests), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_root_mean_square_by_hand():
    interests = np.array([[3, 4], [0, 0], [-1e-3, 1e-3]], "f")
    np.testing.assert_allclose(root_mean_square(interests), [[12.5**0.5], [0], [1e-3]], rtol=1e-6)


def test_masked_softmax_by_hand():
    logits = tf.math.log([[1.0, 3.0, 9.0]] * 2)
    real = np.array([[True, True, False], [False, False, False]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        weights = masked_softmax(logits, real)
        first = weights[:, 0]
    np.testing.assert_allclose(weights, [[0.25, 0.75, 0], [0, 0, 0]], rtol=1e-6)
    gradient = tape.gradient(first, logits)
    np.testing.assert_allclose(gradient, [[3 / 16, -3 / 16, 0], [0, 0, 0]], rtol=1e-5)


def test_layer_norm_of_embeddings_as_small_as_initial_ones():
    x = np.random.default_rng(0).normal(size=(50, 8), scale=0.01)
    np.testing.assert_allclose(np.std(layer_norm("float32")(x), axis=-1), 1, atol=0.05)


def test_random_vectors_of_any_rank():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype("f")
    scaled, unit = unit_scale(x).numpy(), unit_length(x).numpy()
    np.testing.assert_allclose(scaled.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.var(axis=-1), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(unit * x, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("function", [unit_scale, unit_length, root_mean_square])
def test_gradients_of_zeros_are_finite(function):
    x = tf.constant([[0.0, 0.0], [1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(function(x) ** 3)
    assert np.isfinite(tape.gradient(loss, x)).all()


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(unit_scale, "bfloat16"), (unit_scale, "float16"), (unit_length, "bfloat16")],
)
def test_half_precision(function, dtype):
    x = tf.constant([[3.0, 4.0], [0.0, 0.0]])
    half = function(tf.cast(x, dtype))
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), function(x), atol=0.01)


class TestStandardization:
    def test_by_hand(self):
        layer = Standardization(momentum=0.5)
        x = np.array([[1e-4, 8], [3e-4, 8]], "f")
        np.testing.assert_allclose(layer(x, training=True), [[-1, 0], [1, 0]], rtol=0.01)

    def test_inference_before_the_first_step_changes_nothing(self):
        x = np.array([[1e-4, 8], [3e-4, 8]], "f")
        np.testing.assert_allclose(Standardization()(x), x, rtol=1e-6)

    def test_inference_after_one_step_has_its_statistics(self):
        layer = Standardization(momentum=0.9)
        x = np.array([[1e-4, 8], [3e-4, 10]], "f")
        of_batch = layer(x, training=True)
        np.testing.assert_allclose(layer(x), of_batch, rtol=1e-4)
        np.testing.assert_allclose(layer(x[:1]), of_batch[:1], rtol=1e-4)

    def test_averages_forget(self):
        """Means 0 and 8 weigh 1/4 and 1/2 after two steps, and the weights sum to 3/4."""
        layer = Standardization(momentum=0.5)
        for mean in (0, 8):
            layer(np.array([[mean - 2], [mean + 2]], "f"), training=True)
        np.testing.assert_allclose(layer(np.array([[16 / 3 + 2]], "f")), [[1]], rtol=1e-5)
