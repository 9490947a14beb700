"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018)."""

import keras

from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.models.base import RankingModel, tower_inputs


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DIN(RankingModel):
    """MLP([user and context, candidate, activated history]); figure 2, right, of the paper.

    Args:
        schema: `Schema`.
        attention_units: Widths of the local activation unit before its linear output.
        tower_units: Widths of the tower.
        activation: "dice", "prelu" or "relu", in both.
        dropout: Rate after each layer of the tower.
        embedding_dim: Width of all embeddings; `None`: as the schema says.
        embedding_stddev: Standard deviation of the initial embeddings.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("din", schema=schema, attention_units=(80, 40))

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(
        self,
        schema,
        attention_units=(80, 40),
        tower_units=(200, 80),
        activation="dice",
        dropout=0.0,
        embedding_dim=None,
        embedding_stddev=0.01,
        dtype=None,
        **kwargs,
    ):
        # === Layers ===
        attention = LocalActivationUnit(
            attention_units, activation, dtype=dtype, name="din.attention"
        )
        tower = MLP(tower_units, activation, dropout, dtype=dtype, name="din.tower")
        logit = keras.layers.Dense(1, dtype=dtype, name="din.logit")

        # === Functional model ===
        def score(embedded):
            interest = attention(
                embedded["history"],
                embedded["target"],
                embedded["history_mask"],
                embedded["candidate_mask"],
            )
            inputs = tower_inputs(embedded, interest)
            return logit(tower(inputs, candidate_mask=embedded["candidate_mask"]))

        super().__init__(schema, score, embedding_dim, embedding_stddev, dtype, **kwargs)

        # === Config ===
        self.attention_units = attention.units
        self.tower_units = tower.units
        self.activation = activation
        self.dropout = dropout

    def get_config(self):
        return {
            **super().get_config(),
            "attention_units": self.attention_units,
            "tower_units": self.tower_units,
            "activation": self.activation,
            "dropout": self.dropout,
        }
