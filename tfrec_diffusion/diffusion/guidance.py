"""Guidance by conditions: CFG and Semantic Guidance Disentanglement (HierDiffuse, 3.3).

Both weigh the conditional predictions against the unconditional one.
"""

import math

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative


def mix(predictions, weights):
    """(1 - sum_i w_i) f(x_t, t) + sum_i w_i f(x_t, t, y_i), eq. 5-6.

    The weights sum to 1 and x_t is the same, so that mixing scores, noises or estimates of x_0 is
    one and the same.

    Args:
        predictions: float (batch, 1 + conditions, d), the unconditional one first.
        weights: float (batch, conditions).

    Returns:
        (batch, d).
    """
    unconditional, conditional = predictions[:, :1], predictions[:, 1:]
    return unconditional[:, 0] + ops.sum(weights[..., None] * (conditional - unconditional), axis=1)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ClassifierFreeGuidance(keras.layers.Layer):
    """One weight for all (eq. 5): 1 is the conditional prediction, more exaggerates it.

    Args:
        weight: omega, >= 0.

    Call arguments:
        interests, counts, dispersions: As `SemanticGuidance`.

    Returns:
        (batch, conditions): omega, or 0 where a condition is absent.

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

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SemanticGuidance(keras.layers.Layer):
    """omega_i >= 0 of each semantic category, from what is known of its behaviors (eq. 6).

    A gate shared by nothing: softplus of a linear map of the category's interest, the logarithm of
    1 + its count, and its dispersion. At first the weights sum to 1.

    Call arguments:
        interests: y_i, float (batch, categories, d).
        counts: float (batch, categories), behaviors of each category.
        dispersions: float (batch, categories), their variance.

    Returns:
        (batch, categories): 0 where a category is absent.
    """

    def build(self, interests_shape, *_):
        categories, dim = interests_shape[1:]
        self.kernel = self.add_weight(
            name="kernel", shape=(categories, dim + 2), initializer="zeros"
        )
        bias = math.log(math.expm1(1 / categories))  # softplus gives 1 / categories
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
