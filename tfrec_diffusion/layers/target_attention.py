"""Multi-head target attention: the second stage of SIM, ETA and TWIN, and TWIN's first (3.3)."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import masked_softmax


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetQuery(keras.layers.Layer):
    """Queries of a candidate e_a in the space of the behaviors: (e_a W_h^q) (W_h^k)^T / sqrt(d_k).

    The product of the query of head h with a behavior is the scaled product of query and key, so
    no keys are made. Layers that take the same queries rank the behaviors consistently.

    Args:
        num_heads: int. Number of attention heads. Defaults to `4`.
        behavior_dim: int or `None`. Width d of the behaviors. The width d_k of a head is
            d / num_heads, rounded up. Defaults to `None`: the width of the target.

    Call arguments:
        target: float tensor of shape (batch, candidates, dim).

    Returns:
        float tensor of shape (batch, candidates, num_heads, d).
    """

    def __init__(self, num_heads=4, behavior_dim=None, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(num_heads=num_heads)
        if behavior_dim is not None:
            check_positive_integers(behavior_dim=behavior_dim)
        self.num_heads = num_heads
        self.behavior_dim = behavior_dim

    def build(self, target_shape):
        dim = self.behavior_dim or target_shape[-1]
        self.head_dim = -(-dim // self.num_heads)
        width = self.num_heads * self.head_dim
        self.query_kernel = self.add_weight(name="query_kernel", shape=(target_shape[-1], width))
        self.key_kernel = self.add_weight(name="key_kernel", shape=(dim, width))

    def call(self, target):
        # The kernels are multiplied first, so that only one product depends on the candidates.
        shape = (-1, self.num_heads, self.head_dim)
        kernels = [ops.reshape(kernel, shape) for kernel in (self.query_kernel, self.key_kernel)]
        kernel = ops.einsum("thk,dhk->thd", *kernels) / self.head_dim**0.5
        width, heads, dim = kernel.shape
        query = ops.matmul(target, ops.reshape(kernel, (width, heads * dim)))
        return ops.reshape(query, (*ops.shape(target)[:2], heads, dim))

    def compute_output_spec(self, target):
        shape = (*target.shape[:2], self.num_heads, self.behavior_dim or target.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class AttentionPooling(keras.layers.Layer):
    """Weighted means of the behaviors, one per attention head, side by side.

    The weights of a head are the softmax of the products of its query and the behaviors.

    Call arguments:
        queries: float tensor of shape (batch, candidates, heads, d), from `TargetQuery`.
        behaviors: float tensor of shape (batch, candidates, k, d), or (batch, k, d) if the
            candidates share them.
        real: bool tensor of shape (batch, candidates, k), or (batch, k) if the candidates share
            the behaviors. True = real; padding has no weight.
        bias: float tensor of shape (batch, candidates, k, heads), or (batch, k, heads) if the
            candidates share the behaviors. Added to the products. Defaults to `None`: no bias.

    Returns:
        float tensor of shape (batch, candidates, heads * d). Zeros where no behavior is real.
    """

    def call(self, queries, behaviors, real, bias=None):
        pooled = _attend(queries, behaviors, real, bias)
        return ops.reshape(pooled, (*ops.shape(pooled)[:2], pooled.shape[2] * pooled.shape[3]))

    def compute_output_spec(self, queries, behaviors, real, bias=None):
        batch, candidates, heads, dim = queries.shape
        return keras.KerasTensor((batch, candidates, heads * dim), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetAttention(keras.layers.Layer):
    """Multi-head attention: Concat(head_1 .. head_h) W^o with head_i = softmax(q_i E^T) E W_i^v.

    Call arguments:
        queries: As in `AttentionPooling`.
        behaviors: As in `AttentionPooling`.
        real: As in `AttentionPooling`.
        bias: As in `AttentionPooling`.
        values: float tensor of the shape of `behaviors`, except for its width. What is averaged in
            place of the behaviors. Defaults to `None`: the behaviors.

    Returns:
        float tensor of shape (batch, candidates, d). Zeros where no behavior is real.

    Reference:
        Vaswani et al., 2017, section 3.2: https://arxiv.org/abs/1706.03762
    """

    def build(self, queries_shape, behaviors_shape, real_shape, bias_shape=None, values_shape=None):
        heads, dim = queries_shape[2:]
        self.head_dim = -(-dim // heads)
        width = (values_shape or behaviors_shape)[-1]
        self.value_kernel = self.add_weight(
            name="value_kernel", shape=(width, heads * self.head_dim)
        )
        self.output_kernel = self.add_weight(
            name="output_kernel", shape=(heads * self.head_dim, dim)
        )

    def call(self, queries, behaviors, real, bias=None, values=None):
        pooled = _attend(queries, behaviors, real, bias, values)
        heads, dim = pooled.shape[2:]
        # The projections are linear: applied to the means, in one product of both kernels.
        kernel = ops.einsum(
            "dhk,hke->hde",
            ops.reshape(self.value_kernel, (dim, heads, self.head_dim)),
            ops.reshape(self.output_kernel, (heads, self.head_dim, -1)),
        )
        pooled = ops.reshape(pooled, (*ops.shape(pooled)[:2], heads * dim))
        return ops.matmul(pooled, ops.reshape(kernel, (heads * dim, kernel.shape[-1])))

    def compute_output_spec(self, queries, behaviors, real, bias=None, values=None):
        batch, candidates, _, dim = queries.shape
        return keras.KerasTensor((batch, candidates, dim), self.compute_dtype)


def _attend(queries, behaviors, real, bias, values=None):
    """Weighted means of the values, (batch, candidates, heads, width of the values)."""
    values = behaviors if values is None else values
    batch, candidates, heads, dim = ops.shape(queries)
    length = ops.shape(behaviors)[-2]
    if len(behaviors.shape) == 3:
        # If the candidates share the behaviors, all queries are the rows of one product.
        queries = ops.reshape(queries, (batch, candidates * heads, dim))
        real, bias = real[:, None], None if bias is None else bias[:, None]
    logits = ops.cast(ops.matmul(queries, ops.swapaxes(behaviors, -1, -2)), "float32")
    logits = ops.reshape(logits, (batch, candidates, heads, length))
    if bias is not None:
        logits += ops.cast(ops.swapaxes(bias, -1, -2), "float32")
    weights = ops.cast(masked_softmax(logits, real[:, :, None]), values.dtype)
    if len(behaviors.shape) == 3:
        weights = ops.reshape(weights, (batch, candidates * heads, length))
    pooled = ops.matmul(weights, values)
    return ops.reshape(pooled, (batch, candidates, heads, values.shape[-1]))


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class QueryScores(keras.layers.Layer):
    """First stage of TWIN: the logits of the second stage's attention, averaged over its heads.

    Call arguments:
        queries: float tensor of shape (batch, candidates, heads, d), from the `TargetQuery` of the
            second stage.
        history: float tensor of shape (batch, length, d).
        bias: float tensor of shape (batch, length, heads). Added to the products. Defaults to
            `None`: no bias.

    Returns:
        Scores for `TopScores`, float32 tensor of shape (batch, candidates, length). No gradient.

    Reference:
        Chang et al., KDD 2023, section 3.3: https://arxiv.org/abs/2302.02352
    """

    def call(self, queries, history, bias=None):
        query = ops.mean(ops.stop_gradient(queries), axis=2)
        scores = ops.matmul(query, ops.transpose(ops.stop_gradient(history), (0, 2, 1)))
        if bias is not None:
            scores += ops.mean(ops.stop_gradient(bias), axis=-1)[:, None]
        return ops.cast(scores, "float32")

    def compute_output_spec(self, queries, history, bias=None):
        return keras.KerasTensor((*queries.shape[:2], history.shape[1]), "float32")
