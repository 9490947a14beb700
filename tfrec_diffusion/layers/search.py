"""Search in the history: which behaviors a model looks at, as positions in it."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers


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
        width = tf.minimum(tf.shape(history_mask)[1], self.count)
        used = tf.reduce_sum(tf.cast(history_mask, tf.int32), axis=1, keepdims=True)
        positions = used - width + tf.range(width)
        return tf.maximum(positions, 0), positions >= 0

    def compute_output_spec(self, history_mask):
        shape = (history_mask.shape[0], None)
        return keras.KerasTensor(shape, "int32"), keras.KerasTensor(shape, "bool")

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TopScores(keras.layers.Layer):
    """The behaviors of the highest scores: the first stage's answer, for each candidate its own.

    Args:
        count: How many, k.

    Call arguments:
        scores: (batch, candidates, length); -inf: never retrieved.
        history_mask: bool (batch, length), True = real; what is not is never retrieved.

    Returns:
        Positions, int32 (batch, candidates, min(k, length)), highest first, the newest first among
        equals; and bool of that shape, True = retrieved: there may be fewer than k. No gradient.
    """

    def __init__(self, count, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(count=count)
        self.count = count

    def call(self, scores, history_mask):
        scores = ops.cast(ops.stop_gradient(scores), "float32")
        scores = ops.where(history_mask[:, None], scores, -float("inf"))
        length = ops.shape(scores)[-1]
        # Of equal scores `top_k` takes the first.
        newest_first = tf.reverse(scores, [-1])
        highest, places = tf.math.top_k(newest_first, tf.minimum(self.count, length))
        return length - 1 - places, highest > -float("inf")

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
