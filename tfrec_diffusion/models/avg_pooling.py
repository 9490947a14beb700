"""Avg-Pooling DNN: the mean of the history beside the candidate, the baseline of both papers."""

import keras

from tfrec_diffusion.layers.pooling import MaskedMean
from tfrec_diffusion.models.base import RankingModel


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
