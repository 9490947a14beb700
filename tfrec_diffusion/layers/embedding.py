"""Embedding tables, whose gradients hold the rows of the batch alone."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

_SPREAD_FROM_BYTES = 2**20
_PART_BYTES = 2**30  # at most: TensorFlow sends no tensor of 2 GiB to another machine, or back


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TableEmbedding(keras.layers.Layer):
    """Looks rows of one table up; row 0 (padding) is zero and stays so under any optimizer.

    Gradients are `tf.IndexedSlices`: they hold the rows of the batch, not the table.

    Built in the scope of a `tf.distribute.ParameterServerStrategy`, a table of a MiB or more is
    spread over the servers: row r is row r // k of part r % k, so that frequent values, which have
    low indices, burden all servers alike. k is the number of servers, or a multiple of it where
    parts would be over a GiB. Each distinct row of a call is sent once. Saved files hold the whole
    table, whatever k is.

    Args:
        rows: Number of rows, with row 0.
        dim: Width.
        stddev: Standard deviation of the initial rows from 1.

    Attributes:
        parts: The weights that the table consists of, (ceil((rows - part) / k), dim) each.
        embeddings: The one weight (rows, dim) of a table that is not spread.

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
        servers = _parameter_servers()
        self._is_remote = servers > 0
        size = self.rows * self.dim * 4
        count = 1
        if servers and size >= _SPREAD_FROM_BYTES:
            count = servers * math.ceil(size / (servers * _PART_BYTES))
        # Servers take variables in turn: parts made one after the other come to lie apart.
        self.parts = [self._add_part(part, count) for part in range(count)]

    def _add_part(self, part, count):
        normal = keras.initializers.RandomNormal(stddev=self.stddev)  # of its own seed

        def padding_row_zero(shape, dtype=None):
            return ops.pad(normal((shape[0] - 1, shape[1]), dtype=dtype), ((1, 0), (0, 0)))

        # autocast would copy the whole table to the compute dtype at every step
        return self.add_weight(
            name="embeddings" if count == 1 else f"embeddings_{part}",
            shape=(len(range(part, self.rows, count)), self.dim),
            initializer=normal if part else padding_row_zero,
            autocast=False,
        )

    @property
    def embeddings(self):
        if len(self.parts) > 1:
            raise AttributeError(
                f"`embeddings` is the weight of a table that is not spread. {self.name} has "
                f"{len(self.parts)} `parts`."
            )
        return self.parts[0]

    def call(self, indices):
        # `ops.take` costs twice as much: it sends the table's gradient through a reshape
        if self._is_remote:
            distinct, positions = tf.unique(tf.reshape(indices, [-1]))
            embedded = _repeat(self._lookup(distinct), tf.reshape(positions, tf.shape(indices)))
        else:
            embedded = self._lookup(indices)
        real = ops.sign(ops.cast(indices, self.compute_dtype))  # 0 for padding, else 1
        return ops.cast(embedded, self.compute_dtype) * real[..., None]

    def _lookup(self, indices):
        parts = [part.value for part in self.parts]
        return tf.compat.v1.nn.embedding_lookup(parts, indices, partition_strategy="mod")

    def save_own_variables(self, store):
        if len(self.weights) < 2:
            super().save_own_variables(store)
            return
        table = np.empty((self.rows, self.dim), self.variable_dtype)
        for number, part in enumerate(self.parts):
            table[number :: len(self.parts)] = part.numpy()
        store["0"] = table

    def load_own_variables(self, store):
        count = len(self.weights)
        if count > 1:
            table = store["0"]
            store = {str(part): table[part::count] for part in range(count)}
        super().load_own_variables(store)

    def compute_output_spec(self, indices):
        return keras.KerasTensor((*indices.shape, self.dim), self.compute_dtype)

    def get_config(self):
        config = {"rows": self.rows, "dim": self.dim, "stddev": self.stddev}
        return {**super().get_config(), **config}


@tf.custom_gradient
def _repeat(rows, positions):
    """Rows at positions; the gradient adds up before it is sent."""

    def gradient(upstream):
        return tf.math.unsorted_segment_sum(upstream, positions, tf.shape(rows)[0]), None

    return tf.gather(rows, positions), gradient


def _parameter_servers():
    """How many parameter servers the strategy in scope has."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        return 0
    # its `cluster_resolver` is None; each server has one CPU
    return sum("/job:ps/" in cpu.name for cpu in tf.config.list_logical_devices("CPU"))
