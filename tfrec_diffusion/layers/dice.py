"""Dice, the data-adaptive activation of DIN (Zhou et al., KDD 2018, section 5.3)."""

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Dice(keras.layers.Layer):
    """f(s) = p(s) s + (1 - p(s)) alpha s, with p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps)).

    Mean and variance are those of the batch's real rows in training and moving averages at
    inference; both and the activation are computed in float32. Where replicas share a batch, each
    takes its own rows' statistics, as Keras's BatchNormalization does.

    Args:
        momentum: Of the moving averages.
        epsilon: Added to the variance.

    Call arguments:
        inputs: (..., units).
        row_mask: Optional bool (...), True = real. The other rows do not count in the mean and the
            variance; what becomes of them is unspecified, and their gradient must be zero.
        training: bool.

    Returns:
        As `inputs`.

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(self, momentum=0.99, epsilon=1e-8, **kwargs):
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

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}


def _dice_of_batch(x, alpha, real, epsilon):
    """Dice with the statistics of the batch, and its gradient.

    Written out because memory traffic is all that it costs: the gradient needs three sums over the
    rows, and a sum over rows as a product with `real` is several times faster on a CPU than
    a reduction, under XLA too.

    Args:
        x: float32 (rows, units).
        alpha: float32 (units,).
        real: float32 (1, rows), 1 = real, 0 = padding.
        epsilon: Added to the variance.

    Returns:
        f(x) (rows, units), mean (units,) and variance (units,), the latter two without gradient.
    """

    @tf.custom_gradient
    def dice(x, alpha):
        count = tf.maximum(tf.reduce_sum(real), 1.0)
        mean = (real @ x)[0] / count
        variance = (real @ tf.square(x - mean))[0] / count
        scale = tf.math.rsqrt(variance + epsilon)
        p = tf.sigmoid((x - mean) * scale)

        def gradient(dy, *_):
            p = tf.sigmoid((x - mean) * scale)  # cheaper than to keep it
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
