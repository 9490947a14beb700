"""Embedding of a request: one table for each of the schema's, tied where features share one."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.schema import PADDING, Schema


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TableEmbedding(keras.layers.Layer):
    """Looks rows of one table up; row 0 (padding) is zero and stays so under any optimizer.

    Gradients are `tf.IndexedSlices`: they hold the rows of the batch, not the table.

    Args:
        rows: Number of rows, with row 0.
        dim: Width.
        stddev: Standard deviation of the initial rows from 1.

    Call arguments:
        indices: int (...), in [0, rows).

    Returns:
        (..., dim).
    """

    def __init__(self, rows, dim, stddev=0.01, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(stddev, int | float) or stddev < 0:
            raise ValueError(f"`stddev` must be a number >= 0. Received: stddev={stddev!r}")
        self.rows = rows
        self.dim = dim
        self.stddev = stddev

    def build(self, input_shape=None):
        normal = keras.initializers.RandomNormal(stddev=self.stddev)

        def padding_row_zero(shape, dtype=None):
            return ops.pad(normal((shape[0] - 1, shape[1]), dtype=dtype), ((1, 0), (0, 0)))

        # autocast would copy the whole table to the compute dtype at every step
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.rows, self.dim),
            initializer=padding_row_zero,
            autocast=False,
        )

    def call(self, indices):
        # `ops.take` costs twice as much: it sends the table's gradient through a reshape
        embedded = tf.nn.embedding_lookup(self.embeddings.value, indices)
        real = ops.cast(ops.not_equal(indices, PADDING), self.compute_dtype)
        return ops.cast(embedded, self.compute_dtype) * real[..., None]

    def compute_output_spec(self, indices):
        return keras.KerasTensor((*indices.shape, self.dim), self.compute_dtype)

    def get_config(self):
        config = {"rows": self.rows, "dim": self.dim, "stddev": self.stddev}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class RequestEmbedding(keras.layers.Layer):
    """Embeds the features of a request, group by group.

    Args:
        schema: `Schema` (or its config).
        stddev: As in `TableEmbedding`.

    Call arguments:
        features: dict of int tensors as `Schema.keras_inputs`.

    Returns:
        dict of the features' embeddings, concatenated in the schema's order:
        `"request"` (batch, dim), user and context features; absent if there are none;
        `"candidate"` (batch, candidates, dim), all candidate features;
        `"candidate_other"` (batch, candidates, dim), those that no history feature is compared
        with; absent if there are none;
        `"target"` (batch, candidates, d), for each history feature the candidate's (or context's)
        value of the same table;
        `"history"` (batch, length, d);
        `"candidate_mask"` bool (batch, candidates) and `"history_mask"` bool (batch, length),
        True = real.
    """

    def __init__(self, schema, stddev=0.01, **kwargs):
        super().__init__(**kwargs)
        self.schema = schema if isinstance(schema, Schema) else Schema.from_config(schema)
        self.stddev = stddev
        self.tables = {
            table.name: TableEmbedding(
                table.rows, table.dim, stddev, name=table.name, dtype=self.dtype_policy
            )
            for table in self.schema.tables
            if any(feature.table == table.name for feature in self.schema.embedded_features)
        }

    def build(self, input_shape=None):
        for table in self.tables.values():
            table.build()

    def call(self, features):
        schema = self.schema
        embedded = {
            f.name: self.tables[f.table](features[f.name]) for f in schema.embedded_features
        }
        candidates = embedded[schema.candidate_key]

        def target(history_feature):
            feature = schema.target_of(history_feature)
            value = embedded[feature.name]
            if feature.group == "candidate":
                return value
            return value[:, None] + ops.zeros_like(candidates[..., :1])

        history = schema.group("history")
        outputs = {
            "candidate": _concatenate(embedded[f.name] for f in schema.group("candidate")),
            "target": _concatenate(target(f) for f in history),
            "history": _concatenate(embedded[f.name] for f in history),
            "candidate_mask": ops.not_equal(features[schema.candidate_key], PADDING),
            "history_mask": ops.not_equal(features[schema.history_key], PADDING),
        }
        compared = [schema.target_of(f) for f in history]
        for key, features in (
            ("request", schema.group("user", "context")),
            ("candidate_other", [f for f in schema.group("candidate") if f not in compared]),
        ):
            if features:
                outputs[key] = _concatenate(embedded[f.name] for f in features)
        return outputs

    def get_config(self):
        config = {"schema": self.schema.get_config(), "stddev": self.stddev}
        return {**super().get_config(), **config}


def _concatenate(tensors):
    return ops.concatenate(list(tensors), axis=-1)
