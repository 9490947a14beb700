"""Guidance by conditions (HierDiffuse, section 3.3): CFG and Semantic Guidance Disentanglement.

Both give each conditional prediction a weight against the unconditional one.
"""

import math

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative


def mix(predictions, weights):
    """Mixes predictions: (1 - sum_i w_i) f(x_t, t) + sum_i w_i f(x_t, t, y_i) (eq. 5-6).

    The factors sum to 1 and all predictions are for the same x_t. It therefore makes no difference
    whether scores, noises or estimates of x_0 are mixed.

    Args:
        predictions: float tensor of shape (batch, 1 + conditions, d). The unconditional prediction,
            then the conditional ones.
        weights: float tensor of shape (batch, conditions). The weights w_i.

    Returns:
        float tensor of shape (batch, d).
    """
    unconditional, conditional = predictions[:, :1], predictions[:, 1:]
    return unconditional[:, 0] + ops.sum(weights[..., None] * (conditional - unconditional), axis=1)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ClassifierFreeGuidance(keras.layers.Layer):
    """The same weight for all conditions (eq. 5).

    With weight 1 and one condition, the mixed prediction is the conditional one. A larger weight
    exaggerates the condition.

    Args:
        weight: float. omega of eq. 5, at least 0. Defaults to `1.0`.

    Call arguments:
        interests: float tensor of shape (batch, conditions, d). Unused.
        counts: float tensor of shape (batch, conditions). Number of behaviors of each condition.
        dispersions: float tensor of shape (batch, conditions). Unused.

    Returns:
        float tensor of shape (batch, conditions). omega, or 0 where a condition has no behaviors.

    Reference:
        https://arxiv.org/abs/2207.12598
    """

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        check_not_negative(weight=weight)
        self.weight = weight

    def call(self, interests, counts, dispersions):
        return self.weight * ops.cast(counts > 0, self.compute_dtype)

    def compute_output_spec(self, interests, counts, dispersions):
        return keras.KerasTensor(counts.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SemanticGuidance(keras.layers.Layer):
    """A learned weight omega_i >= 0 of each semantic category (eq. 6).

    Each category has a gate of its own: the softplus of a linear map of the category's interest, of
    log(1 + its number of behaviors) and of their dispersion. Before training, the weights of all
    categories are equal.

    Args:
        initial_weight: float or `None`. What each weight starts at, more than 0. If `None`, they
            sum to 1. Defaults to `None`.

    Call arguments:
        interests: float tensor of shape (batch, categories, d). The interests y_i.
        counts: float tensor of shape (batch, categories). Number of behaviors of each category.
        dispersions: float tensor of shape (batch, categories). Variance of these behaviors.

    Returns:
        float tensor of shape (batch, categories). omega_i, or 0 where a category has no behaviors.
    """

    def __init__(self, initial_weight=None, **kwargs):
        super().__init__(**kwargs)
        if initial_weight is not None and not initial_weight > 0:
            raise ValueError(
                "`initial_weight` must be a number above 0 or None. "
                f"Received: initial_weight={initial_weight!r}"
            )
        self.initial_weight = initial_weight

    def build(self, interests_shape, *_):
        categories, dim = interests_shape[1:]
        self.kernel = self.add_weight(
            name="kernel", shape=(categories, dim + 2), initializer="zeros"
        )
        # The inverse of softplus at the initial weight.
        bias = math.log(math.expm1(self.initial_weight or 1 / categories))
        self.bias = self.add_weight(
            name="bias", shape=(categories,), initializer=keras.initializers.Constant(bias)
        )

    def call(self, interests, counts, dispersions):
        known = [interests, ops.log1p(counts)[..., None], dispersions[..., None]]
        known = ops.concatenate(known, axis=-1)
        weights = ops.softplus(ops.sum(known * self.kernel, axis=-1) + self.bias)
        return weights * ops.cast(counts > 0, weights.dtype)

    def compute_output_spec(self, interests, counts, dispersions):
        return keras.KerasTensor(counts.shape, self.compute_dtype)
