"""Normalization of vectors to a common scale, and of attention weights to a sum of 1."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_share

# Of what a softmax leaves out. It is finite, because -inf gives NaN where nothing is left.
LOWEST_LOGIT = -1e30


def unit_scale(x):
    """Brings vectors to mean 0 and variance 1, the scale of the noise of a diffusion process.

    Args:
        x: float tensor of shape (..., d).

    Returns:
        float tensor of the shape of `x`. A vector of equal components becomes zeros.
    """
    centered = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
    return centered * ops.rsqrt(variance + 1e-6)


def unit_length(x):
    """Brings vectors to length 1.

    Args:
        x: float tensor of shape (..., d).

    Returns:
        float tensor of the shape of `x`. Zeros stay zeros.
    """
    return x * inverse_length(x)


def inverse_length(x):
    """1 / length of vectors, with a finite value and gradient at zero.

    Args:
        x: float tensor of shape (..., d).

    Returns:
        float tensor of shape (..., 1).
    """
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return ops.rsqrt(ops.maximum(squared, 1e-12))


def root_mean_square(x):
    """Root mean square over the last axis, with a finite gradient at zero.

    Args:
        x: float tensor of shape (..., d).

    Returns:
        float tensor of shape (..., 1).
    """
    mean = ops.mean(ops.square(x), axis=-1, keepdims=True)
    return ops.sqrt(ops.maximum(mean, 1e-12)) * ops.cast(mean > 0, x.dtype)


def masked_softmax(logits, real):
    """Softmax over the last axis among what is real.

    Args:
        logits: float32 tensor of shape (..., k).
        real: bool tensor of a shape that broadcasts to that of `logits`, True = real.

    Returns:
        float32 tensor of shape (..., k). 0 where not real, also if nothing is.
    """
    weights = ops.softmax(ops.where(real, logits, LOWEST_LOGIT), axis=-1)
    return ops.where(real, weights, 0.0)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Standardization(keras.layers.Layer):
    """(x - E[x]) / sqrt(Var[x] + eps), with the statistics of the batch, or averages of them.

    Unlike those of Keras's `BatchNormalization`, which start at a variance of 1, the averages at
    inference are means of what was seen from the first step on. Variances of new embeddings are so
    small that it would take hundreds of steps to forget the 1. Computed in float32.

    Args:
        momentum: float. Momentum of the averages, in [0, 1). Defaults to `0.9`.
        epsilon: float. Positive number that is added to the variance. Defaults to `1e-10`.

    Call arguments:
        inputs: float tensor of shape (batch, dim).
        training: bool. Whether to use the statistics of the batch. Defaults to `None`, which is
            `False`.

    Returns:
        float tensor of shape (batch, dim). The inputs themselves before the first step.
    """

    def __init__(self, momentum=0.9, epsilon=1e-10, **kwargs):
        super().__init__(**kwargs)
        check_share(momentum=momentum)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        def average(name, shape):
            return self.add_weight(
                name=name, shape=shape, initializer="zeros", trainable=False, autocast=False
            )

        self.moving_mean = average("moving_mean", input_shape[-1:])
        self.moving_variance = average("moving_variance", input_shape[-1:])
        self.seen = average("seen", ())  # 1 - momentum ** steps

    def call(self, inputs, training=None):
        x = ops.cast(inputs, "float32")
        if training:
            mean, variance = ops.moments(x, axes=0)
            for moving, value in (
                (self.moving_mean, mean),
                (self.moving_variance, variance),
                (self.seen, 1.0),
            ):
                value = ops.stop_gradient(value) * (1 - self.momentum)
                moving.assign(moving * self.momentum + value)
        else:
            seen = ops.maximum(self.seen, 1e-7)
            mean = self.moving_mean / seen
            variance = ops.where(self.seen > 0, self.moving_variance / seen, 1.0)
        return ops.cast((x - mean) * ops.rsqrt(variance + self.epsilon), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


def layer_norm(dtype):
    """Layer normalization of embeddings.

    Embeddings start so small that Keras's default epsilon of 1e-3 would outweigh their variance.

    Args:
        dtype: str or `keras.DTypePolicy`. Dtype policy of the layer.

    Returns:
        `keras.layers.LayerNormalization`.
    """
    return keras.layers.LayerNormalization(epsilon=1e-6, dtype=dtype)
