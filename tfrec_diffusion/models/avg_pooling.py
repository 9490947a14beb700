"""Avg-Pooling DNN: the mean of the history beside the candidate, the baseline of both papers."""

import keras
from keras import ops

from tfrec_diffusion.models.base import RankingModel


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MaskedMean(keras.layers.Layer):
    """Mean of the real behaviors.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        history_mask: bool tensor of shape (batch, length). True for a real behavior.

    Returns:
        float tensor of shape (batch, d). Zeros where no behavior is real.
    """

    def call(self, history, history_mask):
        real = ops.cast(history_mask, history.dtype)
        total = ops.matmul(real[:, None], history)[:, 0]
        return total / ops.maximum(ops.sum(real, axis=1, keepdims=True), 1)

    def compute_output_spec(self, history, history_mask):
        return keras.KerasTensor((history.shape[0], history.shape[2]), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class AvgPooling(RankingModel):
    """MLP([user and context, candidate, mean of the history]).

    Args:
        schema: `Schema`. The features of a request.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("avg_pooling", schema=schema, tower_units=(128, 64))
    """

    def __init__(self, schema, **kwargs):
        # === Layers ===
        pooling = MaskedMean(dtype=kwargs.get("dtype"), name="avg_pooling.history_mean")

        # === Functional model ===
        def tower_inputs(request):
            return request.tower_inputs(pooling(request.history, request.history_mask))

        super().__init__(schema, tower_inputs, **kwargs)
