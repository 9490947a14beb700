"""Embedding tables whose gradients hold only the rows that a batch looked up."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.names import TABLE_DTYPES

_SPREAD_FROM_BYTES = 2**20
_COMPRESSED = TABLE_DTYPES[1:]
_PART_BYTES = 2**30  # TensorFlow cannot send a tensor of 2 GiB between machines


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TableEmbedding(keras.layers.Layer):
    """Looks up rows of an embedding table. Row 0 (padding) is zero and stays so in training.

    Gradients are `tf.IndexedSlices`: they hold the rows that were looked up, not the whole table.

    If the layer is built in the scope of a `tf.distribute.ParameterServerStrategy`, a table of
    1 MiB or more is spread over the servers in k parts. k is the number of servers, or a multiple
    of it if a part would exceed 1 GiB. Row r of the table is row r // k of part r % k. Frequent
    values have low indices, so that this spreads the load evenly. A call sends each distinct row
    once. Saved files hold the whole table, whatever k is.

    Args:
        rows: int. Number of rows, including row 0.
        dim: int. Width of an embedding.
        stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.

    Attributes:
        parts: list of weights of shape (ceil((rows - part) / k), dim). The parts of the table.
        embeddings: weight of shape (rows, dim). The table, if it is not spread.

    Call arguments:
        indices: int tensor of shape (...), in [0, rows).

    Returns:
        float tensor of shape (..., dim).
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
        self._scales = None
        size = self.rows * self.dim * 4
        count = 1
        if servers and size >= _SPREAD_FROM_BYTES:
            count = servers * math.ceil(size / (servers * _PART_BYTES))
        # Servers take variables in turn, so that consecutive parts lie on different servers.
        self.parts = [self._add_part(part, count) for part in range(count)]

    def _add_part(self, part, count):
        normal = keras.initializers.RandomNormal(stddev=self.stddev)  # each part has its own seed

        def padding_row_zero(shape, dtype=None):
            return ops.pad(normal((shape[0] - 1, shape[1]), dtype=dtype), ((1, 0), (0, 0)))

        # Autocast would copy the whole table to the compute dtype in every step.
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
        # `ops.take` costs twice as much, because it reshapes the gradient of the table.
        if self._is_remote:
            distinct, positions = tf.unique(tf.reshape(indices, [-1]))
            embedded = _repeat(self._lookup(distinct), tf.reshape(positions, tf.shape(indices)))
        else:
            embedded = self._lookup(indices)
        real = ops.sign(ops.cast(indices, self.compute_dtype))  # 0 for padding, else 1
        return ops.cast(embedded, self.compute_dtype) * real[..., None]

    def compress(self, dtype):
        """Keeps the table in fewer bytes, for inference; what it was is gone.

        Args:
            dtype: str. `"bfloat16"`, or `"int8"`, which has a float32 scale for each row: the
                greatest magnitude of the row is 127.

        Raises:
            ValueError: If there is no such dtype, or the table is spread or compressed already.
        """
        if dtype not in _COMPRESSED:
            raise ValueError(f"`dtype` must be one of {list(_COMPRESSED)}. Received: {dtype!r}")
        if len(self.parts) > 1 or self.parts[0].dtype != "float32":
            raise ValueError(f"{self.name} must be one table of float32 to be compressed")
        table = self.parts[0].numpy()
        self._tracker.unlock()
        self._untrack_variable(self.parts[0])
        self.parts = []
        if dtype == "int8":
            scales = np.abs(table).max(axis=1, keepdims=True) / 127
            table = np.rint(table / np.where(scales > 0, scales, 1))
            self._scales = self._add_fixed("scales", scales, "float32")
        self.parts = [self._add_fixed("embeddings", table, dtype)]
        self._tracker.lock()

    def _add_fixed(self, name, values, dtype):
        return self.add_weight(
            name=name,
            shape=values.shape,
            dtype=dtype,
            initializer=lambda *_, **__: ops.cast(ops.convert_to_tensor(values), dtype),
            trainable=False,
            autocast=False,
        )

    def _lookup(self, indices):
        if self._scales is not None:
            rows = tf.cast(tf.gather(self.parts[0].value, indices), tf.float32)
            return rows * tf.gather(self._scales.value, indices)
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


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class NumberEmbedding(keras.layers.Layer):
    """Embeds numbers that are not looked up: ((x - mean) / deviation) W + b.

    What is missing has a learned embedding of its own. After the division, numbers beyond +-10
    count as +-10, so that one wild value does not undo a model.

    Args:
        dim: int. Width of an embedding.
        width: int. How many numbers a value has, of which the last axis consists; 0 if a value is
            one number. Defaults to `0`.
        mean: float. Is subtracted from numbers. Defaults to `0.0`.
        deviation: float. Numbers are divided by it. Defaults to `1.0`.
        stddev: float. Standard deviation of the initial W and of the embedding of what is missing.
            Defaults to `0.01`.

    Call arguments:
        numbers: float tensor of shape (...), or (..., width). NaN, in any of the `width`, is
            missing.

    Returns:
        float tensor of shape (..., dim).
    """

    def __init__(self, dim, width=0, mean=0.0, deviation=1.0, stddev=0.01, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.dim = dim
        self.width = width
        self.mean = mean
        self.deviation = deviation
        self.stddev = stddev

    def build(self, input_shape=None):
        def add_normal(name, *shape):
            normal = keras.initializers.RandomNormal(stddev=self.stddev)
            return self.add_weight(name=name, shape=shape, initializer=normal)

        self.kernel = add_normal("kernel", self.width or 1, self.dim)
        self.bias = self.add_weight(name="bias", shape=(self.dim,), initializer="zeros")
        self.missing = add_normal("missing", self.dim)

    def call(self, numbers):
        x = ops.cast(numbers, "float32")
        x = x if self.width else x[..., None]
        missing = ops.any(ops.isnan(x), axis=-1, keepdims=True)
        x = ops.where(missing, 0.0, (x - self.mean) / self.deviation)
        embedded = ops.matmul(ops.clip(x, -10.0, 10.0), self.kernel) + self.bias
        return ops.cast(ops.where(missing, self.missing, embedded), self.compute_dtype)

    def compute_output_spec(self, numbers):
        shape = numbers.shape[:-1] if self.width else numbers.shape
        return keras.KerasTensor((*shape, self.dim), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MeanOfValues(keras.layers.Layer):
    """Mean of the embeddings of an entry's values, such as the tags of an item.

    It is computed in the dtype of the embeddings.

    Call arguments:
        embedded: float tensor of shape (..., values, dim). Zeros where a value is padding.
        rows: int tensor of shape (..., values). 0 is padding.

    Returns:
        float tensor of shape (..., dim). Zeros without values.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, embedded, rows):
        count = ops.sum(ops.cast(ops.not_equal(rows, 0), embedded.dtype), axis=-1, keepdims=True)
        return ops.sum(embedded, axis=-2) / ops.maximum(count, 1.0)

    def compute_output_spec(self, embedded, rows):
        return keras.KerasTensor((*embedded.shape[:-2], embedded.shape[-1]), embedded.dtype)


@tf.custom_gradient
def _repeat(rows, positions):
    """Gathers rows; the gradients of equal positions are summed before they are sent."""

    def gradient(upstream):
        return tf.math.unsorted_segment_sum(upstream, positions, tf.shape(rows)[0]), None

    return tf.gather(rows, positions), gradient


def _parameter_servers():
    """Number of parameter servers of the strategy in scope, 0 for other strategies."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        return 0
    # The strategy's `cluster_resolver` is None, but each server has one CPU.
    return sum("/job:ps/" in cpu.name for cpu in tf.config.list_logical_devices("CPU"))
