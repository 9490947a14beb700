"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018)."""

import keras

from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import BehaviorFeatures, NewestBehaviors
from tfrec_diffusion.models.request import as_schema


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
        softmax: bool. Whether the attention's weights are normalized by a softmax, which the paper
            does not do. Defaults to `False`.
        cross_features: Sequence of str or `None`. Names of behavior features, such as ages, which
            are added to the behaviors. Not in the paper. If `None`, all of the schema. Defaults to
            `()`.
        embedding_stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("din", schema=schema, attention_units=(80, 40))

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(
        self,
        schema,
        attention_units=(80, 40),
        max_length=None,
        activation="dice",
        softmax=False,
        cross_features=(),
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        schema, dtype = as_schema(schema), kwargs.get("dtype")
        attention = LocalActivationUnit(
            attention_units, activation, softmax, dtype=dtype, name="din.attention"
        )
        newest = NewestBehaviors(max_length, "din")
        features_of = BehaviorFeatures(
            schema, cross_features, embedding_stddev, dtype, "din.cross_features"
        )

        # === Functional model ===
        def tower_inputs(request):
            seen = newest(request)
            history = features_of.add(seen.history, features_of(seen))
            return request.tower_inputs(
                attention(history, seen.target, seen.history_mask, seen.candidate_mask)
            )

        super().__init__(
            schema,
            tower_inputs,
            activation=activation,
            embedding_stddev=embedding_stddev,
            **kwargs,
        )

        # === Config ===
        self.attention_units = attention.units
        self.max_length = max_length
        self.softmax = softmax
        self.cross_features = None if cross_features is None else features_of.names
        self.behavior_features = features_of.names
