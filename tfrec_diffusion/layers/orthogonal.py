"""Interest channels: orthogonal decomposition of the target (DiffuMIN, section 3.3, eq. 2-4)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers

# Lengths below which a vector is taken for zero: of a residual, relative to the projected target,
# whose rounding it would be; and of the projected target.
_SMALLEST_RESIDUAL = 1e-5
_SMALLEST_TARGET = 1e-8


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class OrthogonalChannels(keras.layers.Layer):
    """Orthonormal channels O of a target e: O^T is the Q of the QR decomposition of (e W)^T.

    e W is `channels` rows of width d. The diagonal of R is not negative, which fixes the sign of
    each channel. O O^T = I for every target: a row that depends on the rows before it (all do where
    the target is zero) gives way to a unit vector orthogonal to them, and gets no gradient.

    Args:
        channels: Number of channels c, at most d.

    Call arguments:
        target: (..., d).

    Returns:
        (..., channels, d), computed in float32.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, channels, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(channels=channels)
        self.channels = channels

    def build(self, target_shape):
        dim = target_shape[-1]
        if self.channels > dim:
            raise ValueError(
                f"`channels` must be at most the width of the target, {dim}. "
                f"Received: channels={self.channels}"
            )
        glorot = keras.initializers.GlorotUniform()

        def target_first(shape, dtype=None):
            return ops.concatenate(
                [ops.eye(dim, dtype=dtype), glorot(shape, dtype)[:, dim:]], axis=1
            )

        self.kernel = self.add_weight(
            name="kernel",
            shape=(dim, self.channels * dim),
            initializer=target_first,
            autocast=False,
        )

    def call(self, target):
        rows = ops.matmul(ops.cast(target, "float32"), self.kernel)
        rows = ops.reshape(rows, (*ops.shape(target)[:-1], self.channels, target.shape[-1]))
        return ops.cast(_orthonormalize(rows), self.compute_dtype)

    def compute_output_spec(self, target):
        shape = (*target.shape[:-1], self.channels, target.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetChannel(keras.layers.Layer):
    """The target itself as the one channel: variant A of table 3.

    Call arguments:
        target: (..., d).

    Returns:
        (..., 1, d).
    """

    def call(self, target):
        return ops.expand_dims(target, -2)

    def compute_output_spec(self, target):
        return keras.KerasTensor((*target.shape[:-1], 1, target.shape[-1]), self.compute_dtype)


def _orthonormalize(rows):
    """Modified Gram-Schmidt over the rows of (..., c, d), twice, which is enough (Kahan).

    `tf.linalg.qr` has no finite gradient for dependent columns, not even for the rest of the batch.
    """
    # The decomposition does not depend on the scale, and so neither does its gradient.
    length = ops.sqrt(ops.sum(ops.square(rows), axis=(-2, -1), keepdims=True))
    rows = rows / ops.stop_gradient(ops.where(length > _SMALLEST_TARGET, length, 1.0))
    channels = []
    covered = ops.zeros_like(rows[..., 0, :])  # squared length of each axis within their span
    for i in range(rows.shape[-2]):
        residual = _project_out(channels, rows[..., i, :])
        vanishes = _squared_norm(residual) < _SMALLEST_RESIDUAL**2
        axis = tf.one_hot(tf.argmin(covered, axis=-1), rows.shape[-1], dtype=rows.dtype)
        # Replaced before it is normalized, so that no gradient ever divides by zero.
        channel = _project_out(channels, ops.where(vanishes, axis, residual))
        channel = channel * ops.rsqrt(_squared_norm(channel))
        covered = covered + ops.square(channel)
        channels.append(channel)
    return ops.stack(channels, axis=-2)


def _project_out(channels, vector):
    for channel in channels:
        vector = vector - channel * ops.sum(channel * vector, axis=-1, keepdims=True)
    return vector


def _squared_norm(vector):
    return ops.sum(ops.square(vector), axis=-1, keepdims=True)
