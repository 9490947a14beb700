"""Search in the history: which behaviors a model looks at, as positions in it.

Positions are counted in float32, which is exact to 2^24: int32 would be counted on the host, also
where there is a GPU.
"""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.routing import RESOLUTION, kth_largest

_BLOCK = 32  # sums within blocks and over blocks are small products


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Newest(keras.layers.Layer):
    """The newest behaviors.

    Args:
        count: How many, k.

    Call arguments:
        history_mask: bool (batch, length), True = real; padded on the right.

    Returns:
        Positions, int32 (batch, min(k, length)), oldest first; and bool of that shape, True = real:
        of a history shorter than k the first are padding.
    """

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(count=count)
        self.count = count

    def call(self, history_mask):
        return newest_positions(history_mask, self.count)

    def compute_output_spec(self, history_mask):
        shape = (history_mask.shape[0], None)
        return keras.KerasTensor(shape, "int32"), keras.KerasTensor(shape, "bool")

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopScores(keras.layers.Layer):
    """The behaviors of the highest scores: the first stage's answer, for each candidate its own.

    The threshold is found by bisection, and what passes it by counting: under XLA on a CPU
    a quarter of the time of `top_k`, which sorts on one thread.

    Args:
        count: How many, k.

    Call arguments:
        scores: (batch, candidates, length); -inf: never retrieved.
        history_mask: bool (batch, length), True = real; what is not is never retrieved.

    Returns:
        Positions, int32 (batch, candidates, min(k, length)), newest first, and bool of that shape,
        True = retrieved: there may be fewer than k. Of scores that equal the k-th highest, to 2^-20
        of the row's largest magnitude, the newest are retrieved. No gradient.
    """

    def __init__(self, count, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(count=count)
        self.count = count

    def call(self, scores, history_mask):
        scores = ops.cast(ops.stop_gradient(scores), "float32")
        scores = tf.reverse(ops.where(history_mask[:, None], scores, -float("inf")), [-1])
        there = _count(scores > -float("inf"))
        wanted = ops.minimum(float(self.count), there)
        threshold, magnitude = kth_largest(scores, wanted)
        above = scores > (threshold + RESOLUTION * magnitude)[..., None]
        equal = (scores >= threshold[..., None]) & ~above
        left = (wanted - _count(above))[..., None]
        places = _places(above | (equal & (_running_count(equal)[0] <= left)), self.count)
        last = tf.cast(tf.shape(scores)[-1] - 1, tf.float32)
        retrieved = ops.cast(ops.arange(ops.shape(places)[-1]), "float32") < wanted[..., None]
        return ops.cast(last - ops.minimum(places, last), "int32"), retrieved

    def compute_output_spec(self, scores, history_mask):
        shape = (*scores.shape[:2], None)
        return keras.KerasTensor(shape, "int32"), keras.KerasTensor(shape, "bool")

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SameCategory(keras.layers.Layer):
    """SIM's hard search: the behaviors of the candidate's category, newest first.

    Call arguments:
        history_categories: int (batch, length), rows of a table.
        categories: int (batch, candidates), rows of the same table.

    Returns:
        Scores for `TopScores`, float32 (batch, candidates, length): positions, and -inf for another
        category. What is out of vocabulary is a category like any other.

    Reference:
        Pi et al., CIKM 2020, section 3.1: https://arxiv.org/abs/2006.05639
    """

    def call(self, history_categories, categories):
        same = ops.equal(history_categories[:, None], categories[:, :, None])
        positions = tf.cast(tf.range(tf.shape(history_categories)[1]), tf.float32)
        return ops.where(same, positions, -float("inf"))

    def compute_output_spec(self, history_categories, categories):
        return keras.KerasTensor((*categories.shape, history_categories.shape[1]), "float32")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class InnerProductSearch(keras.layers.Layer):
    """SIM's soft search: r_j = (W_b e_j) . (W_a e_a), and U = sum_j r_j e_j for its own loss.

    Call arguments:
        history: (batch, length, d).
        target: (batch, candidates, d), e_a.
        history_mask: bool (batch, length), True = real.

    Returns:
        Scores r, float32 (batch, candidates, length); and U, (batch, candidates, d).

    Reference:
        Pi et al., CIKM 2020, eq. 1 and section 3.1: https://arxiv.org/abs/2006.05639
    """

    def build(self, history_shape, *_):
        dim = history_shape[-1]
        self.behavior_kernel, self.target_kernel = (
            self.add_weight(name=f"{name}_kernel", shape=(dim, dim))
            for name in ("behavior", "target")
        )

    def call(self, history, target, history_mask):
        # W_b goes to the other side of the product: the history is long.
        kernel = ops.matmul(self.target_kernel, ops.transpose(self.behavior_kernel))
        query = ops.matmul(target, kernel)
        scores = ops.matmul(query, ops.transpose(history, (0, 2, 1)))
        scores = ops.where(history_mask[:, None], scores, 0)
        return ops.cast(scores, "float32"), ops.matmul(scores, history)

    def compute_output_spec(self, history, target, history_mask):
        scores = keras.KerasTensor((*target.shape[:2], history.shape[1]), "float32")
        return scores, keras.KerasTensor(target.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class BehaviorRows(keras.layers.Layer):
    """What stands at some positions of the history's features.

    Call arguments:
        rows: dict of int (batch, length).
        positions: int (batch, k) or (batch, candidates, k).
        real: bool of that shape.

    Returns:
        dict of int, each of the shape of `positions`; 0 where not real.
    """

    def call(self, rows, positions, real):
        return {
            name: tf.where(real, tf.gather(value, positions, batch_dims=1), 0)
            for name, value in rows.items()
        }

    def compute_output_spec(self, rows, positions, real):
        return {
            name: keras.KerasTensor(positions.shape, value.dtype) for name, value in rows.items()
        }


def newest_positions(history_mask, count):
    """See `Newest`."""
    width = tf.minimum(tf.shape(history_mask)[1], count)
    used = tf.reduce_sum(tf.cast(history_mask, tf.float32), axis=1, keepdims=True)
    positions = used + tf.cast(tf.range(-width, 0), tf.float32)
    return tf.cast(tf.maximum(positions, 0.0), tf.int32), positions >= 0


def _count(chosen):
    """How many, float32 (...), of bool (..., length)."""
    return tf.tensordot(tf.cast(chosen, tf.float32), tf.ones(tf.shape(chosen)[-1:]), 1)


def _running_count(chosen):
    """How many up to each place, of bool (..., length).

    Returns:
        float32 (..., length); the same within blocks, (..., blocks, _BLOCK); and how many are
        before each block, (..., blocks).
    """
    shape = tf.shape(chosen)
    length = shape[-1]
    padding = [[0, 0]] * (len(chosen.shape) - 1) + [[0, -length % _BLOCK]]
    blocks = tf.reshape(
        tf.pad(tf.cast(chosen, tf.float32), padding),
        tf.concat([shape[:-1], [-(-length // _BLOCK), _BLOCK]], 0),
    )
    within = tf.tensordot(blocks, tf.linalg.band_part(tf.ones((_BLOCK, _BLOCK)), 0, -1), 1)
    count = tf.shape(blocks)[-2]
    ones = tf.ones((count, count))
    earlier = ones - tf.linalg.band_part(ones, -1, 0)
    before = tf.tensordot(within[..., -1], earlier, 1)
    running = tf.reshape(within + before[..., None], tf.concat([shape[:-1], [-1]], 0))
    return running[..., :length], within, before


def _places(chosen, count):
    """Places of the first `count` chosen, float32 (..., min(count, length)), of bool (..., length).

    Place i is found in two steps: how many blocks end before it, and how many places of its block.
    Where fewer are chosen, what is left is no place.
    """
    _, within, before = _running_count(chosen)
    number = tf.range(tf.minimum(count, tf.shape(chosen)[-1]))
    number = tf.cast(number, tf.float32) + tf.zeros_like(before[..., :1])
    ends = before + within[..., -1]
    block = tf.reduce_sum(tf.cast(ends[..., None, :] <= number[..., None], tf.float32), axis=-1)
    block = tf.minimum(block, tf.cast(tf.shape(before)[-1] - 1, tf.float32))
    row, batch_dims = tf.cast(block, tf.int32), len(chosen.shape) - 1
    number -= tf.gather(before, row, batch_dims=batch_dims)
    within = tf.gather(within, row, batch_dims=batch_dims)
    inside = tf.reduce_sum(tf.cast(within <= number[..., None], tf.float32), axis=-1)
    return block * _BLOCK + inside
