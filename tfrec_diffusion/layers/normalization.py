"""Normalization of vectors to a common scale, and of attention weights to a sum of 1."""

import keras
from keras import ops

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


def layer_norm(dtype):
    """Layer normalization of embeddings.

    Embeddings start so small that Keras's default epsilon of 1e-3 would outweigh their variance.

    Args:
        dtype: str or `keras.DTypePolicy`. Dtype policy of the layer.

    Returns:
        `keras.layers.LayerNormalization`.
    """
    return keras.layers.LayerNormalization(epsilon=1e-6, dtype=dtype)
