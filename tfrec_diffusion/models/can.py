"""CAN: Feature Co-Action Network for Click-Through Rate Prediction (Bian et al., WSDM 2022)."""

import keras

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.layers.co_action import CoAction
from tfrec_diffusion.layers.mlp import check_units
from tfrec_diffusion.layers.search import Newest
from tfrec_diffusion.models.base import RankingModel, as_schema


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class CAN(RankingModel):
    """MLP([user and context, candidate, activated history, co-actions]); figure 2 of the paper.

    Each feature that behaviors share with the candidate has a co-action unit, beside DIN's
    attention.

    Args:
        schema: `Schema`.
        co_action_units: Widths of the candidate's small MLP.
        co_action_dim: Width of the vectors that it is applied to.
        orders: Highest power of these vectors.
        co_action_stddev: Standard deviation of the initial co-action tables.
        attention_units: Widths of the local activation unit before its linear output.
        max_length: Newest behaviors that the model sees; `None`: all. DiffuMIN's CAN(S) and CAN(L)
            are a short one and all.
        activation: "dice", "prelu" or "relu", of the attention and the tower.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("can", schema=schema, co_action_units=(8, 4), orders=3)

    Reference:
        https://arxiv.org/abs/2011.05625
    """

    def __init__(
        self,
        schema,
        co_action_units=(8, 4),
        co_action_dim=8,
        orders=3,
        co_action_stddev=0.2,
        attention_units=(80, 40),
        max_length=None,
        activation="dice",
        **kwargs,
    ):
        # === Layers ===
        schema = as_schema(schema)
        dtype = kwargs.get("dtype")
        attention = LocalActivationUnit(
            attention_units, activation, dtype=dtype, name="can.attention"
        )
        pairs = schema.candidate_features_of_history()
        co_actions = {
            feature.name: CoAction(
                schema.table(feature.table).rows,
                co_action_units,
                co_action_dim,
                orders,
                co_action_stddev,
                dtype=dtype,
                name=f"can.co_action.{feature.name}",
            )
            for feature in schema.group("history")
            if feature.name in pairs
        }
        if max_length is not None:
            check_positive_integers(max_length=max_length)
        newest = max_length and Newest(max_length, name="can.newest")

        # === Functional model ===
        def tower_inputs(request):
            if newest is not None:
                request = request.at(*newest(request.history_mask))
            interest = attention(
                request.history, request.target, request.history_mask, request.candidate_mask
            )
            return request.tower_inputs(
                interest,
                *(
                    co_action(
                        request.features[name], request.features[pairs[name]], request.history_mask
                    )
                    for name, co_action in co_actions.items()
                ),
            )

        super().__init__(schema, tower_inputs, activation=activation, **kwargs)

        # === Config ===
        self.co_action_units = check_units(co_action_units)
        self.co_action_dim = co_action_dim
        self.orders = orders
        self.co_action_stddev = co_action_stddev
        self.attention_units = attention.units
        self.max_length = max_length
