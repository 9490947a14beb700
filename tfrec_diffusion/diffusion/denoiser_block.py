"""The Transformer block of the denoisers (DiffuMIN, eq. 14-17)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

_EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DenoiserBlock(keras.layers.Layer):
    """Post-norm Transformer block: self-attention, then guidance by a channel, then feed-forward.

    The block works on many independent problems at once, each of a few tokens.

    The guidance is cross-attention to a single key, the channel. Its softmax weight is 1 for every
    query, so that the cross-attention is a linear map of the channel. The query and key projections
    of eq. 16-17 would have no effect and are left out.

    Args:
        num_heads: int. Number of heads of the self-attention. Must divide d. Defaults to `2`.
        ffn_factor: int. Width of the feed-forward layer as a multiple of d. Defaults to `3`.
        channel_guidance: bool. Whether a channel guides the block. Defaults to `True`.

    Call arguments:
        asking: float tensor of shape (queries, problems, d). The tokens whose outputs are needed.
        tokens: float tensor of shape (tokens, problems, d). All tokens of each problem.
        folded: dict of tensors. What `fold` returned.

    Returns:
        float tensor of shape (queries, problems, d).
    """

    def __init__(self, num_heads=2, ffn_factor=3, channel_guidance=True, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.ffn_factor = ffn_factor
        self.channel_guidance = channel_guidance

    def build(self, input_shape):
        dim = input_shape[-1]
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
            self.guide_value, self.guide_out = dense(dim, dim), dense(dim, dim)
            self.guide_norm = norm()
        self.ffn_in = dense(dim, self.ffn_factor * dim, "relu")
        self.ffn_out, self.ffn_norm = dense(self.ffn_factor * dim, dim), norm()

    def fold(self, channel=None):
        """Combines the weights into those that `call` needs, once for all steps of sampling.

        A layer normalization is linear except for the division by the standard deviation. Its
        linear part is folded into the kernels before and after it. The bias of the keys adds the
        same number to all scores of a query, which does not change the softmax, and is left out.
        The bias of the values passes through the attention unchanged and is folded into the bias of
        the output.

        Args:
            channel: float tensor of shape (problems, d) or `None`. The channel that guides each
                problem; only used with `channel_guidance`. Defaults to `None`.

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
        """softmax(Q K^T) V in each head: from (tokens, problems * d) to (queries * problems, d).

        The loop is over the keys, and each step is done for all problems at once. A problem has so
        few tokens that a matrix product for each problem would mostly be overhead.
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


def apply(dense, inputs):
    """Applies a Dense layer to a tensor of shape (..., d) as one matrix product.

    XLA cannot compile the gradient of a loop in which Keras itself applies a Dense layer to more
    than two axes.
    """
    rows = dense(ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(rows, (*ops.shape(inputs)[:-1], dense.units))


def _divide_by_deviation(x):
    """Scales rows of mean 0 to variance 1."""
    return x * ops.rsqrt(_mean(ops.square(x)) + _EPSILON)


def _mean(x):
    # A matrix product is faster than a sum along rows as short as these.
    return _linear(x, ops.full((x.shape[1], 1), 1 / x.shape[1], x.dtype))


def _linear(rows, kernel, bias=None):
    outputs = ops.matmul(rows, kernel)
    return outputs if bias is None else tf.nn.bias_add(outputs, bias)
