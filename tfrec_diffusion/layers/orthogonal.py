"""Interest channels by orthogonal decomposition of the target (DiffuMIN, section 3.3, eq. 2-4)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_choice, check_positive_integers
from tfrec_diffusion.layers.normalization import unit_length

# Vectors that are shorter count as zero. The length of a residual is relative to that of the
# projected target, because a shorter one would be rounding.
_SMALLEST_RESIDUAL = 1e-5
_SMALLEST_TARGET = 1e-8


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class OrthogonalChannels(keras.layers.Layer):
    """Orthonormal channels O of a target e: O^T is the Q of the QR decomposition of (e W)^T.

    e W has c rows of width d. The diagonal of R is not negative, which fixes the sign of each
    channel. O O^T = I holds for every target: a row that is a linear combination of the rows before
    it, as all rows are where the target is zero, is replaced by a unit vector orthogonal to them,
    and gets no gradient.

    Args:
        num_channels: int. Number of channels c, at most d.
        start: str or tuple of int. What the rows of e W are before training: with `"random"`, all
            are random maps of the target; with `"target"`, the first is the target itself. With
            the widths of the features that the target consists of, each feature is in one of the
            rows, in turn: some rows have several if there are more features than rows, and rows
            without a feature are random. Defaults to `"target"`.
        orthogonal: bool. Whether the rows are decomposed. If `False`, the channels are the rows of
            e W themselves, brought to length 1. Defaults to `True`.

    Call arguments:
        target: float tensor of shape (..., d).

    Returns:
        float tensor of shape (..., num_channels, d), computed in float32.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, num_channels, start="target", orthogonal=True, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(num_channels=num_channels)
        if isinstance(start, str):
            check_choice("start", start, ("random", "target"))
        self.start = start
        self.num_channels = num_channels
        self.orthogonal = orthogonal

    def build(self, target_shape):
        dim = target_shape[-1]
        if self.num_channels > dim:
            raise ValueError(
                f"`num_channels` must be at most the width of the target, {dim}. "
                f"Received: num_channels={self.num_channels}"
            )
        if not isinstance(self.start, str) and sum(self.start) != dim:
            raise ValueError(
                f"The widths in `start` must add up to the width of the target, {dim}. "
                f"Received: start={self.start}"
            )
        glorot = keras.initializers.GlorotUniform()

        def initial(shape, dtype=None):
            kernel = glorot(shape, dtype)
            if self.start == "random":
                return kernel
            widths = (dim,) if self.start == "target" else self.start
            rows = np.zeros((self.num_channels, dim))  # which parts of the target each one has
            for feature, width in enumerate(widths):
                first = sum(widths[:feature])
                rows[feature % self.num_channels, first : first + width] = 1
            known = min(len(widths), self.num_channels)
            parts = [ops.cast(np.diag(row), dtype) for row in rows[:known]]
            return ops.concatenate([*parts, kernel[:, known * dim :]], axis=1)

        self.kernel = self.add_weight(
            name="kernel",
            shape=(dim, self.num_channels * dim),
            initializer=initial,
            autocast=False,
        )

    def call(self, target):
        rows = ops.matmul(ops.cast(target, "float32"), self.kernel)
        rows = ops.reshape(rows, (*ops.shape(target)[:-1], self.num_channels, target.shape[-1]))
        channels = _orthonormalize(rows) if self.orthogonal else unit_length(rows)
        return ops.cast(channels, self.compute_dtype)

    def compute_output_spec(self, target):
        shape = (*target.shape[:-1], self.num_channels, target.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetChannel(keras.layers.Layer):
    """The target itself as the only channel: variant A of table 3.

    Call arguments:
        target: float tensor of shape (..., d).

    Returns:
        float tensor of shape (..., 1, d).
    """

    def call(self, target):
        return ops.expand_dims(target, -2)

    def compute_output_spec(self, target):
        return keras.KerasTensor((*target.shape[:-1], 1, target.shape[-1]), self.compute_dtype)


def _orthonormalize(rows):
    """Modified Gram-Schmidt over the rows of (..., c, d).

    Each row is projected twice, which is enough for orthogonality up to rounding (Kahan).
    `tf.linalg.qr` would not do: one target with dependent rows makes the gradients of the whole
    batch infinite.
    """
    # The decomposition does not depend on the scale, so the scale needs no gradient.
    length = ops.sqrt(ops.sum(ops.square(rows), axis=(-2, -1), keepdims=True))
    rows = rows / ops.stop_gradient(ops.where(length > _SMALLEST_TARGET, length, 1.0))
    channels = []
    covered = ops.zeros_like(rows[..., 0, :])  # squared length of each axis within their span
    for i in range(rows.shape[-2]):
        residual = _project_out(channels, rows[..., i, :])
        vanishes = _squared_norm(residual) < _SMALLEST_RESIDUAL**2
        axis = tf.one_hot(tf.argmin(covered, axis=-1), rows.shape[-1], dtype=rows.dtype)
        # Replaced before the normalization, so that no gradient divides by zero.
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
