"""Short-term interest of a Transformer over the newest behaviors (DiffuMIN, 3.6, eq. 21)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import layer_norm
from tfrec_diffusion.layers.search import newest_positions


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetTransformer(keras.layers.Layer):
    """Transformer([e_1 .. e_k, e_s])[-1] of the newest behaviors e_1 .. e_k and a target e_s.

    This is the target's row of one post-norm Transformer block. The other rows are not needed, so
    there is only one query per candidate. Keys and values are not computed: their projections are
    applied to the query and to the weighted mean of the behaviors, and all candidates of a request
    share the behaviors.

    Args:
        length: int. Number k of newest behaviors.
        num_heads: int. Number of attention heads, a divisor of d. Defaults to `2`.

    Call arguments:
        history: float tensor of shape (batch, l, d), newest last, padded on the right.
        target: float tensor of shape (batch, candidates, d).
        history_mask: bool tensor of shape (batch, l), True = real.

    Returns:
        float tensor of shape (batch, candidates, d). Without behaviors, a target attends to itself
        alone.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, length, num_heads=2, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(length=length, num_heads=num_heads)
        self.length = length
        self.num_heads = num_heads

    def build(self, history_shape, target_shape=None):
        dim = history_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the width of the behaviors. "
                f"Received: num_heads={self.num_heads}, width {dim}"
            )

        def dense(units, **kwargs):
            return keras.layers.Dense(units, dtype=self.dtype_policy, **kwargs)

        # In the order of the sequence: e_1 .. e_k, e_s.
        self.positions = self.add_weight(
            name="positions",
            shape=(self.length + 1, dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.query = dense(dim)
        # A bias of the keys would cancel in the softmax, and one of the values would add to the
        # bias of the output.
        self.key_kernel = self.add_weight(name="key_kernel", shape=(dim, dim))
        self.value_kernel = self.add_weight(name="value_kernel", shape=(dim, dim))
        self.attention_output = dense(dim)
        self.attention_norm = layer_norm(self.dtype_policy)
        self.feed_forward = dense(3 * dim, activation="relu")
        self.feed_forward_output = dense(dim)
        self.feed_forward_norm = layer_norm(self.dtype_policy)
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
        shape = (dim, self.num_heads, dim // self.num_heads)
        query = ops.reshape(self.query(target), (batch, candidates, *shape[1:]))
        # q_h . (W_h e) = (W_h^T q_h) . e, and the projection of the values is linear as well.
        query = ops.einsum("bnhe,dhe->bnhd", query, ops.reshape(self.key_kernel, shape))
        query /= (dim // self.num_heads) ** 0.5

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


def newest(history, history_mask, length):
    """The newest behaviors of each history, newest last and padded on the left.

    Args:
        history: tensor of shape (batch, l, ...), newest last, padded on the right.
        history_mask: bool tensor of shape (batch, l), True = real.
        length: int. Number k of behaviors.

    Returns:
        Behaviors, tensor of shape (batch, min(k, l), ...), and their mask, bool tensor of shape
        (batch, min(k, l)).
    """
    positions, real = newest_positions(history_mask, length)
    return tf.gather(history, positions, batch_dims=1), real
