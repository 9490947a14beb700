"""Aggregation of the behaviors that a channel selected (DiffuMIN, 3.3, eq. 8 and figure 2a)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import LOWEST_LOGIT


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MeanAggregation(keras.layers.Layer):
    """Weighted mean of the behaviors that a channel selected (eq. 8).

    Call arguments:
        history: float32 tensor of shape (batch, length, d).
        scores: float32 tensor of shape (batch, candidates, channels, length), -inf for padding.
        weights: float32 tensor of the shape of `scores`. Routing times filtering: at least 0, and
            0 for a behavior that the channel did not select.
        target: float32 tensor of shape (batch, candidates, d).

    Returns:
        float32 tensor of shape (batch, candidates, channels, d). Zeros for a channel that selected
        nothing.

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
    """Mean of the selected behaviors, each multiplied by its score: the variant `similarity`.

    Call arguments and Returns: As in `MeanAggregation`.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, history, scores, weights, target):
        similarity = ops.where(weights > 0, scores, 0.0)  # 0 * -inf is NaN
        return _weighted_mean(history, weights * similarity, weights)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ShareAggregation(keras.layers.Layer):
    """Sum of the selected behaviors, divided by the length of the history: the variant `share`.

    It is the mean of eq. 8 times the share of the history that the channel selected, so that the
    length of an interest tells how much of the history supports it. The authors' released code
    divides by the length of the sequence.

    Call arguments and Returns: As in `MeanAggregation`.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, history, scores, weights, target):
        real = ops.cast(scores > -float("inf"), weights.dtype)
        return _weighted_mean(history, weights, real)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetAttentionAggregation(keras.layers.Layer):
    """Attention of the target to the selected behaviors: the variant `target_attention`.

    The attention is the softmax of (target W_q) (history W_k)^T / sqrt(d) over the behaviors that
    the channel selected, in proportion to their weights.

    Call arguments and Returns: As in `MeanAggregation`.
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
        # The history is long, so the target is multiplied by the key's kernel in its place.
        query = ops.matmul(ops.matmul(target, self.query_kernel), ops.transpose(self.key_kernel))
        logits = ops.matmul(query, ops.transpose(history, (0, 2, 1))) / target.shape[-1] ** 0.5
        attention = _softmax(logits[:, :, None], weights)  # the channels share the logits
        return _weighted_mean(history, attention, attention)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SelfAttentionAggregation(keras.layers.Layer):
    """Mean of the selected behaviors after they attended to each other: `self_attention`.

    The attention has one head. The selected behaviors are gathered first, so that no tensor of size
    length x length is made.

    Args:
        max_behaviors: int. Largest number of behaviors of a channel that take part. If a channel
            selected more, those with the highest scores do. Defaults to `256`.

    Call arguments and Returns: As in `MeanAggregation`.
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
        # The mean of the outputs is the mean of the rows of the attention, times the values.
        share = ops.divide_no_nan(weights, ops.sum(weights, axis=-1, keepdims=True))
        mean = ops.matmul(ops.matmul(share[..., None, :], attention), behaviors)[..., 0, :]
        return ops.matmul(mean, self.value_kernel)

    def compute_output_spec(self, history, scores, weights, target):
        return _interests_spec(history, scores)


def weighted_sum(history, weights):
    """Sum of the behaviors times their weights.

    Args:
        history: float32 tensor of shape (batch, length, d).
        weights: float32 tensor of shape (batch, candidates, channels, length).

    Returns:
        float32 tensor of shape (batch, candidates, channels, d).
    """
    batch, candidates, _, length = ops.shape(weights)
    channels, dim = weights.shape[-2], history.shape[-1]
    weights = ops.reshape(weights, (batch, candidates * channels, length))
    return ops.reshape(ops.matmul(weights, history), (batch, candidates, channels, dim))


def _weighted_mean(history, numerator, weights):
    """Sum of the behaviors times `numerator`, divided by the sum of `weights`; 0 / 0 is 0."""
    total = weighted_sum(history, numerator)
    return ops.divide_no_nan(total, ops.sum(weights, axis=-1, keepdims=True))


def _softmax(logits, weights):
    """Softmax over the last axis in proportion to `weights`; zeros where all of them are 0."""
    attention = ops.softmax(ops.where(weights > 0, logits, LOWEST_LOGIT), axis=-1) * weights
    return ops.divide_no_nan(attention, ops.sum(attention, axis=-1, keepdims=True))


def _interests_spec(history, scores):
    return keras.KerasTensor((*scores.shape[:-1], history.shape[-1]), "float32")
