"""Which behaviors each interest channel takes (DiffuMIN, section 3.3, eq. 6 and 7).

Scores are float32 (batch, candidates, channels, length); those of padded behaviors are -inf.
"""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers

# Selection looks no closer than this at a column, relative to its largest magnitude: a matrix
# product adds in another order at another position or batch size, so that the same behavior, twice
# in a history, can score a few units in the last place apart, and one would be left out.
_STEPS = 21
RESOLUTION = 2.0 ** (1 - _STEPS)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopRouting(keras.layers.Layer):
    """Each behavior goes to the channels where it scores highest (eq. 6); ties to the lowest.

    Args:
        channels_per_behavior: 1 in the paper; 2 is the variant `top_2`.

    Call arguments:
        scores: (batch, candidates, channels, length).

    Returns:
        0 or 1, float32, of the shape of `scores`: 0 where padded. No gradient.

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
            # No score is below the lowest finite number but that of padding. On a CPU this is
            # three times faster than argmax.
            highest = tf.maximum(tf.reduce_max(left, axis=-2, keepdims=True), tf.float32.min)
            highest_channel = ops.where(left >= highest, channel, float(channels))
            chosen = ops.equal(channel, tf.reduce_min(highest_channel, axis=-2, keepdims=True))
            routed = ops.where(chosen, 1.0, routed)
            left = ops.where(chosen, -float("inf"), left)
        return routed

    def compute_output_spec(self, scores):
        return keras.KerasTensor(scores.shape, "float32")

    def get_config(self):
        return {**super().get_config(), "channels_per_behavior": self.channels_per_behavior}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SoftRouting(keras.layers.Layer):
    """Each behavior goes to all channels, by the softmax of its scores: the variant `soft`.

    Call arguments:
        scores: (batch, candidates, channels, length).

    Returns:
        Float32 of the shape of `scores`, with a sum of 1 over the channels; 0 where padded.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, scores):
        real = scores > -float("inf")
        weights = ops.softmax(ops.where(real, scores, 0.0), axis=-2)
        return ops.where(real, weights, 0.0)

    def compute_output_spec(self, scores):
        return keras.KerasTensor(scores.shape, "float32")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopP(keras.layers.Layer):
    """Keeps a share p of each channel's behaviors, the highest scores (eq. 7).

    Of n real behaviors ceil(p n) are kept, and those that tie with the last of them.

    Args:
        p: Share in (0, 1].

    Call arguments:
        scores: (batch, candidates, channels, length).
        history_mask: bool (batch, length), True = real.

    Returns:
        bool of the shape of `scores`.

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

    def get_config(self):
        return {**super().get_config(), "p": self.p}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopK(keras.layers.Layer):
    """Keeps each channel's k highest scores, and those that tie with the last: variant `top_k`.

    Args:
        k: Number of behaviors, whatever the length.

    Call arguments and Returns: as `TopP`.
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

    def get_config(self):
        return {**super().get_config(), "k": self.k}


def kth_largest(scores, k):
    """The k-th largest of each row, from below, to 2^-20 of the row's largest magnitude.

    Bisection between the two signs of that magnitude; a sort costs several times more.

    Args:
        scores: float32 (..., length); -inf counts for nothing.
        k: Whole numbers of any dtype, of a shape that broadcasts to (...), at most as many as there
            are finite scores.

    Returns:
        Threshold and magnitude, float32 (...): the k-th largest is at least the threshold, and more
        by at most 2^-20 of the magnitude. No gradient.
    """
    scores, k = tf.stop_gradient(scores), tf.cast(k, tf.float32)
    finite = tf.where(scores > -float("inf"), tf.abs(scores), 0.0)
    magnitude = tf.reduce_max(finite, axis=-1)
    ones = tf.ones(tf.shape(scores)[-1:])

    def bisect(step, threshold):
        middle = threshold + step
        # A count as a product with ones: under XLA on a CPU up to three times faster than a sum.
        count = tf.tensordot(tf.cast(scores >= middle[..., None], tf.float32), ones, 1)
        return step / 2, tf.where(count >= k, middle, threshold)

    start = (magnitude, -magnitude)
    _, threshold = tf.while_loop(lambda *_: True, bisect, start, maximum_iterations=_STEPS)
    return threshold, magnitude


def _largest(scores, k):
    """Bool of the shape of `scores`: the k (batch,) largest of each column, and their ties."""
    threshold, magnitude = kth_largest(scores, k[:, None, None])
    return scores >= (threshold - RESOLUTION * magnitude)[..., None]
