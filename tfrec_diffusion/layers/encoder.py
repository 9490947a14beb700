"""Transformer encoders of the newest behaviors (HierDiffuse, section 3.1: f_L and f_S)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import layer_norm, unit_scale
from tfrec_diffusion.layers.pooling import masked_mean
from tfrec_diffusion.layers.transformer import newest


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class BehaviorEncoder(keras.layers.Layer):
    """Encodes the newest behaviors with self-attention in post-norm Transformer blocks.

    The embeddings of positions are counted from the newest behavior. With l behaviors in the
    longest history, k = min(`length`, l) behaviors of each history are encoded.

    Args:
        length: int. Number of newest behaviors.
        num_heads: int. Number of attention heads, a divisor of d. Defaults to `2`.
        num_blocks: int. Number of Transformer blocks. Defaults to `1`.

    Call arguments:
        history: float tensor of shape (batch, l, d), newest last, padded on the right.
        history_mask: bool tensor of shape (batch, l), True = real.
        sessions: int tensor of shape (batch, k), or `None`. Number of each behavior's session.
            Behaviors attend to those of the same session only. Defaults to `None`: to all.

    Returns:
        Encoded behaviors, float tensor of shape (batch, k, d), newest last, and their mask, bool
        tensor of shape (batch, k). Both are padded on the left.
    """

    def __init__(self, length, num_heads=2, num_blocks=1, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(length=length, num_heads=num_heads, num_blocks=num_blocks)
        self.length = length
        self.num_heads = num_heads
        self.num_blocks = num_blocks

    def build(self, history_shape):
        dim = history_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the width of the behaviors. "
                f"Received: num_heads={self.num_heads}, width {dim}"
            )
        self.positions = self.add_weight(
            name="positions",
            shape=(self.length, dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.blocks = [
            _Block(self.num_heads, dtype=self.dtype_policy) for _ in range(self.num_blocks)
        ]
        for block in self.blocks:
            block.build((None, None, dim))

    def call(self, history, history_mask, sessions=None):
        behaviors, real = newest(history, history_mask, self.length)
        attended = real[:, None]
        if sessions is not None:
            attended = attended & ops.equal(sessions[:, :, None], sessions[:, None])
        return self.encode(behaviors, attended), real

    def encode(self, behaviors, attended):
        """Encodes behaviors that are padded on the left, as `newest` returns them.

        Args:
            behaviors: float tensor of shape (batch, k, d), newest last. k is at most `length`.
            attended: bool tensor of shape (batch, 1 or k, k). Which behaviors each one attends to.

        Returns:
            float tensor of shape (batch, k, d).
        """
        behaviors += self.positions[self.length - tf.shape(behaviors)[1] :]
        for block in self.blocks:
            behaviors = block(behaviors, attended)
        return behaviors

    def compute_output_spec(self, history, history_mask, sessions=None):
        batch, _, dim = history.shape
        return (
            keras.KerasTensor((batch, None, dim), self.compute_dtype),
            keras.KerasTensor((batch, None), "bool"),
        )


class _Block(keras.layers.Layer):
    """Post-norm Transformer block."""

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, shape):
        dim = shape[-1]

        def dense(units, **kwargs):
            return keras.layers.Dense(units, dtype=self.dtype_policy, **kwargs)

        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads, dim // self.num_heads, dtype=self.dtype_policy
        )
        self.attention.build(shape, shape)
        self.feed_forward, self.feed_forward_output = dense(3 * dim, activation="relu"), dense(dim)
        self.feed_forward.build(shape)
        self.feed_forward_output.build((*shape[:-1], 3 * dim))
        self.attention_norm = layer_norm(self.dtype_policy)
        self.feed_forward_norm = layer_norm(self.dtype_policy)
        self.attention_norm.build(shape)
        self.feed_forward_norm.build(shape)

    def call(self, x, attended):
        x = self.attention_norm(x + self.attention(x, x, attention_mask=attended))
        return self.feed_forward_norm(x + self.feed_forward_output(self.feed_forward(x)))


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LongTermEncoder(keras.layers.Layer):
    """Long-term interest h^L = f_L(B^L): the mean of the encoded behaviors.

    It has mean 0 and variance 1 over its components, the scale that the diffusion works at.

    Args:
        length: int. Number of newest behaviors. Defaults to `200`.
        num_heads: int. Number of attention heads, a divisor of d. Defaults to `2`.
        num_blocks: int. Number of Transformer blocks. Defaults to `1`.

    Call arguments:
        history: float tensor of shape (batch, l, d), newest last, padded on the right.
        history_mask: bool tensor of shape (batch, l), True = real.

    Returns:
        float tensor of shape (batch, d). Zeros without behaviors.
    """

    def __init__(self, length=200, num_heads=2, num_blocks=1, **kwargs):
        super().__init__(**kwargs)
        self.encoder = BehaviorEncoder(length, num_heads, num_blocks, dtype=self.dtype_policy)
        self.length = length
        self.num_heads = num_heads
        self.num_blocks = num_blocks

    def build(self, history_shape):
        self.encoder.build(history_shape)

    def call(self, history, history_mask):
        behaviors, real = self.encoder(history, history_mask)
        return unit_scale(masked_mean(behaviors, real))

    def compute_output_spec(self, history, history_mask):
        return keras.KerasTensor((history.shape[0], history.shape[-1]), self.compute_dtype)
