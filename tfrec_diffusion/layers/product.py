"""The match of a user's interest with a candidate, feature by feature."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetProduct(keras.layers.Layer):
    """Elementwise product of a linear map of an interest with the target.

    A tower of dense layers hardly learns such products by itself.

    Call arguments:
        interest: float tensor of shape (batch, dim). An interest of the user.
        target: float tensor of shape (batch, candidates, d).

    Returns:
        float tensor of shape (batch, candidates, d).
    """

    def build(self, interest_shape, target_shape):
        self.kernel = self.add_weight(name="kernel", shape=(interest_shape[-1], target_shape[-1]))

    def call(self, interest, target):
        return ops.matmul(interest, self.kernel)[:, None] * target

    def compute_output_spec(self, interest, target):
        return keras.KerasTensor(target.shape, self.compute_dtype)
