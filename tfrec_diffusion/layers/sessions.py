"""Short-term interests from sessions (HierDiffuse, 3.1, eq. 3) and semantic categories (3.3)."""

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
    """y_1 .. y_G: what the newest sessions say of each tier of item popularity.

    f_S encodes the behaviors within their sessions; a session's interest in a tier is the mean of
    its behaviors of that tier, and y_g the mean over the sessions that have one (eq. 3). With one
    tier, y_1 is h^S.

    Args:
        length: Number of newest behaviors.
        max_sessions: K: older sessions are left out.
        tiers: Item rows at which the second, third, .. tier starts (`schema.Table`); the last holds
            niche items. () is one tier.
        num_heads, num_blocks: Of `BehaviorEncoder`.

    Call arguments:
        history: float (batch, length of the history, d), newest last, padded on the right.
        history_mask: bool (batch, length of the history), True = real.
        items: int (batch, length of the history), rows of the item table.
        gaps: Optional int (batch, length of the history): rows of the table of gaps, whose one
            boundary parts sessions. Without, sessions are equal cuts of the newest `length`.

    Returns:
        Interests y (batch, tiers, d), zeros for a tier without behaviors; their counts
        (batch, tiers) and their dispersions (batch, tiers), the variance of a tier's behaviors.
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

    def build(self, history_shape, *_):
        self.encoder.build(history_shape)

    def call(self, history, history_mask, items, gaps=None):
        # In int64, because int32 is compared on the host, also where there is a GPU.
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

    def get_config(self):
        config = {
            "length": self.length,
            "max_sessions": self.max_sessions,
            "tiers": self.tiers,
            "num_heads": self.num_heads,
            "num_blocks": self.num_blocks,
        }
        return {**super().get_config(), **config}


def gap_sessions(gaps):
    """Number of each behavior's session, counted back from the newest, which is 0.

    Args:
        gaps: int (batch, k), newest last: rows of a table of gaps with one boundary.
    """
    begins = ops.cast(ops.greater_equal(gaps, _SESSION_BEGINS), "int64")
    return tf.cumsum(begins, axis=1, reverse=True, exclusive=True)


def equal_sessions(real, size):
    """As `gap_sessions`, cut every `size` behaviors back from the newest; real: bool (batch, k)."""
    place = tf.range(tf.shape(real)[1], 0, -1) - 1
    return ops.broadcast_to(ops.cast(place // size, "int64"), ops.shape(real))


def popularity_tier(items, tiers):
    """Tier of item rows, int (...): 0 is the most popular; what is out of vocabulary, the last."""
    tier = ops.sum(ops.cast(ops.greater_equal(items[..., None], tiers), "int64"), axis=-1)
    return ops.where(ops.equal(items, OUT_OF_VOCABULARY), len(tiers), tier)


def _mean(values, present):
    """Mean over axis 1 of the rows that are present, 0 if none is."""
    present = ops.cast(present, values.dtype)
    return ops.sum(values * present, axis=1) / ops.maximum(ops.sum(present, axis=1), 1.0)
