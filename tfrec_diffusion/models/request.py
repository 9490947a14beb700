"""A request as symbolic tensors: what a model's constructor puts its layers together on."""

import copy

from keras import ops

from tfrec_diffusion.layers.embedding import MeanOfValues
from tfrec_diffusion.layers.search import BehaviorRows
from tfrec_diffusion.schema import PADDING, Schema


class Request:
    """The symbolic tensors of a request.

    Where a tensor embeds several features, they are concatenated in the schema's order.

    Args:
        schema: `Schema`. The features of a request.
        features: dict. The model's symbolic inputs by name, as of `Schema.keras_inputs`.
        tables: dict. The `TableEmbedding` or `NumberEmbedding` of each embedded table, by the
            table's name.

    Attributes:
        features: dict of int or float tensors. The inputs by name: rows of tables, or numbers.
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
        self._schema = schema
        self._tables = tables
        self._mean_of_values = MeanOfValues(name="request.values")
        self._rows_at = BehaviorRows(name="request.behaviors")
        self.features = features
        self.candidate_mask = ops.not_equal(features[schema.candidate_key], PADDING)
        self.history_mask = ops.not_equal(features[schema.history_key], PADDING)
        self.history_key = schema.history_key
        embedded = {f.name: self._embed(f, features) for f in schema.embedded_features}
        history = schema.group("history")
        compared = [schema.target_of(feature) for feature in history]
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

    def _embed(self, feature, features):
        """Embeds a feature; entries that are padding become zeros."""
        x = features[feature.name]
        embedded = self._tables[feature.table](x)
        if feature.values > 1:
            return self._mean_of_values(embedded, x)
        key = self._schema.key_of(feature)
        if key and self._schema.table(feature.table).is_numeric:
            real = ops.not_equal(features[key], PADDING)[..., None]
            return embedded * ops.cast(real, embedded.dtype)
        return embedded

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
        selected.history = _concatenate([self._embed(f, rows) for f in history])
        selected.history_mask = real
        return selected


def as_schema(schema):
    """A `Schema`, of itself or of its config, which is what a saved model holds."""
    return schema if isinstance(schema, Schema) else Schema.from_config(schema)


def _concatenate(tensors):
    """The tensors side by side; `None` if there are none."""
    return ops.concatenate(tensors, axis=-1) if tensors else None
