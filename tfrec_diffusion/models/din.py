"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018)."""

import keras

from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import NewestBehaviors


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DIN(RankingModel):
    """MLP([user and context, candidate, activated history]); figure 2, right, of the paper.

    Args:
        schema: `Schema`. The features of a request.
        attention_units: Sequence of int. Widths of the local activation unit's layers before its
            linear output. Defaults to `(80, 40)`.
        max_length: int or `None`. Number of newest behaviors that the model sees. If `None`, all
            of them. DiffuMIN's baselines DIN(S) and DIN(L) see few and all. Defaults to `None`.
        activation: str. Activation of the attention and the tower: `"dice"`, `"prelu"` or
            `"relu"`. Defaults to `"dice"`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("din", schema=schema, attention_units=(80, 40))

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(
        self, schema, attention_units=(80, 40), max_length=None, activation="dice", **kwargs
    ):
        # === Layers ===
        attention = LocalActivationUnit(
            attention_units, activation, dtype=kwargs.get("dtype"), name="din.attention"
        )
        newest = NewestBehaviors(max_length, "din")

        # === Functional model ===
        def tower_inputs(request):
            seen = newest(request)
            return request.tower_inputs(
                attention(seen.history, seen.target, seen.history_mask, seen.candidate_mask)
            )

        super().__init__(schema, tower_inputs, activation=activation, **kwargs)

        # === Config ===
        self.attention_units = attention.units
        self.max_length = max_length
