"""A channel's interest from the behaviors it selected (DiffuMIN, section 3.3, eq. 8; figure 2a).

Scores and weights are float32 (batch, candidates, channels, length). Weights are routing times
filtering: at least 0, and 0 for what is not selected, where the score may be -inf.
"""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers

_LOWEST = -1e30


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MeanAggregation(keras.layers.Layer):
    """Weighted mean of the selected behaviors: the paper's choice.

    Call arguments:
        history: (batch, length, d).
        scores: (batch, candidates, channels, length).
        weights: (batch, candidates, channels, length).
        target: (batch, candidates, d).

    Returns:
        float32 (batch, candidates, channels, d); zeros for a channel that selected nothing.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, history, scores, weights, target):
        return _weighted_mean(history, weights, weights)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SimilarityAggregation(keras.layers.Layer):
    """Mean of the selected behaviors, each times its score: the variant `similarity`.

    Call arguments and Returns: as `MeanAggregation`.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, history, scores, weights, target):
        similarity = ops.where(weights > 0, scores, 0.0)  # 0 * -inf is NaN
        return _weighted_mean(history, weights * similarity, weights)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetAttentionAggregation(keras.layers.Layer):
    """Attention of the target to the channel's behaviors: the variant `target_attention`.

    Softmax of (target W_q) (history W_k)^T / sqrt(d) over what the channel selected.

    Call arguments and Returns: as `MeanAggregation`.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def build(self, history_shape):
        dim = history_shape[-1]
        self.query_kernel, self.key_kernel = (
            self.add_weight(name=f"{name}_kernel", shape=(dim, dim), autocast=False)
            for name in ("query", "key")
        )

    def call(self, history, scores, weights, target):
        # The history is long: the key's kernel goes to the other side of the product.
        query = ops.matmul(ops.matmul(target, self.query_kernel), ops.transpose(self.key_kernel))
        logits = ops.matmul(query, ops.transpose(history, (0, 2, 1))) / target.shape[-1] ** 0.5
        attention = _softmax(logits[:, :, None], weights)  # the channels share the logits
        return _weighted_mean(history, attention, attention)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SelfAttentionAggregation(keras.layers.Layer):
    """The channel's behaviors attend to each other, then their mean: `self_attention`.

    One head. What is selected is gathered first, so that nothing of size length x length is made.

    Args:
        max_behaviors: Of more than so many in a channel, those of the highest scores take part.

    Call arguments and Returns: as `MeanAggregation`.
    """

    def __init__(self, max_behaviors=256, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(max_behaviors=max_behaviors)
        self.max_behaviors = max_behaviors

    def build(self, history_shape):
        dim = history_shape[-1]
        self.query_kernel, self.key_kernel, self.value_kernel = (
            self.add_weight(name=f"{name}_kernel", shape=(dim, dim), autocast=False)
            for name in ("query", "key", "value")
        )

    def call(self, history, scores, weights, target):
        count = ops.minimum(self.max_behaviors, ops.shape(history)[1])
        selected = ops.where(weights > 0, ops.stop_gradient(scores), -float("inf"))
        positions = ops.top_k(selected, count)[1]  # (batch, candidates, channels, count)
        weights = ops.take_along_axis(weights, positions, axis=-1)
        behaviors = tf.gather(
            history, positions, batch_dims=1
        )  # (batch, candidates, channels, count, d)
        kernel = ops.matmul(self.query_kernel, ops.transpose(self.key_kernel))
        queries = ops.matmul(behaviors, kernel)
        logits = ops.matmul(queries, ops.swapaxes(behaviors, -1, -2)) / history.shape[-1] ** 0.5
        attention = _softmax(logits, weights[..., None, :])
        # The mean of the outputs is the mean of the attention, once, times the values.
        share = ops.divide_no_nan(weights, ops.sum(weights, axis=-1, keepdims=True))
        mean = ops.matmul(ops.matmul(share[..., None, :], attention), behaviors)[..., 0, :]
        return ops.matmul(mean, self.value_kernel)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)

    def get_config(self):
        return {**super().get_config(), "max_behaviors": self.max_behaviors}


def _weighted_mean(history, numerator, weights):
    """Sum of the behaviors times `numerator`, over the sum of `weights`; zeros over zero."""
    batch, candidates, _, length = ops.shape(weights)
    channels, dim = weights.shape[-2], history.shape[-1]
    numerator = ops.reshape(numerator, (batch, candidates * channels, length))
    total = ops.reshape(ops.matmul(numerator, history), (batch, candidates, channels, dim))
    return ops.divide_no_nan(total, ops.sum(weights, axis=-1, keepdims=True))


def _softmax(logits, weights):
    """Softmax over the last axis where `weights` > 0, in proportion to them; zeros if none is."""
    attention = ops.softmax(ops.where(weights > 0, logits, _LOWEST), axis=-1) * weights
    return ops.divide_no_nan(attention, ops.sum(attention, axis=-1, keepdims=True))


def _interests_spec(history, scores):
    return keras.KerasTensor((*scores.shape[:-1], history.shape[-1]), "float32")
