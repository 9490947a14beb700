import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.dice import Dice


def reference(x, alpha, real, epsilon):
    mean, variance = x[real].mean(axis=0), x[real].var(axis=0)
    p = 1 / (1 + np.exp(-(x - mean) / np.sqrt(variance + epsilon)))
    return p * x + (1 - p) * alpha * x


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 3.0, (6, 5, 4)).astype("f"), rng.random((6, 5)) < 0.7


def test_training_uses_the_statistics_of_the_real_rows(rows):
    x, real = rows
    layer = Dice(epsilon=1e-3)
    layer.build(x.shape)
    layer.alpha.assign([0.0, 0.25, -0.5, 1.0])
    outputs = layer(x, row_mask=real, training=True).numpy()
    expected = reference(x, layer.alpha.numpy(), real, 1e-3)
    np.testing.assert_allclose(outputs[real], expected[real], rtol=1e-5, atol=1e-6)


def test_inference_uses_moving_averages(rows):
    x, real = rows
    layer = Dice(momentum=0.5)
    for _ in range(25):
        layer(x, row_mask=real, training=True)
    np.testing.assert_allclose(layer.moving_mean, x[real].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, x[real].var(axis=0), rtol=1e-4)
    in_training = layer(x, row_mask=real, training=True).numpy()
    np.testing.assert_allclose(layer(x).numpy()[real], in_training[real], atol=1e-3)


def test_gradient_is_that_of_the_definition(rows):
    x, real = rows
    weight = np.random.default_rng(1).normal(size=x.shape).astype("f") * real[..., None]
    layer = Dice(epsilon=1e-3)
    layer.build(x.shape)
    layer.alpha.assign([0.0, 0.25, -0.5, 1.0])
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(layer(inputs, row_mask=real, training=True) * weight)
    gradients = tape.gradient(loss, [inputs, layer.alpha.value])

    plain, alpha = tf.constant(x, tf.float64), tf.constant(layer.alpha.numpy(), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([plain, alpha])
        mean, variance = tf.nn.moments(tf.boolean_mask(plain, real), axes=[0])
        p = tf.sigmoid((plain - mean) / tf.sqrt(variance + 1e-3))
        loss = tf.reduce_sum((p * plain + (1 - p) * alpha * plain) * weight)
    for ours, expected in zip(gradients, tape.gradient(loss, [plain, alpha]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(rows):
    x, real = rows
    other = np.where(real[..., None], x, 1e6).astype("f")
    outputs = [Dice()(values, row_mask=real, training=True).numpy()[real] for values in (x, other)]
    np.testing.assert_array_equal(*outputs)


def test_a_batch_of_padding_is_finite():
    layer = Dice()
    inputs = tf.ones((3, 4))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, row_mask=tf.zeros(3, bool), training=True)
        loss = tf.reduce_sum(outputs * 0.0)
    assert np.isfinite(outputs).all() and np.isfinite(tape.gradient(loss, inputs)).all()
    assert np.isfinite(layer.moving_variance).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\). Received: momentum=1"):
        Dice(momentum=1)
    with pytest.raises(ValueError, match="`epsilon` must be positive. Received: epsilon=0"):
        Dice(epsilon=0)
