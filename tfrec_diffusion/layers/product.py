"""The match of a user's interest with a candidate, feature by feature."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import Standardization


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetProduct(keras.layers.Layer):
    """Elementwise product of a map of an interest with the target.

    A tower of dense layers hardly learns such products by itself.

    The map is linear, or that of hidden layers with ReLU. These see the interest standardized by
    the statistics of the batch, and at inference by moving averages of them: means over long
    histories are nearly alike for all users, and what tells users apart is a small part of them.

    Args:
        units: tuple of int. Widths of the hidden layers. If empty, the map is linear, and nothing
            is standardized. Defaults to `()`.

    Call arguments:
        interest: float tensor of shape (batch, dim). An interest of the user.
        target: float tensor of shape (batch, candidates, d).
        training: bool. Whether to standardize by the statistics of the batch. Defaults to `None`,
            which is `False`.

    Returns:
        float tensor of shape (batch, candidates, d).
    """

    def __init__(self, units=(), **kwargs):
        super().__init__(**kwargs)
        self.units = tuple(units)
        for width in self.units:
            check_positive_integers(units=width)
        self.standardize = Standardization(dtype=self.dtype_policy)
        self.dense = [
            keras.layers.Dense(width, "relu", dtype=self.dtype_policy) for width in self.units
        ]

    def build(self, interest_shape, target_shape):
        dim = interest_shape[-1]
        if self.units:
            self.standardize.build((None, dim))
        for layer in self.dense:
            layer.build((None, dim))
            dim = layer.units
        self.kernel = self.add_weight(name="kernel", shape=(dim, target_shape[-1]))

    def call(self, interest, target, training=None):
        if self.units:
            interest = self.standardize(interest, training=training)
        for layer in self.dense:
            interest = layer(interest)
        return ops.matmul(interest, self.kernel)[:, None] * target

    def compute_output_spec(self, interest, target, training=None):
        return keras.KerasTensor(target.shape, self.compute_dtype)
