"""Dice, a data-adaptive activation (DIN, section 5.3)."""

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Dice(keras.layers.Layer):
    """f(s) = p(s) s + (1 - p(s)) alpha s, with p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps)).

    In training, mean and variance are those of the real rows of the batch; at inference, they are
    moving averages. Both and the activation are computed in float32. Where replicas share a batch,
    each uses the statistics of its own rows, as Keras's `BatchNormalization` does.

    Args:
        momentum: float. Momentum of the moving averages, in [0, 1). Defaults to `0.9`.
        epsilon: float. Positive number that is added to the variance. Defaults to `1e-8`.

    Call arguments:
        inputs: float tensor of shape (..., units).
        row_mask: bool tensor of shape (...), True = real, or `None`. The other rows do not count in
            the mean and the variance. Their outputs are unspecified, and the gradient with respect
            to these outputs must be zero. Defaults to `None`: all rows are real.
        training: bool. Whether to use the statistics of the batch. Defaults to `None`, which is
            `False`.

    Returns:
        float tensor of the shape of `inputs`.

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(self, momentum=0.9, epsilon=1e-8, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum}")
        if epsilon <= 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon}")
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.alpha = self.add_weight(name="alpha", shape=shape, initializer="zeros")
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=shape, initializer="zeros", trainable=False, autocast=False
        )
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False, autocast=False
        )

    def call(self, inputs, row_mask=None, training=None):
        shape = ops.shape(inputs)
        rows = ops.reshape(ops.cast(inputs, "float32"), (-1, shape[-1]))
        alpha = ops.cast(self.alpha, "float32")
        if training:
            real = ops.ones_like(rows[:, 0]) if row_mask is None else row_mask
            real = ops.reshape(ops.cast(real, "float32"), (1, -1))
            outputs, mean, variance = _dice_of_batch(rows, alpha, real, self.epsilon)
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1 - self.momentum))
        else:
            scale = ops.rsqrt(self.moving_variance + self.epsilon)
            p = ops.sigmoid(rows * scale - self.moving_mean * scale)
            outputs = rows * (alpha + (1 - alpha) * p)
        return ops.cast(ops.reshape(outputs, shape), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


def _dice_of_batch(x, alpha, real, epsilon):
    """Dice with the statistics of the batch.

    Memory traffic is the whole cost, so the gradient is written out: it needs three sums over the
    rows. A sum over rows is computed as a product with `real`, which on a CPU is several times
    faster than a reduction, also under XLA.

    Args:
        x: float32 tensor of shape (rows, units).
        alpha: float32 tensor of shape (units,).
        real: float32 tensor of shape (1, rows), 1 = real, 0 = padding.
        epsilon: float. Added to the variance.

    Returns:
        f(x), float32 of shape (rows, units); mean and variance, float32 of shape (units,) and
        without gradient.
    """

    @tf.custom_gradient
    def dice(x, alpha):
        count = tf.maximum(tf.reduce_sum(real), 1.0)
        mean = (real @ x)[0] / count
        variance = (real @ tf.square(x - mean))[0] / count
        scale = tf.math.rsqrt(variance + epsilon)
        p = tf.sigmoid((x - mean) * scale)

        def gradient(dy, *_):
            p = tf.sigmoid((x - mean) * scale)  # cheaper to compute again than to keep
            d_alpha = dy * x * (1 - p)
            d_p = d_alpha * p
            d_z_scaled = (1 - alpha) * scale
            sum_dz = d_z_scaled * (real @ d_p)[0] / count
            sum_dz_z = d_z_scaled * scale * (real @ (d_p * (x - mean)))[0] / count
            through_statistics = tf.transpose(real) * (sum_dz + (x - mean) * (scale * sum_dz_z))
            dx = dy * (alpha + (1 - alpha) * p) + d_z_scaled * d_p - through_statistics
            return dx, (real @ d_alpha)[0]

        return (x * (alpha + (1 - alpha) * p), mean, variance), gradient

    outputs, mean, variance = dice(x, alpha)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)
