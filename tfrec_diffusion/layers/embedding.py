"""Embedding tables, whose gradients hold the rows of the batch alone."""

import keras
import tensorflow as tf
from keras import ops


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
        real = ops.sign(ops.cast(indices, self.compute_dtype))  # 0 for padding, else 1
        return ops.cast(embedded, self.compute_dtype) * real[..., None]

    def compute_output_spec(self, indices):
        return keras.KerasTensor((*indices.shape, self.dim), self.compute_dtype)

    def get_config(self):
        config = {"rows": self.rows, "dim": self.dim, "stddev": self.stddev}
        return {**super().get_config(), **config}
