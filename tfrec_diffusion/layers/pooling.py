"""The mean of the whole history."""

import keras
from keras import ops


def masked_mean(history, history_mask):
    """Mean of the real behaviors.

    Args:
        history: float tensor of shape (batch, length, d).
        history_mask: bool tensor of shape (batch, length). True for a real behavior.

    Returns:
        float tensor of shape (batch, d). Zeros where no behavior is real.
    """
    real = ops.cast(history_mask, history.dtype)
    total = ops.matmul(real[:, None], history)[:, 0]
    return total / ops.maximum(ops.sum(real, axis=1, keepdims=True), 1)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MaskedMean(keras.layers.Layer):
    """`masked_mean` as a layer.

    Call arguments and Returns: As in `masked_mean`.
    """

    def call(self, history, history_mask):
        return masked_mean(history, history_mask)

    def compute_output_spec(self, history, history_mask):
        return keras.KerasTensor((history.shape[0], history.shape[2]), self.compute_dtype)
