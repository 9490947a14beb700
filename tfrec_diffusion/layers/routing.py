"""Routing and filtering: which behaviors a channel takes (DiffuMIN, section 3.3, eq. 6 and 7)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers

# Scores of a column that differ by less than this, relative to its largest magnitude, count as
# equal. A matrix product adds in an order that depends on the position and on the batch size, so
# the scores of a behavior that is in a history twice can differ by rounding. Without a tolerance
# one of the two could be left out.
_STEPS = 21
RESOLUTION = 2.0 ** (1 - _STEPS)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopRouting(keras.layers.Layer):
    """Routes each behavior to the channels where it scores highest (eq. 6).

    Of channels with equal scores, the first are taken.

    Args:
        channels_per_behavior: int. Number of channels that a behavior goes to: 1 in the paper, 2 in
            the variant `top_2`. Defaults to `1`.

    Call arguments:
        scores: float32 tensor of shape (batch, candidates, channels, length), -inf for padding.

    Returns:
        float32 tensor of the shape of `scores`: 1 where a behavior goes to a channel, else 0. 0 for
        padding. No gradient.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, channels_per_behavior=1, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(channels_per_behavior=channels_per_behavior)
        self.channels_per_behavior = channels_per_behavior

    def build(self, scores_shape):
        if self.channels_per_behavior > scores_shape[-2]:
            raise ValueError(
                "`channels_per_behavior` must be at most the number of channels, "
                f"{scores_shape[-2]}. Received: channels_per_behavior={self.channels_per_behavior}"
            )

    def call(self, scores):
        left = ops.stop_gradient(scores)
        routed = ops.zeros_like(scores)
        channels = scores.shape[-2]
        channel = ops.arange(channels, dtype="float32")[:, None]
        for _ in range(self.channels_per_behavior):
            # The lowest finite number is above the scores of padding alone. On a CPU this is
            # three times faster than argmax.
            highest = tf.maximum(tf.reduce_max(left, axis=-2, keepdims=True), tf.float32.min)
            highest_channel = ops.where(left >= highest, channel, float(channels))
            chosen = ops.equal(channel, tf.reduce_min(highest_channel, axis=-2, keepdims=True))
            routed = ops.where(chosen, 1.0, routed)
            left = ops.where(chosen, -float("inf"), left)
        return routed

    def compute_output_spec(self, scores):
        return keras.KerasTensor(scores.shape, "float32")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class StraightThroughRouting(TopRouting):
    """`TopRouting` to one channel with the gradient of `SoftRouting`: `straight_through`.

    The channels then learn through the routing which behaviors they get.

    Call arguments and Returns: As in `TopRouting`, with a gradient.
    """

    def __init__(self, **kwargs):
        super().__init__(1, **kwargs)

    def call(self, scores):
        soft = _shares(scores)
        return super().call(scores) + soft - ops.stop_gradient(soft)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SoftRouting(keras.layers.Layer):
    """Routes each behavior to all channels by the softmax of its scores: the variant `soft`.

    Call arguments:
        scores: float32 tensor of shape (batch, candidates, channels, length), -inf for padding.

    Returns:
        float32 tensor of the shape of `scores`, with a sum of 1 over the channels. 0 for padding.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, scores):
        return _shares(scores)

    def compute_output_spec(self, scores):
        return keras.KerasTensor(scores.shape, "float32")


def _shares(scores):
    """Softmax of the scores over the channels; 0 for padding."""
    real = scores > -float("inf")
    weights = ops.softmax(ops.where(real, scores, 0.0), axis=-2)
    return ops.where(real, weights, 0.0)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopP(keras.layers.Layer):
    """Keeps the share p of a user's behaviors that score highest on a channel (eq. 7).

    Of n real behaviors, ceil(p n) are kept, and those whose score equals the lowest of these.

    Args:
        p: float. Share in (0, 1]. Defaults to `0.2`.

    Call arguments:
        scores: float32 tensor of shape (batch, candidates, channels, length), -inf for padding.
        history_mask: bool tensor of shape (batch, length), True = real.

    Returns:
        bool tensor of the shape of `scores`, True = kept.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, p=0.2, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if not isinstance(p, int | float) or not 0 < p <= 1:
            raise ValueError(f"`p` must be in (0, 1]. Received: {p=}")
        self.p = p

    def call(self, scores, history_mask):
        behaviors = ops.sum(ops.cast(history_mask, "float64"), axis=-1)
        # A decimal p is not exact in binary: 0.2 * 35 must not become 8.
        share = self.p * behaviors - 1e-9
        return _largest(scores, ops.cast(ops.ceil(share), "float32"))

    def compute_output_spec(self, scores, history_mask):
        return keras.KerasTensor(scores.shape, "bool")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopK(keras.layers.Layer):
    """Keeps the k behaviors that score highest on a channel: the variant `top_k`.

    Behaviors whose score equals the lowest of these are kept as well.

    Args:
        k: int. Number of behaviors, whatever the length of the history. Defaults to `100`.

    Call arguments and Returns: As in `TopP`.
    """

    def __init__(self, k=100, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(k=k)
        self.k = k

    def call(self, scores, history_mask):
        behaviors = ops.sum(ops.cast(history_mask, "float32"), axis=-1)
        return _largest(scores, ops.minimum(behaviors, float(self.k)))

    def compute_output_spec(self, scores, history_mask):
        return keras.KerasTensor(scores.shape, "bool")


def kth_largest(scores, k):
    """A threshold just below the k-th largest score of each row.

    The threshold is found by bisection between plus and minus the row's largest magnitude. A sort
    would take several times as long.

    Args:
        scores: float32 tensor of shape (..., length). Scores of -inf are not counted.
        k: int or float tensor of whole numbers, of a shape that broadcasts to (...). At most the
            number of finite scores of the row.

    Returns:
        Threshold and largest magnitude of each row, float32 tensors of shape (...). The k-th
        largest score exceeds the threshold by 0 to 2^-20 of the magnitude. No gradient.
    """
    scores, k = tf.stop_gradient(scores), tf.cast(k, tf.float32)
    finite = tf.where(scores > -float("inf"), tf.abs(scores), 0.0)
    magnitude = tf.reduce_max(finite, axis=-1)
    ones = tf.ones(tf.shape(scores)[-1:])

    def bisect(step, threshold):
        middle = threshold + step
        # Counted as a product with ones, which under XLA on a CPU is up to three times faster than
        # a sum.
        count = tf.tensordot(tf.cast(scores >= middle[..., None], tf.float32), ones, 1)
        return step / 2, tf.where(count >= k, middle, threshold)

    start = (magnitude, -magnitude)
    _, threshold = tf.while_loop(lambda *_: True, bisect, start, maximum_iterations=_STEPS)
    return threshold, magnitude


def _largest(scores, k):
    """Bool of the shape of `scores`: the k (batch,) largest of each channel, and their equals."""
    threshold, magnitude = kth_largest(scores, k[:, None, None])
    return scores >= (threshold - RESOLUTION * magnitude)[..., None]
