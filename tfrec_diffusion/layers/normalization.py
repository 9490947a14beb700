"""Vectors brought to a scale, without parameters."""

from keras import ops


def unit_scale(x):
    """Mean 0 and variance 1 over the last axis, as the noise of diffusion; zeros stay zero."""
    centered = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
    return centered * ops.rsqrt(variance + 1e-6)


def unit_length(x):
    """Length 1 over the last axis; zeros stay zero."""
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squared, 1e-12))
