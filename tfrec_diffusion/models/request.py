"""A request as symbolic tensors: what a model's constructor puts its layers together on."""

import copy

from keras import ops

from tfrec_diffusion.layers.search import BehaviorRows
from tfrec_diffusion.schema import PADDING, Schema


class Request:
    """The symbolic tensors of a request.

    Where a tensor embeds several features, they are concatenated in the schema's order.

    Args:
        schema: `Schema`. The features of a request.
        features: dict. The model's symbolic inputs by name, as of `Schema.keras_inputs`.
        tables: dict. The `TableEmbedding` of each embedded table by the table's name.

    Attributes:
        features: dict of int tensors. The inputs by name: rows of their tables.
        user: float tensor of shape (batch, dim). The embedded user features; `None` if there are
            none.
        context: float tensor of shape (batch, dim). The embedded context features; `None` if there
            are none.
        candidate: float tensor of shape (batch, candidates, dim). The embedded candidate features.
        candidate_other: float tensor of shape (batch, candidates, dim). Those candidate features
            that no history feature is compared with; `None` if there are none.
        target: float tensor of shape (batch, candidates, d). What the history is compared with:
            for each history feature, the candidate's (or the context's) value of the same table.
        history: float tensor of shape (batch, length, d). The embedded history features.
        candidate_mask: bool tensor of shape (batch, candidates). True for a real candidate.
        history_mask: bool tensor of shape (batch, length). True for a real behavior.
        history_key: str. Name of the feature that tells behaviors apart.
    """

    def __init__(self, schema, features, tables):
        embedded = {f.name: tables[f.table](features[f.name]) for f in schema.embedded_features}
        history = schema.group("history")
        compared = [schema.target_of(feature) for feature in history]
        self._schema = schema
        self._tables = tables
        self._rows_at = BehaviorRows(name="request.behaviors")
        self.features = features
        self.user, self.context, self.candidate = (
            _concatenate([embedded[f.name] for f in schema.group(name)])
            for name in ("user", "context", "candidate")
        )
        self.candidate_other = _concatenate(
            [embedded[f.name] for f in schema.group("candidate") if f not in compared]
        )
        of_each = ops.ones_like(self.candidate[..., :1])
        self.target = _concatenate(
            [
                embedded[f.name] if f.group == "candidate" else of_each * embedded[f.name][:, None]
                for f in compared
            ]
        )
        self.history = _concatenate([embedded[f.name] for f in history])
        self.candidate_mask = ops.not_equal(features[schema.candidate_key], PADDING)
        self.history_mask = ops.not_equal(features[schema.history_key], PADDING)
        self.history_key = schema.history_key

    def tower_inputs(self, *interests):
        """The tensors that the tower of most models sees.

        Args:
            *interests: float tensors of shape (batch, dim) or (batch, candidates, dim). What the
                model makes of the history.

        Returns:
            List of tensors: user, context (where the schema has them), candidate and interests.
        """
        known = [x for x in (self.user, self.context) if x is not None]
        return [*known, self.candidate, *interests]

    def at(self, positions, real):
        """The request with only some behaviors of its history, for which rows are embedded anew.

        The embedding's gradient then holds the rows of these behaviors alone. A slice of the
        embedded history would send zeros to all others.

        Args:
            positions: int tensor of shape (batch, k) or (batch, candidates, k). Positions in the
                history, as the layers of `layers.search` return them.
            real: bool tensor of the same shape. The new `history_mask`.

        Returns:
            `Request` whose `history` has the shape (batch, k, d) or (batch, candidates, k, d).
        """
        history = self._schema.group("history")
        of_behaviors = self._schema.group("history", "behavior")
        rows = {feature.name: self.features[feature.name] for feature in of_behaviors}
        rows = self._rows_at(rows, positions, real)
        selected = copy.copy(self)
        selected.features = {**self.features, **rows}
        selected.history = _concatenate([self._tables[f.table](rows[f.name]) for f in history])
        selected.history_mask = real
        return selected


def as_schema(schema):
    """A `Schema`, of itself or of its config, which is what a saved model holds."""
    return schema if isinstance(schema, Schema) else Schema.from_config(schema)


def _concatenate(tensors):
    """The tensors side by side; `None` if there are none."""
    return ops.concatenate(tensors, axis=-1) if tensors else None
