"""Short-term interest of each candidate: DiffuMIN's Transformer([e_1 .. e_k, e_s])[-1] (eq. 21)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.search import newest_positions


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetTransformer(keras.layers.Layer):
    """The target's row of one post-norm encoder block over the newest behaviors and the target.

    No other row of the block is read, so there is one query per candidate. Keys and values are
    never made: their projections are applied to the query and to the weighted mean of the
    behaviors instead, and the candidates share the behaviors as they are.

    Args:
        length: Number of newest behaviors, k.
        heads: Number of attention heads; must divide d.

    Call arguments:
        history: (batch, length of the history, d), newest last, padded on the right.
        target: (batch, candidates, d).
        history_mask: bool (batch, length of the history), True = real.

    Returns:
        (batch, candidates, d). Without behaviors a target attends to itself alone.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, length, heads=2, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(length=length, heads=heads)
        self.length = length
        self.heads = heads

    def build(self, history_shape, target_shape=None):
        dim = history_shape[-1]
        if dim % self.heads:
            raise ValueError(
                f"`heads` must divide the width of the behaviors. Received: heads={self.heads}, "
                f"width {dim}"
            )

        def dense(units, **kwargs):
            return keras.layers.Dense(units, dtype=self.dtype_policy, **kwargs)

        def norm():
            # Embeddings start so small that the usual 1e-3 would outweigh their variance.
            return keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy)

        # In the order of the sequence: e_1 .. e_k, e_s.
        self.positions = self.add_weight(
            name="positions",
            shape=(self.length + 1, dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.query = dense(dim)
        # A bias of the keys cancels in the softmax, one of the values is part of the output's.
        self.key_kernel = self.add_weight(name="key_kernel", shape=(dim, dim))
        self.value_kernel = self.add_weight(name="value_kernel", shape=(dim, dim))
        self.attention_output = dense(dim)
        self.attention_norm = norm()
        self.feed_forward = dense(3 * dim, activation="relu")
        self.feed_forward_output = dense(dim)
        self.feed_forward_norm = norm()
        for layer in (self.query, self.attention_output, self.feed_forward):
            layer.build((None, None, dim))
        self.feed_forward_output.build((None, None, 3 * dim))
        self.attention_norm.build((None, None, dim))
        self.feed_forward_norm.build((None, None, dim))

    def call(self, history, target, history_mask):
        behaviors, mask = newest(history, history_mask, self.length)
        behaviors += self.positions[self.length - tf.shape(behaviors)[1] : -1]
        target += self.positions[-1]
        x = self.attention_norm(
            target + self.attention_output(self._attend(behaviors, target, mask))
        )
        return self.feed_forward_norm(x + self.feed_forward_output(self.feed_forward(x)))

    def _attend(self, behaviors, target, mask):
        """Multi-head attention of each target over the behaviors and itself."""
        batch, candidates, dim = ops.shape(target)
        shape = (dim, self.heads, dim // self.heads)
        query = ops.reshape(self.query(target), (batch, candidates, *shape[1:]))
        # q_h . (W_h e) = (W_h^T q_h) . e, and the values' projection is linear as well
        query = ops.einsum("bnhe,dhe->bnhd", query, ops.reshape(self.key_kernel, shape))
        query /= (dim // self.heads) ** 0.5

        scores = ops.cast(ops.einsum("bnhd,bkd->bnhk", query, behaviors), "float32")
        scores = ops.where(mask[:, None, None], scores, float("-inf"))
        own_score = ops.cast(ops.einsum("bnhd,bnd->bnh", query, target), "float32")
        weights = tf.nn.softmax(ops.concatenate([scores, own_score[..., None]], axis=-1))
        weights = ops.cast(weights, self.compute_dtype)  # (batch, candidates, heads, k + 1)

        mixed = ops.einsum("bnhk,bkd->bnhd", weights[..., :-1], behaviors)
        mixed += weights[..., -1:] * target[:, :, None]
        attended = ops.einsum("bnhd,dhe->bnhe", mixed, ops.reshape(self.value_kernel, shape))
        return ops.reshape(attended, (batch, candidates, dim))

    def compute_output_spec(self, history, target, *_):
        return keras.KerasTensor(target.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "length": self.length, "heads": self.heads}


def newest(history, history_mask, length):
    """The newest behaviors of each history, aligned on the right: the last one is the newest.

    Args:
        history: (batch, l, d), newest last, padded on the right.
        history_mask: bool (batch, l), True = real.
        length: How many, k.

    Returns:
        (batch, min(k, l), d) and its bool mask (batch, min(k, l)), padded on the left.
    """
    positions, real = newest_positions(history_mask, length)
    return tf.gather(history, positions, batch_dims=1), real
