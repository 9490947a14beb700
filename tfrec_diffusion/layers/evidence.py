"""What an interest does not tell: how much of the history supports it, and when that was."""

import math

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.aggregation import weighted_sum
from tfrec_diffusion.layers.normalization import inverse_length, unit_length


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ChannelEvidence(keras.layers.Layer):
    """Evidence of each channel: what the mean of the selected behaviors (eq. 8) leaves out.

    An interest is a mean, which is alike for one matching behavior and for a hundred. The evidence
    of a channel has six numbers: the share of the history that the channel selected; the mean and
    the largest score of what it selected; the cosine of its interest and the target; and the
    support s, as a share of the history and as log(1 + s). The support counts the behaviors that
    score on the channel as the target itself does:

        s = sum_l exp(-(a_l - a_s)^2 / 2 w^2)

    with a learned width w of each channel. The scores a are those of eq. 5 for behaviors, channels
    and a target of length 1, so that they keep their scale while embeddings grow.
    Features that are known of behaviors, such as their age, are averaged with the weights of the
    support: they tell when the supporting behaviors were.

    Call arguments:
        history: float32 tensor of shape (batch, length, d).
        channels: float32 tensor of shape (batch, candidates, channels, d).
        target: float32 tensor of shape (batch, candidates, d).
        scores: float32 tensor of shape (batch, candidates, channels, length), -inf for padding.
        weights: float32 tensor of the shape of `scores`. 0 for what a channel did not select.
        interests: float32 tensor of shape (batch, candidates, channels, d). Zeros for a channel
            that selected nothing.
        known: float32 tensor of shape (batch, length, f), or `None`. Embedded features of the
            behaviors. Defaults to `None`.

    Returns:
        float32 tensor of shape (batch, candidates, channels, 6 + f). Zeros without behaviors.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def build(self, history_shape, channels_shape):
        # The logarithm keeps widths positive. Cosines of unrelated behaviors differ by more.
        self.log_width = self.add_weight(
            name="log_width",
            shape=(channels_shape[-2], 1),
            initializer=keras.initializers.Constant(math.log(0.2)),
            autocast=False,
        )

    def call(self, history, channels, target, scores, weights, interests, known=None):
        real, selected = scores > -float("inf"), weights > 0
        target = unit_length(target)[:, :, None]
        of_behavior = inverse_length(history)[:, None, None, :, 0]
        of_channel = inverse_length(channels)  # 1 of orthonormal channels
        scores = ops.where(real, scores, 0.0) * of_behavior * of_channel

        count, behaviors = _sum(weights), ops.maximum(_sum(ops.cast(real, "float32")), 1.0)
        # Keras's `max` fails without behaviors.
        highest = tf.reduce_max(ops.where(selected, scores, -float("inf")), axis=-1, keepdims=True)
        distance = (scores - _sum(channels * target) * of_channel) / ops.exp(self.log_width)
        support = ops.where(real, ops.exp(-0.5 * ops.square(distance)), 0.0)
        supporting = _sum(support)
        evidence = [
            count / behaviors,
            ops.divide_no_nan(_sum(scores * weights), count),
            ops.where(count > 0, highest, 0.0),
            _sum(unit_length(interests) * target),
            supporting / behaviors,
            ops.log1p(supporting),
        ]
        if known is not None:
            # Without support, nothing is told of the behaviors.
            evidence.append(weighted_sum(known, support) / ops.maximum(supporting, 1e-6))
        return ops.concatenate(evidence, axis=-1)

    def compute_output_spec(
        self, history, channels, target, scores, weights, interests, known=None
    ):
        width = 6 + (0 if known is None else known.shape[-1])
        return keras.KerasTensor((*channels.shape[:-1], width), "float32")


def _sum(x):
    return ops.sum(x, axis=-1, keepdims=True)
