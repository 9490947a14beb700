"""DiffuMIN's contrastive multi-interest calibrator (eq. 20)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative
from tfrec_diffusion.schema import FIRST_INDEX


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ContrastiveCalibrator(keras.layers.Layer):
    """InfoNCE between a user's interests and their augmented versions.

    The positive of r_i is r*_i, the negatives are the r*_i of the other requests: the same channel
    of the candidate with the same number, real and of another user. Both sides have a projection of
    their own, so that the loss does not disturb the click task. The layer adds it in training,
    computed in float32. Where replicas share a batch, each compares its own requests: a batch of B
    on R replicas has B / R - 1 negatives, and the losses are averaged.

    Args:
        temperature: Divides the cosine similarities.
        weight: Of the loss.

    Call arguments:
        interests: (batch, candidates, channels, d), r.
        augmented: As `interests`, r*.
        candidate_mask: bool (batch, candidates), True = real.
        users: Optional int (batch,). Requests with the same known user, an index from
            `FIRST_INDEX` on, are no negatives of each other.
        training: bool.

    Returns:
        `augmented` as it is.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, temperature=0.05, weight=0.001, **kwargs):
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
        check_not_negative(weight=weight)
        self.temperature = temperature
        self.weight = weight
        self.loss_tracker = keras.metrics.Mean(name="contrastive_loss")

    def build(self, interests_shape, augmented_shape=None):
        shape = (interests_shape[-1], interests_shape[-1])
        self.projection = self.add_weight(name="projection", shape=shape, autocast=False)
        self.augmented_projection = self.add_weight(
            name="augmented_projection", shape=shape, autocast=False
        )

    def call(self, interests, augmented, candidate_mask, users=None, training=None):
        if training:
            loss = self.loss(interests, augmented, candidate_mask, users)
            self.loss_tracker.update_state(loss)
            self.add_loss(self.weight * loss)
        return augmented

    def loss(self, interests, augmented, candidate_mask, users=None):
        """Eq. 20: float32 scalar, the mean over real candidates and channels; 0 for one request."""
        anchors = _directions(interests, self.projection)
        others = _directions(augmented, self.augmented_projection)
        # (candidates, channels, anchors, others), the last two being the batch
        logits = ops.matmul(anchors, ops.transpose(others, (0, 1, 3, 2))) / self.temperature

        own = ops.eye(ops.shape(interests)[0], dtype="bool")
        real = ops.transpose(candidate_mask)  # (candidates, batch)
        compared = real[:, None]
        if users is not None:
            same_user = (users[:, None] == users) & (users >= FIRST_INDEX)
            compared = compared & ~same_user
        compared = (compared | own)[:, None]
        losses = -tf.linalg.diag_part(
            ops.log_softmax(ops.where(compared, logits, float("-inf")), axis=-1)
        )
        weights = ops.broadcast_to(ops.cast(real, "float32")[:, None], ops.shape(losses))
        return ops.sum(losses * weights) / ops.maximum(ops.sum(weights), 1.0)

    def compute_output_spec(self, interests, augmented, *_, users=None, training=None):
        return keras.KerasTensor(augmented.shape, self.compute_dtype)

    def get_config(self):
        config = {"temperature": self.temperature, "weight": self.weight}
        return {**super().get_config(), **config}


def _directions(interests, kernel):
    """Unit vectors (candidates, channels, batch, d) of projected (batch, candidates, channels, d).

    A zero vector has no direction: it stays zero, with a gradient of ordinary size.
    """
    x = ops.matmul(ops.cast(interests, "float32"), kernel)
    squared_norm = ops.sum(ops.square(x), axis=-1, keepdims=True)
    x *= ops.rsqrt(ops.where(squared_norm > 1e-12, squared_norm, 1.0))
    return ops.transpose(x, (1, 2, 0, 3))
