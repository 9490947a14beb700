"""DiffuMIN's guided denoiser, epsilon_theta(r_{i,t}, t, g_1, g_2) (eq. 14-17)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DenoiserBlock(keras.layers.Layer):
    """Post-norm Transformer block: self-attention, then guidance by a channel, then feed-forward.

    Cross-attention to one key has the softmax weight 1, whatever the query: it is a linear map of
    the channel. Its query and key projections have no effect and are left out (eq. 16-17).

    Args:
        num_heads: Heads of self-attention; they divide d.
        ffn_factor: Width of the feed-forward layer against d.
        channel_guidance: Whether there is guidance by a channel.
    """

    def __init__(self, num_heads=2, ffn_factor=3, channel_guidance=True, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.ffn_factor = ffn_factor
        self.channel_guidance = channel_guidance

    def build(self, dim):
        if dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of an interest, {dim}. "
                f"Received: num_heads={self.num_heads}"
            )

        def dense(rows, columns, activation=None):
            layer = keras.layers.Dense(columns, activation, dtype=self.dtype_policy)
            layer.build((None, rows))
            return layer

        def norm():
            layer = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy)
            layer.build((None, dim))
            return layer

        self.query, self.key_value = dense(dim, dim), dense(dim, 2 * dim)
        self.out, self.attention_norm = dense(dim, dim), norm()
        if self.channel_guidance:
            self.guide_value, self.guide_out, self.guide_norm = (
                dense(dim, dim),
                dense(dim, dim),
                norm(),
            )
        self.ffn_in = dense(dim, self.ffn_factor * dim, "relu")
        self.ffn_out, self.ffn_norm = dense(self.ffn_factor * dim, dim), norm()

    def guide(self, channel):
        """What cross-attention to `channel` adds to every token: (..., d) to (..., d)."""
        return apply(self.guide_out, apply(self.guide_value, channel))

    def call(self, tokens, query, key_value, guide):
        """One block.

        Args:
            tokens: Those that ask, (rows, problems, queries, d).
            query: Their queries, of the same shape.
            key_value: (rows, problems, tokens, 2 d).
            guide: `guide` of each problem's channel, (rows, problems, 1, d), or `None`.

        Returns:
            As `tokens`.
        """
        attended = apply(self.out, self._attend(query, key_value))
        tokens = _normalize(self.attention_norm, tokens + attended, guide)
        if self.channel_guidance:
            tokens = _normalize(self.guide_norm, tokens)
        return _normalize(self.ffn_norm, tokens + apply(self.ffn_out, apply(self.ffn_in, tokens)))

    def _attend(self, query, key_value):
        # The problems of a row share one product, and a mask keeps them apart: a product of a few
        # tokens for each would cost more in calls than in arithmetic.
        problems, queries, keys = query.shape[1], query.shape[2], key_value.shape[2]
        key, value = ops.split(key_value, 2, axis=-1)
        query, key, value = (self._split_heads(tensor) for tensor in (query, key, value))
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) * query.shape[-1] ** -0.5
        apart = np.kron(np.eye(problems), np.ones((queries, keys))) == 0
        weights = tf.nn.softmax(scores + ops.cast(np.where(apart, -1e9, 0), scores.dtype))
        attended = ops.swapaxes(ops.matmul(weights, value), 1, 2)
        return ops.reshape(attended, (-1, problems, queries, self.out.units))

    def _split_heads(self, tensor):
        """(rows, problems, tokens, d) to (rows, heads, problems * tokens, d / heads)."""
        _, problems, tokens, dim = tensor.shape
        shape = (-1, problems * tokens, self.num_heads, dim // self.num_heads)
        return ops.swapaxes(ops.reshape(tensor, shape), 1, 2)

    def get_config(self):
        config = {
            "num_heads": self.num_heads,
            "ffn_factor": self.ffn_factor,
            "channel_guidance": self.channel_guidance,
        }
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class GuidedDenoiser(keras.layers.Layer):
    """Predicts the noise in each x_i = r_{i,t} from the other interests and from the channel o_i.

    Each of the c noised interests is a problem of its own, with the tokens
    [r_{i,t}, r_1 .. r_{i-1}, r_{i+1} .. r_c]; the order does not matter, as no position is known.
    Only the first is read back, so it alone asks in the last block. What is the same in all steps
    of sampling is made once, by `condition`.

    Args:
        num_blocks: Number of `DenoiserBlock`s.
        num_heads, ffn_factor: Of each.
        context_guidance: Whether the other interests are among the tokens (not in variants W, Y).
        channel_guidance: Whether the channel guides (not in variants X, Y).

    Call arguments:
        x: float (rows, c, d).
        time: `embed_time` of the steps of x: (rows or 1, c or 1, d).
        condition: Of `condition`.

    Returns:
        The predicted noise, (rows, c, d).

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(
        self,
        num_blocks=2,
        num_heads=2,
        ffn_factor=3,
        context_guidance=True,
        channel_guidance=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive_integers(num_blocks=num_blocks, num_heads=num_heads, ffn_factor=ffn_factor)
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.ffn_factor = ffn_factor
        self.context_guidance = context_guidance
        self.channel_guidance = channel_guidance
        self.blocks = [
            DenoiserBlock(num_heads, ffn_factor, channel_guidance, dtype=self.dtype_policy)
            for _ in range(num_blocks)
        ]
        self.time_layers = []

    def build(self, dim):
        self.time_layers = [
            keras.layers.Dense(dim, "swish", dtype=self.dtype_policy),
            keras.layers.Dense(dim, dtype=self.dtype_policy),
        ]
        self.noise = keras.layers.Dense(dim, dtype=self.dtype_policy)
        for layer in (*self.time_layers, self.noise):
            layer.build((None, dim))
        for block in self.blocks:
            block.build(dim)

    def embed_time(self, t):
        """`sinusoids` of t, then an MLP: (..., n) to (..., n, d)."""
        embedded = sinusoids(t, self.noise.units)
        for layer in self.time_layers:
            embedded = layer(embedded)
        return embedded

    def condition(self, interests, channels):
        """g_1 and g_2 as `call` needs them, from r and o, both (rows, c, d)."""
        c = interests.shape[1]
        others = [[k for k in range(c) if k != i and self.context_guidance] for i in range(c)]
        others = np.array(others, "int32").reshape(c, -1)
        first = self.blocks[0]
        context = [interests, apply(first.query, interests), apply(first.key_value, interests)]
        # each (rows, c, c - 1, ...)
        context = [ops.take(tensor, others, axis=1) for tensor in context]
        guides = [
            block.guide(channels)[:, :, None] if self.channel_guidance else None
            for block in self.blocks
        ]
        return context, guides

    def call(self, x, time, condition):
        (interests, query, key_value), guides = condition
        first = self.blocks[0]
        x = (x + time)[:, :, None]
        time = time[:, :, None]
        tokens = _with_noised_first(x, interests + time)  # (rows, c, c, d)
        # Projections are linear: those of the time are added to those of the context.
        query = query + ops.matmul(time, first.query.kernel)
        query = _with_noised_first(apply(first.query, x), query)
        key_value = key_value + ops.matmul(time, first.key_value.kernel)
        key_value = _with_noised_first(apply(first.key_value, x), key_value)
        for i, (block, guide) in enumerate(zip(self.blocks, guides, strict=True)):
            if i > 0:
                key_value = apply(block.key_value, tokens)
            if i == self.num_blocks - 1:
                tokens = tokens[:, :, :1]
            query = query[:, :, : tokens.shape[2]] if i == 0 else apply(block.query, tokens)
            tokens = block(tokens, query, key_value, guide)
        return apply(self.noise, tokens[:, :, 0])

    def get_config(self):
        config = {
            "num_blocks": self.num_blocks,
            "num_heads": self.num_heads,
            "ffn_factor": self.ffn_factor,
            "context_guidance": self.context_guidance,
            "channel_guidance": self.channel_guidance,
        }
        return {**super().get_config(), **config}


def sinusoids(t, dim):
    """Positional encoding of steps (Vaswani et al., 2017, 3.5): (...) to float32 (..., dim)."""
    frequencies = 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    angles = ops.cast(t, "float32")[..., None] * ops.cast(frequencies, "float32")
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)[..., :dim]


def _with_noised_first(noised, others):
    return ops.concatenate([noised, others], axis=2)


def _normalize(norm, tokens, guide=None):
    """`norm` of the tokens, plus the guide."""
    centered = tokens - _mean(tokens)
    scale = ops.rsqrt(_mean(ops.square(centered)) + norm.epsilon)
    shift = norm.beta if guide is None else norm.beta + guide
    return centered * scale * norm.gamma + shift


def _mean(inputs):
    # A sum along rows as short as these costs more than a product.
    dim = inputs.shape[-1]
    means = ops.matmul(ops.reshape(inputs, (-1, dim)), ops.full((dim, 1), 1 / dim, inputs.dtype))
    return ops.reshape(means, (*ops.shape(inputs)[:-1], 1))


def apply(dense, inputs):
    """A Dense layer on (..., d), as one product.

    Keras's own way to more than two axes cannot be compiled by XLA in a loop's gradient.
    """
    rows = dense(ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(rows, (*ops.shape(inputs)[:-1], dense.units))
