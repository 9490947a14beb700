"""CAN: Feature Co-Action Network for Click-Through Rate Prediction (Bian et al., WSDM 2022)."""

import keras

from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.layers.co_action import CoAction
from tfrec_diffusion.layers.mlp import check_units
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import NewestBehaviors
from tfrec_diffusion.models.request import as_schema


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class CAN(RankingModel):
    """MLP([user and context, candidate, activated history, co-actions]); figure 2 of the paper.

    Beside DIN's attention, there is a co-action unit for each feature that the behaviors share
    with the candidate.

    Args:
        schema: `Schema`. The features of a request.
        co_action_units: Sequence of int. Widths of the small MLP, whose weights are looked up for
            the candidate. Defaults to `(8, 4)`.
        co_action_dim: int. Width of the vectors that this MLP is applied to. Defaults to `8`.
        orders: int. Highest power of these vectors. Defaults to `3`.
        co_action_stddev: float. Standard deviation of the initial co-action tables. Defaults to
            `0.2`.
        attention_units: Sequence of int. Widths of the local activation unit's layers before its
            linear output. Defaults to `(80, 40)`.
        max_length: int or `None`. Number of newest behaviors that the model sees. If `None`, all
            of them. DiffuMIN's baselines CAN(S) and CAN(L) see few and all. Defaults to `None`.
        activation: str. Activation of the attention and the tower: `"dice"`, `"prelu"` or
            `"relu"`. Defaults to `"dice"`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

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
        newest = NewestBehaviors(max_length, "can")

        # === Functional model ===
        def tower_inputs(request):
            seen = newest(request)
            interest = attention(seen.history, seen.target, seen.history_mask, seen.candidate_mask)
            return request.tower_inputs(
                interest,
                *(
                    co_action(seen.features[name], seen.features[pairs[name]], seen.history_mask)
                    for name, co_action in co_actions.items()
                ),
            )

        super().__init__(schema, tower_inputs, activation=activation, **kwargs)

        self._co_actions = co_actions

        # === Config ===
        self.co_action_units = check_units(co_action_units)
        self.co_action_dim = co_action_dim
        self.orders = orders
        self.co_action_stddev = co_action_stddev
        self.attention_units = attention.units
        self.max_length = max_length

    @property
    def row_tables(self):
        """See `RankingModel.row_tables`."""
        of_feature = {feature.name: feature.table for feature in self.schema.features}
        return super().row_tables + [
            (of_feature[name], table)
            for name, co_action in self._co_actions.items()
            for table in (co_action.mlp_table, co_action.vector_table)
        ]
