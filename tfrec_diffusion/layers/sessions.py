"""Short-term interests from sessions (HierDiffuse, section 3.1, eq. 3) by popularity tier (3.3)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.encoder import BehaviorEncoder
from tfrec_diffusion.layers.normalization import unit_scale
from tfrec_diffusion.layers.transformer import newest
from tfrec_diffusion.schema import FIRST_INDEX, OUT_OF_VOCABULARY

_SESSION_BEGINS = FIRST_INDEX + 1


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ShortTermEncoder(keras.layers.Layer):
    """Short-term interests y_1 .. y_G of the newest sessions, one per tier of item popularity.

    f_S encodes the behaviors within their sessions. The interest of a session in a tier is the mean
    of its behaviors of that tier, and y_g is the mean over the sessions that have such behaviors
    (eq. 3). With one tier, y_1 is h^S.

    Args:
        length: int. Number of newest behaviors. Defaults to `50`.
        max_sessions: int. Number K of newest sessions. Older ones are left out. Defaults to `10`.
        tiers: tuple of int. Rows of the item table at which the second, third, .. tier starts
            (`schema.Table`). The last tier holds niche items. Defaults to `()`: one tier.
        num_heads: int. Number of attention heads, a divisor of d. Defaults to `2`.
        num_blocks: int. Number of Transformer blocks. Defaults to `1`.

    Call arguments:
        history: float tensor of shape (batch, l, d), newest last, padded on the right.
        history_mask: bool tensor of shape (batch, l), True = real.
        items: int tensor of shape (batch, l). Rows of the item table.
        gaps: int tensor of shape (batch, l), or `None`. The gap before each behavior, as rows of a
            table with one boundary: a behavior after a longer gap begins a session. Defaults to
            `None`: the newest `length` behaviors are cut into `max_sessions` sessions of equal
            length.

    Returns:
        Interests y, float tensor of shape (batch, tiers, d), zeros for a tier without behaviors;
        the number of behaviors of each tier, float tensor of shape (batch, tiers); and their
        variance, averaged over d, float tensor of shape (batch, tiers).
    """

    def __init__(self, length=50, max_sessions=10, tiers=(), num_heads=2, num_blocks=1, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(max_sessions=max_sessions)
        self.encoder = BehaviorEncoder(length, num_heads, num_blocks, dtype=self.dtype_policy)
        self.length = length
        self.max_sessions = max_sessions
        self.tiers = tuple(tiers)
        self.num_heads = num_heads
        self.num_blocks = num_blocks

    def build(self, history_shape):
        self.encoder.build(history_shape)

    def call(self, history, history_mask, items, gaps=None):
        # In int64, because TensorFlow compares int32 on the CPU even if there is a GPU.
        items, real = newest(items, history_mask, self.length)
        items = ops.cast(items, "int64")
        if gaps is None:
            sessions = equal_sessions(real, -(-self.length // self.max_sessions))
        else:
            gaps, _ = newest(gaps, history_mask, self.length)
            sessions = gap_sessions(ops.cast(gaps, "int64"))
        behaviors, _ = self.encoder(history, history_mask, sessions)
        return self._pool(behaviors, real, sessions, popularity_tier(items, self.tiers))

    def _pool(self, behaviors, real, sessions, tiers):
        groups = len(self.tiers) + 1
        number = ops.where(real & (sessions < self.max_sessions), sessions * groups + tiers, -1)
        # (batch, K * G, k)
        member = ops.equal(number[:, None], np.arange(self.max_sessions * groups)[:, None])
        member = ops.cast(member, behaviors.dtype)
        sums = ops.matmul(member, behaviors)
        squares = ops.matmul(member, ops.mean(ops.square(behaviors), axis=-1, keepdims=True))
        # (batch, K, G, ..)
        sums, squares, counts = (
            ops.reshape(x, (-1, self.max_sessions, groups, x.shape[-1]))
            for x in (sums, squares, ops.sum(member, axis=-1, keepdims=True))
        )
        interests = _mean(sums / ops.maximum(counts, 1.0), counts > 0)
        counts, sums, squares = (ops.sum(x, axis=1) for x in (counts, sums, squares))
        safe = ops.maximum(counts, 1.0)
        dispersions = squares / safe - ops.mean(ops.square(sums / safe), axis=-1, keepdims=True)
        return unit_scale(interests), counts[..., 0], ops.relu(dispersions[..., 0])

    def compute_output_spec(self, history, *_, **__):
        batch, dim = history.shape[0], history.shape[-1]
        groups = len(self.tiers) + 1
        return tuple(
            keras.KerasTensor(shape, self.compute_dtype)
            for shape in ((batch, groups, dim), (batch, groups), (batch, groups))
        )


def gap_sessions(gaps):
    """Numbers the sessions by gaps, back from the newest session, which is 0.

    Args:
        gaps: int tensor of shape (batch, k), newest last. The gap before each behavior, as rows of
            a table with one boundary.

    Returns:
        int64 tensor of shape (batch, k). The number of each behavior's session.
    """
    begins = ops.cast(ops.greater_equal(gaps, _SESSION_BEGINS), "int64")
    return tf.cumsum(begins, axis=1, reverse=True, exclusive=True)


def equal_sessions(real, size):
    """Numbers sessions of equal length, back from the newest session, which is 0.

    Args:
        real: bool tensor of shape (batch, k), newest last. Only its shape is used.
        size: int. Number of behaviors of a session.

    Returns:
        int64 tensor of shape (batch, k). The number of each behavior's session.
    """
    place = tf.range(tf.shape(real)[1], 0, -1) - 1
    return ops.broadcast_to(ops.cast(place // size, "int64"), ops.shape(real))


def popularity_tier(items, tiers):
    """Tiers of popularity.

    Args:
        items: int tensor of shape (...). Rows of the item table.
        tiers: tuple of int. As in `ShortTermEncoder`.

    Returns:
        int64 tensor of shape (...). 0 is the most popular tier. Items out of vocabulary are in the
        last one.
    """
    tier = ops.sum(ops.cast(ops.greater_equal(items[..., None], tiers), "int64"), axis=-1)
    return ops.where(ops.equal(items, OUT_OF_VOCABULARY), len(tiers), tier)


def _mean(values, present):
    """Mean over axis 1 of what is present, 0 if nothing is."""
    present = ops.cast(present, values.dtype)
    return ops.sum(values * present, axis=1) / ops.maximum(ops.sum(present, axis=1), 1.0)
