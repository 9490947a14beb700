"""Features of behaviors alone: time intervals (SIM), cross features (TWIN), sizes (TWIN-V2)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.embedding import NumberEmbedding, TableEmbedding
from tfrec_diffusion.schema import FIRST_INDEX


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class BehaviorFeatureEmbedding(keras.layers.Layer):
    """Embeds the features of behaviors with one table each and concatenates the embeddings.

    Args:
        rows: dict of str to int or dict. Number of rows of each feature's table, in the order of
            the output; of a number that is not looked up, the arguments `mean` and `deviation` of
            `NumberEmbedding`.
        dim: int. Width of each embedding. Defaults to `8`.
        stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.

    Call arguments:
        features: dict of str to int or float tensor of shape (..., k). Rows of the tables, 0 is
            padding; or numbers.

    Returns:
        float tensor of shape (..., k, dim * number of features).
    """

    def __init__(self, rows, dim=8, stddev=0.01, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(dim=dim)
        self.rows = dict(rows)
        self.dim = dim
        self.stddev = stddev
        self.tables = {name: self._make_table(name) for name in self.rows}

    def _make_table(self, name):
        rows, common = self.rows[name], {"dtype": self.dtype_policy, "name": name}
        if isinstance(rows, dict):
            return NumberEmbedding(self.dim, stddev=self.stddev, **rows, **common)
        return TableEmbedding(rows, self.dim, self.stddev, **common)

    def build(self, input_shape=None):
        for table in self.tables.values():
            table.build()

    def call(self, features):
        return ops.concatenate([table(features[n]) for n, table in self.tables.items()], axis=-1)

    def compute_output_spec(self, features):
        shape = next(iter(features.values())).shape
        return keras.KerasTensor((*shape, self.dim * len(self.rows)), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class AddBehaviorFeatures(keras.layers.Layer):
    """Adds a linear map of their embedded features to behaviors.

    Call arguments:
        history: float tensor of shape (..., k, d).
        embedded: float tensor of shape (..., k, dim), from `BehaviorFeatureEmbedding`.

    Returns:
        float tensor of shape (..., k, d).
    """

    def build(self, history_shape, embedded_shape):
        self.kernel = self.add_weight(name="kernel", shape=(embedded_shape[-1], history_shape[-1]))

    def call(self, history, embedded):
        return history + ops.matmul(embedded, self.kernel)

    def compute_output_spec(self, history, embedded):
        return keras.KerasTensor(history.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class CrossBias(keras.layers.Layer):
    """Attention bias from cross features: what a user did with an item says how much it counts.

    [K_c,1 w_1 .. K_c,J w_J] beta: the embedding of each of the J features is mapped to one number,
    and each head adds these numbers with weights of its own. The candidate plays no part.

    Args:
        num_features: int. Number of features J.
        num_heads: int. Number of attention heads. Defaults to `4`.

    Call arguments:
        embedded: float tensor of shape (..., k, J * dim), from `BehaviorFeatureEmbedding`.

    Returns:
        float tensor of shape (..., k, num_heads), to be added to the products of query and key.

    Reference:
        Chang et al., KDD 2023, eq. 4-5: https://arxiv.org/abs/2302.02352
    """

    def __init__(self, num_features, num_heads=4, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(num_features=num_features, num_heads=num_heads)
        self.num_features = num_features
        self.num_heads = num_heads

    def build(self, embedded_shape):
        self.feature_kernel = self.add_weight(
            name="w", shape=(self.num_features, embedded_shape[-1] // self.num_features)
        )
        self.head_kernel = self.add_weight(name="beta", shape=(self.num_features, self.num_heads))

    def call(self, embedded):
        shape = (*ops.shape(embedded)[:-1], *self.feature_kernel.shape)
        numbers = ops.sum(ops.reshape(embedded, shape) * self.feature_kernel, axis=-1)
        return ops.matmul(numbers, self.head_kernel)

    def compute_output_spec(self, embedded):
        return keras.KerasTensor((*embedded.shape[:-1], self.num_heads), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LogSize(keras.layers.Layer):
    """Attention bias ln n of a cluster of n behaviors (TWIN-V2).

    Args:
        boundaries: tuple of float. The boundaries 2, 3, .. of the table of sizes: row 2 stands for
            a cluster of one behavior, row 3 + i for a cluster of `boundaries[i]`.

    Call arguments:
        rows: int tensor of shape (..., k). Rows of the table of sizes.

    Returns:
        float32 tensor of shape (..., k, 1), to be added to the products of query and key. 0 for
        padding.

    Raises:
        ValueError: If `boundaries` are not 2, 3, ..
    """

    def __init__(self, boundaries, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.boundaries = tuple(boundaries)
        if self.boundaries != tuple(range(2, 2 + len(self.boundaries))):
            raise ValueError(f"`boundaries` of sizes must be 2, 3, .. Received: {self.boundaries}")

    def call(self, rows):
        table = np.log([*[1.0] * (FIRST_INDEX + 1), *self.boundaries]).astype("float32")
        return tf.gather(table, rows)[..., None]

    def compute_output_spec(self, rows):
        return keras.KerasTensor((*rows.shape, 1), "float32")
