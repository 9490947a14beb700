"""Search in the history: the positions of the behaviors that a model reads (SIM, section 3.1).

Positions are counted in float32, which is exact up to 2^24, because TensorFlow counts in int32 on
the CPU even if there is a GPU.
"""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.routing import RESOLUTION, kth_largest

_BLOCK = 32  # running counts within blocks and over blocks are small matrix products


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Newest(keras.layers.Layer):
    """Finds the newest behaviors.

    Args:
        count: int. Number k of behaviors.

    Call arguments:
        history_mask: bool tensor of shape (batch, length), True = real, padded on the right.

    Returns:
        Positions, int32 tensor of shape (batch, min(k, length)), oldest first; and a bool tensor of
        that shape, True = real. If a history has fewer behaviors, the first positions are padding.
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


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopScores(keras.layers.Layer):
    """Retrieves the behaviors with the highest scores of each candidate.

    This is the last step of the first stage of SIM, ETA and TWIN. Scores count as equal if they
    differ by at most 2^-20 of the largest magnitude among a candidate's scores. Of behaviors whose
    score equals the k-th highest, the newest are retrieved. The k-th highest score is found by
    bisection, and the behaviors above it by counting. Under XLA on a CPU this takes a quarter of
    the time of `top_k`, which sorts on one thread.

    Args:
        count: int. Number k of behaviors.

    Call arguments:
        scores: float tensor of shape (batch, candidates, length). A behavior with a score of -inf
            is never retrieved.
        history_mask: bool tensor of shape (batch, length), True = real. Padding is never retrieved.

    Returns:
        Positions, int32 tensor of shape (batch, candidates, min(k, length)), newest first; and a
        bool tensor of that shape, True = retrieved, because there may be fewer than k. No gradient.
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


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SameCategory(keras.layers.Layer):
    """Hard search of SIM: the newest behaviors of the candidate's category.

    Out of vocabulary is a category like any other.

    Call arguments:
        history_categories: int tensor of shape (batch, length). Categories of the behaviors.
        categories: int tensor of shape (batch, candidates). Categories of the candidates.

    Returns:
        Scores for `TopScores`, float32 tensor of shape (batch, candidates, length): the position of
        a behavior of the candidate's category, -inf for one of another category.

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
    """Soft search of SIM: the learned inner product of behavior and candidate (eq. 1).

    The score of behavior e_j for candidate e_a is r_j = (W_b e_j) . (W_a e_a). The sum
    U = sum_j r_j e_j is what the loss of the search is computed from.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        target: float tensor of shape (batch, candidates, d).
        history_mask: bool tensor of shape (batch, length), True = real.

    Returns:
        Scores r for `TopScores`, float32 tensor of shape (batch, candidates, length); and U, float
        tensor of shape (batch, candidates, d).

    Reference:
        Pi et al., CIKM 2020, eq. 1 and section 3.1: https://arxiv.org/abs/2006.05639
    """

    def build(self, history_shape):
        dim = history_shape[-1]
        self.behavior_kernel, self.target_kernel = (
            self.add_weight(name=f"{name}_kernel", shape=(dim, dim))
            for name in ("behavior", "target")
        )

    def call(self, history, target, history_mask):
        # The history is long, so the target is multiplied by W_b in its place.
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
    """Gathers the features of behaviors at some positions of the history.

    Call arguments:
        rows: dict of str to int or float tensor of shape (batch, length) or (batch, length,
            values). Features of the history.
        positions: int tensor of shape (batch, k) or (batch, candidates, k).
        real: bool tensor of the shape of `positions`, True = real.

    Returns:
        dict of str to tensor of the shape of `positions`, with an axis of values where there was
        one. 0 where not real.
    """

    def call(self, rows, positions, real):
        def gathered(value):
            of_entry = real[..., None] if len(value.shape) > 2 else real
            zero = tf.zeros((), value.dtype)
            return tf.where(of_entry, tf.gather(value, positions, batch_dims=1), zero)

        return {name: gathered(value) for name, value in rows.items()}

    def compute_output_spec(self, rows, positions, real):
        return {
            name: keras.KerasTensor((*positions.shape, *value.shape[2:]), value.dtype)
            for name, value in rows.items()
        }


def newest_positions(history_mask, count):
    """Positions of the newest behaviors.

    Args:
        history_mask: bool tensor of shape (batch, length), True = real, padded on the right.
        count: int. Number k of behaviors.

    Returns:
        As in `Newest`.
    """
    width = tf.minimum(tf.shape(history_mask)[1], count)
    used = tf.reduce_sum(tf.cast(history_mask, tf.float32), axis=1, keepdims=True)
    positions = used + tf.cast(tf.range(-width, 0), tf.float32)
    return tf.cast(tf.maximum(positions, 0.0), tf.int32), positions >= 0


def _count(chosen):
    """Number of chosen places of bool (..., length), float32 (...)."""
    return tf.tensordot(tf.cast(chosen, tf.float32), tf.ones(tf.shape(chosen)[-1:]), 1)


def _running_count(chosen):
    """Number of chosen places up to each place of bool (..., length).

    Returns:
        Three float32 tensors: the number up to each place (..., length), the number from the start
        of the block up to each place (..., blocks, _BLOCK), and the number before each block
        (..., blocks).
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
    """The first `count` chosen places of bool (..., length), float32 (..., min(count, length)).

    The place of the i-th is found in two steps: its block is the number of blocks that end before
    it, and its place in the block is the number of places before it there. If fewer are chosen, the
    remaining results are meaningless.
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
