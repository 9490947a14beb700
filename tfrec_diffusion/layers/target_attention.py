"""Multi-head target attention: the second stage of SIM, ETA, TWIN, and their short-term part."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers

_LOWEST = -1e30


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetQuery(keras.layers.Layer):
    """Queries in the space of the behaviors: q_h = (e_a W_h^q) (W_h^k)^T / sqrt(d_k).

    q_h . e_j is the scaled product of query and key of head h: no key is ever made, and whatever
    takes the same queries ranks behaviors consistently.

    Args:
        num_heads: Heads, h.
        behavior_dim: Width d of the behaviors; `None`: that of the target. A head is d / h wide,
            rounded up.

    Call arguments:
        target: (batch, candidates, dim), e_a.

    Returns:
        (batch, candidates, num_heads, d).
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
        # Both kernels first: then there is one product, however few the candidates.
        shape = (-1, self.num_heads, self.head_dim)
        kernels = [ops.reshape(kernel, shape) for kernel in (self.query_kernel, self.key_kernel)]
        kernel = ops.einsum("thk,dhk->thd", *kernels) / self.head_dim**0.5
        width, heads, dim = kernel.shape
        query = ops.matmul(target, ops.reshape(kernel, (width, heads * dim)))
        return ops.reshape(query, (*ops.shape(target)[:2], heads, dim))

    def compute_output_spec(self, target):
        shape = (*target.shape[:2], self.num_heads, self.behavior_dim or target.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self):
        config = {"num_heads": self.num_heads, "behavior_dim": self.behavior_dim}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class AttentionPooling(keras.layers.Layer):
    """Softmax of the queries over behaviors; each head's weighted mean of them, side by side.

    Call arguments:
        queries: (batch, candidates, heads, d), as of `TargetQuery`.
        behaviors: (batch, candidates, k, d), or (batch, k, d) if the candidates share them.
        real: bool (batch, candidates, k) or (batch, k); others have no weight.
        bias: Optional (batch, candidates, k, heads) or (batch, k, heads), added to the products.

    Returns:
        (batch, candidates, heads * d): zeros where no behavior is real.
    """

    def call(self, queries, behaviors, real, bias=None):
        pooled = _attend(queries, behaviors, real, bias)
        return ops.reshape(pooled, (*ops.shape(pooled)[:2], pooled.shape[2] * pooled.shape[3]))

    def compute_output_spec(self, queries, behaviors, real, bias=None):
        batch, candidates, heads, dim = queries.shape
        return keras.KerasTensor((batch, candidates, heads * dim), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetAttention(keras.layers.Layer):
    """Concat(head_1 .. head_h) W^o with head_i = softmax(q_i E^T) E W_i^v (Vaswani et al., 2017).

    Call arguments: as `AttentionPooling`, and
        values: Optional, of the shape of `behaviors` but for the width: what is averaged in their
            place.

    Returns:
        (batch, candidates, d): zeros where no behavior is real.
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
        # The values of a mean are the mean of the values, and both kernels are one product.
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
    """(batch, candidates, heads, width of the values)."""
    values = behaviors if values is None else values
    batch, candidates, heads, dim = ops.shape(queries)
    length = ops.shape(behaviors)[-2]
    if len(behaviors.shape) == 3:
        # Behaviors that all candidates share take all queries as the rows of one product.
        queries = ops.reshape(queries, (batch, candidates * heads, dim))
        real, bias = real[:, None], None if bias is None else bias[:, None]
    logits = ops.cast(ops.matmul(queries, ops.swapaxes(behaviors, -1, -2)), "float32")
    logits = ops.reshape(logits, (batch, candidates, heads, length))
    if bias is not None:
        logits += ops.cast(ops.swapaxes(bias, -1, -2), "float32")
    real = real[:, :, None]
    weights = ops.softmax(ops.where(real, logits, _LOWEST), axis=-1)
    weights = ops.cast(ops.where(real, weights, 0.0), values.dtype)
    if len(behaviors.shape) == 3:
        weights = ops.reshape(weights, (batch, candidates * heads, length))
    pooled = ops.matmul(weights, values)
    return ops.reshape(pooled, (batch, candidates, heads, values.shape[-1]))


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class QueryScores(keras.layers.Layer):
    """TWIN's first stage: what the second one's heads give each behavior, on average.

    Call arguments:
        queries: (batch, candidates, heads, d), of the second stage's `TargetQuery`.
        history: (batch, length, d).
        bias: Optional (batch, length, heads).

    Returns:
        Scores for `TopScores`, float32 (batch, candidates, length). No gradient.

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
