"""Contrastive multi-interest calibrator (DiffuMIN, section 3.5, eq. 20)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative
from tfrec_diffusion.schema import FIRST_INDEX


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ContrastiveCalibrator(keras.layers.Layer):
    """InfoNCE loss between the interests of a user and their augmented versions.

    The positive of r_i is r*_i of the same request. Its negatives are the r*_i of the other
    requests in the batch: of the same channel, and of the candidate at the same position, if that
    one is real and the user is another. Interests and augmented interests are projected by one
    kernel each, so that the loss does not disturb the click task. The layer adds the loss in
    training only and computes it in float32. Where replicas share a batch, each compares its own
    requests only: of B requests on R replicas, each has B / R - 1 negatives, and the losses of the
    replicas are averaged.

    Args:
        temperature: float. Divides the cosine similarities. Defaults to `0.05`.
        weight: float. Weight of the loss. Defaults to `0.001`.

    Call arguments:
        interests: float tensor of shape (batch, candidates, channels, d). The interests r.
        augmented: float tensor of the shape of `interests`. The augmented interests r*.
        candidate_mask: bool tensor of shape (batch, candidates), True = real.
        users: int tensor of shape (batch,), or `None`. Requests of the same user are not negatives
            of each other, unless the user is unknown (an index below `FIRST_INDEX`). Defaults to
            `None`: all requests are of different users.
        training: bool. Whether to add the loss. Defaults to `None`, which is `False`.

    Returns:
        `augmented`, unchanged.

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
        """The mean of eq. 20 over real candidates and channels.

        Args:
            interests: float tensor of shape (batch, candidates, channels, d). The interests r.
            augmented: float tensor of the shape of `interests`. The augmented interests r*.
            candidate_mask: bool tensor of shape (batch, candidates), True = real.
            users: int tensor of shape (batch,), or `None`. As in the call. Defaults to `None`.

        Returns:
            float32 scalar tensor. 0 for a batch of one request.
        """
        anchors = _directions(interests, self.projection)
        others = _directions(augmented, self.augmented_projection)
        # (candidates, channels, batch of the anchors, batch of the others)
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


def _directions(interests, kernel):
    """Projects (batch, candidates, channels, d) to unit vectors (candidates, channels, batch, d).

    A zero vector has no direction. It stays zero, with a gradient of ordinary size.
    """
    x = ops.matmul(ops.cast(interests, "float32"), kernel)
    squared_norm = ops.sum(ops.square(x), axis=-1, keepdims=True)
    x *= ops.rsqrt(ops.where(squared_norm > 1e-12, squared_norm, 1.0))
    return ops.transpose(x, (1, 2, 0, 3))
