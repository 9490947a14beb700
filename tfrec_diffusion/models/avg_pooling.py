"""Avg-Pooling DNN: the mean of the history beside the candidate, as both papers' baseline."""

import keras
from keras import ops

from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.models.base import RankingModel, tower_inputs


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MaskedMean(keras.layers.Layer):
    """Mean of the real behaviors.

    Call arguments:
        history: (batch, length, d).
        history_mask: bool (batch, length), True = real.

    Returns:
        (batch, d): zeros where no behavior is real.
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
        schema: `Schema`.
        tower_units: Widths of the tower.
        activation: "dice", "prelu" or "relu".
        dropout: Rate after each layer of the tower.
        embedding_dim: Width of all embeddings; `None`: as the schema says.
        embedding_stddev: Standard deviation of the initial embeddings.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("avg_pooling", schema=schema, tower_units=(128, 64))
    """

    def __init__(
        self,
        schema,
        tower_units=(200, 80),
        activation="dice",
        dropout=0.0,
        embedding_dim=None,
        embedding_stddev=0.01,
        dtype=None,
        **kwargs,
    ):
        # === Layers ===
        pooling = MaskedMean(dtype=dtype, name="avg_pooling.history_mean")
        tower = MLP(tower_units, activation, dropout, dtype=dtype, name="avg_pooling.tower")
        logit = keras.layers.Dense(1, dtype=dtype, name="avg_pooling.logit")

        # === Functional model ===
        def score(embedded):
            interest = pooling(embedded["history"], embedded["history_mask"])
            inputs = tower_inputs(embedded, interest)
            return logit(tower(inputs, candidate_mask=embedded["candidate_mask"]))

        super().__init__(schema, score, embedding_dim, embedding_stddev, dtype, **kwargs)

        # === Config ===
        self.tower_units = tower.units
        self.activation = activation
        self.dropout = dropout

    def get_config(self):
        return {
            **super().get_config(),
            "tower_units": self.tower_units,
            "activation": self.activation,
            "dropout": self.dropout,
        }
