"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018)."""

import keras

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.layers.search import Newest
from tfrec_diffusion.models.base import RankingModel


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DIN(RankingModel):
    """MLP([user and context, candidate, activated history]); figure 2, right, of the paper.

    Args:
        schema: `Schema`.
        attention_units: Widths of the local activation unit before its linear output.
        max_length: Newest behaviors that the model sees; `None`: all. DiffuMIN's DIN(S) and DIN(L)
            are a short one and all.
        activation: "dice", "prelu" or "relu", also in the tower.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("din", schema=schema, attention_units=(80, 40))

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(
        self, schema, attention_units=(80, 40), max_length=None, activation="dice", **kwargs
    ):
        # === Layers ===
        dtype = kwargs.get("dtype")
        attention = LocalActivationUnit(
            attention_units, activation, dtype=dtype, name="din.attention"
        )
        if max_length is not None:
            check_positive_integers(max_length=max_length)
        newest = max_length and Newest(max_length, name="din.newest")

        # === Functional model ===
        def tower_inputs(request):
            if newest is not None:
                request = request.at(*newest(request.history_mask))
            interest = attention(
                request.history, request.target, request.history_mask, request.candidate_mask
            )
            return request.tower_inputs(interest)

        super().__init__(schema, tower_inputs, activation=activation, **kwargs)

        # === Config ===
        self.attention_units = attention.units
        self.max_length = max_length
