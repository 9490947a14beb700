"""DiffuMIN's guided denoiser, epsilon_theta(r_{i,t}, t, g_1, g_2) (eq. 14-17)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers

_EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DenoiserBlock(keras.layers.Layer):
    """Post-norm Transformer block: self-attention, then guidance by a channel, then feed-forward.

    Many independent problems at once, of a few tokens each.

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
            layer = keras.layers.LayerNormalization(epsilon=_EPSILON, dtype=self.dtype_policy)
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

    def fold(self, channel=None):
        """The weights as `call` needs them, made once for all steps.

        But for the division by a deviation, norms are linear: they are part of the kernels around
        them. A bias of the keys adds the same to all scores of a query, which the softmax does not
        see; one of the values passes through it, and is part of the output's.

        Args:
            channel: With `channel_guidance`, that of each problem, (problems, d).

        Returns:
            dict of tensors.
        """
        dim = self.out.units
        center = ops.eye(dim, dtype=self.compute_dtype) - 1 / dim
        temperature = (dim // self.num_heads) ** -0.5
        key, value = ops.split(self.key_value.kernel, 2, axis=1)
        value_bias = self.key_value.bias[dim:]
        folded = {
            "query": self.query.kernel * temperature,
            "query_bias": self.query.bias * temperature,
            "key": key,
            "value": value,
            "out": ops.matmul(self.out.kernel, center),
            "out_bias": ops.matmul(ops.matmul(value_bias, self.out.kernel) + self.out.bias, center),
        }
        norm = self.attention_norm
        if self.channel_guidance:
            guide = apply(self.guide_out, apply(self.guide_value, channel))
            folded["unguided"] = norm.gamma[:, None] * center
            folded["guide"] = ops.matmul(norm.beta + guide, center)
            norm = self.guide_norm
        return folded | {
            "ffn_in": norm.gamma[:, None] * self.ffn_in.kernel,
            "ffn_in_bias": ops.matmul(norm.beta, self.ffn_in.kernel) + self.ffn_in.bias,
            "ffn_out": ops.matmul(self.ffn_out.kernel, center),
            "ffn_out_bias": ops.matmul(norm.beta + self.ffn_out.bias, center),
            "ffn_residual": norm.gamma[:, None] * center,
            "scale": ops.convert_to_tensor(self.ffn_norm.gamma),
            "shift": ops.convert_to_tensor(self.ffn_norm.beta),
        }

    def call(self, asking, tokens, folded):
        """One block.

        Args:
            asking: The tokens that are read back, (queries, problems, d).
            tokens: All tokens, (tokens, problems, d).
            folded: Of `fold`.

        Returns:
            As `asking`.
        """
        queries, _, dim = asking.shape
        keys = tokens.shape[0]
        asking, tokens = (ops.reshape(x, (-1, dim)) for x in (asking, tokens))
        # Self-attention, eq. 14-15.
        attended = self._attend(
            ops.reshape(_linear(asking, folded["query"], folded["query_bias"]), (queries, -1)),
            ops.reshape(_linear(tokens, folded["key"]), (keys, -1)),
            ops.reshape(_linear(tokens, folded["value"]), (keys, -1)),
        )
        x = asking - _mean(asking) + _linear(attended, folded["out"], folded["out_bias"])
        x = _divide_by_deviation(x)
        if self.channel_guidance:  # eq. 16-17
            x = ops.reshape(_linear(x, folded["unguided"]), (queries, -1))
            x = ops.reshape(x + ops.reshape(folded["guide"], (-1,)), (-1, dim))
            x = _divide_by_deviation(x)
        hidden = ops.relu(_linear(x, folded["ffn_in"], folded["ffn_in_bias"]))
        hidden = _linear(hidden, folded["ffn_out"], folded["ffn_out_bias"])
        x = _divide_by_deviation(_linear(x, folded["ffn_residual"]) + hidden)
        return ops.reshape(x * folded["scale"] + folded["shift"], (queries, -1, dim))

    def _attend(self, query, key, value):
        """softmax(Q K^T) V in each head: (tokens, problems * d) each, to (queries * problems, d).

        One key after another, for all problems at once: with a few tokens each, a product for each
        problem would cost more in calls than in arithmetic.
        """
        dim = self.out.units
        heads = np.kron(np.eye(self.num_heads), np.ones((dim // self.num_heads, 1)))
        heads = ops.convert_to_tensor(heads, query.dtype)  # (d, heads)
        scores = [_linear(ops.reshape(query * k, (-1, dim)), heads) for k in tf.unstack(key)]
        weights = ops.stack(scores)  # (keys, queries * problems, heads)
        weights = ops.exp(weights - tf.reduce_max(weights, axis=0))
        weights = tf.unstack(weights / ops.sum(weights, axis=0))
        weights = [
            ops.reshape(_linear(w, ops.transpose(heads)), (query.shape[0], -1)) for w in weights
        ]
        attended = tf.add_n([w * v for w, v in zip(weights, tf.unstack(value), strict=True)])
        return ops.reshape(attended, (-1, dim))

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
    of sampling is made once, by `condition`. The tokens are (c, problems, d): what a step does is
    done for all problems at once, in long runs of memory.

    Args:
        num_blocks: Number of `DenoiserBlock`s.
        num_heads, ffn_factor: Of each.
        context_guidance: Whether the other interests are among the tokens (not in variants W, Y).
        channel_guidance: Whether the channel guides (not in variants X, Y).

    Call arguments:
        x: float (rows, c, d).
        time: `embed_time` of the steps of x: (rows, c, d) or (1, 1, d).
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
        c, dim = interests.shape[1:]
        others = [[k for k in range(c) if k != i and self.context_guidance] for i in range(c)]
        others = np.array(others, "int32").reshape(c, -1)
        context = ops.take(interests, others, axis=1)  # (rows, c, c - 1, d)
        channels = ops.reshape(channels, (-1, dim))
        # (c - 1, problems, d); of no context, -1 could be any number
        context = ops.reshape(
            ops.moveaxis(context, 2, 0), (others.shape[1], ops.shape(channels)[0], dim)
        )
        return context, [block.fold(channels) for block in self.blocks]

    def call(self, x, time, condition):
        context, folded = condition
        dim = x.shape[-1]
        noised = ops.reshape(x, (1, -1, dim))
        tokens = ops.concatenate([noised, context], axis=0) + ops.reshape(time, (-1, dim))
        for block, weights in zip(self.blocks[:-1], folded[:-1], strict=True):
            tokens = block(tokens, tokens, weights)
        noised = self.blocks[-1](tokens[:1], tokens, folded[-1])
        return ops.reshape(apply(self.noise, noised), ops.shape(x))

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


def _divide_by_deviation(x):
    """Rows of mean 0, to a variance of 1."""
    return x * ops.rsqrt(_mean(ops.square(x)) + _EPSILON)


def _mean(x):
    # A sum along rows as short as these costs more than a product.
    return _linear(x, ops.full((x.shape[1], 1), 1 / x.shape[1], x.dtype))


def _linear(rows, kernel, bias=None):
    outputs = ops.matmul(rows, kernel)
    return outputs if bias is None else tf.nn.bias_add(outputs, bias)


def apply(dense, inputs):
    """A Dense layer on (..., d), as one product.

    Keras's own way to more than two axes cannot be compiled by XLA in a loop's gradient.
    """
    rows = dense(ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(rows, (*ops.shape(inputs)[:-1], dense.units))
