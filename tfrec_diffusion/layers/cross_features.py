"""What is known of behaviors alone: SIM's time intervals, TWIN's cross features."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.embedding import TableEmbedding
from tfrec_diffusion.schema import FIRST_INDEX


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class BehaviorFeatureEmbedding(keras.layers.Layer):
    """Embeds behavior features, each with a table of its own, side by side.

    Args:
        rows: dict of each feature's name to the number of rows of its table.
        dim: Width of each embedding.
        stddev: Standard deviation of the initial embeddings.

    Call arguments:
        features: dict of int (..., k), rows of the tables; 0 is padding.

    Returns:
        (..., k, dim * features).
    """

    def __init__(self, rows, dim=8, stddev=0.01, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(dim=dim)
        self.rows = dict(rows)
        self.dim = dim
        self.stddev = stddev
        self.tables = {
            name: TableEmbedding(count, dim, stddev, dtype=self.dtype_policy, name=name)
            for name, count in self.rows.items()
        }

    def build(self, input_shape=None):
        for table in self.tables.values():
            table.build()

    def call(self, features):
        return ops.concatenate([table(features[n]) for n, table in self.tables.items()], axis=-1)

    def compute_output_spec(self, features):
        shape = next(iter(features.values())).shape
        return keras.KerasTensor((*shape, self.dim * len(self.rows)), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "rows": self.rows, "dim": self.dim, "stddev": self.stddev}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class CrossBias(keras.layers.Layer):
    """TWIN's cross features: each is brought to one number, and weighted by each head.

    [K_c,1 w_1 .. K_c,J w_J] beta: what a user did with an item says how much it weighs, for any
    candidate.

    Args:
        num_features: J.
        num_heads: Heads of the attention.

    Call arguments:
        embedded: (..., k, J * dim), as of `BehaviorFeatureEmbedding`.

    Returns:
        (..., k, num_heads), to be added to the products of query and key.

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

    def get_config(self):
        config = {"num_features": self.num_features, "num_heads": self.num_heads}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LogSize(keras.layers.Layer):
    """TWIN-V2's ln n of clusters, from rows of a table of sizes.

    Args:
        boundaries: Of the table, 2, 3, ..: row 2 is a size of 1, row 3 + i one of boundaries[i].

    Call arguments:
        rows: int (..., k).

    Returns:
        float32 (..., k, 1), to be added to the products of query and key; 0 for padding.
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

    def get_config(self):
        return {**super().get_config(), "boundaries": self.boundaries}
