"""Adam that touches only the embedding rows of the batch."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LazyAdam(keras.optimizers.Adam):
    """Adam whose step moves the rows that the batch looks up, not the table.

    For a gradient that is `tf.IndexedSlices`, only its rows' moments decay and only its rows move;
    a step that touches every row equals `keras.optimizers.Adam`'s. Dense gradients are Adam's own.

    `clipnorm` and `global_clipnorm` bound the norms of the step's gradients: summed over replicas
    and over the lookups of a row, as Adam's would be if tables' gradients were dense.

    Args:
        As `keras.optimizers.Adam`, without `amsgrad`, and without `weight_decay`, `clipvalue`,
        `gradient_accumulation_steps`, `use_ema` and `loss_scale_factor`, which would touch whole
        tables or fail on sparse gradients.

    Raises:
        ValueError: On one of those.
    """

    _DENSE_ONLY = (
        "amsgrad",
        "weight_decay",
        "clipvalue",
        "use_ema",
        "loss_scale_factor",
        "gradient_accumulation_steps",
    )

    def __init__(self, learning_rate=0.001, name="lazy_adam", **kwargs):
        refused = {name: kwargs[name] for name in self._DENSE_ONLY if kwargs.get(name)}
        if refused:
            raise ValueError(
                f"LazyAdam does not take {sorted(self._DENSE_ONLY)}: they touch every row of a "
                f"table. Received: {refused}"
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)

    def _clip_gradients(self, grads):
        # Keras asks before the sum over replicas, which has another norm than its parts.
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        summed = super()._all_reduce_sum_gradients(grads_and_vars)
        variables = [variable for _, variable in summed]
        gradients = [_sum_lookups(gradient, variable) for gradient, variable in summed]
        if self.global_clipnorm:
            # Keras's own would make the gradients of tables dense.
            gradients, _ = tf.clip_by_global_norm(gradients, self.global_clipnorm)
        else:
            gradients = super()._clip_gradients(gradients)
        return list(zip(gradients, variables, strict=True))

    def update_step(self, gradient, variable, learning_rate):
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        rows, gradient = gradient.indices, gradient.values

        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        learning_rate = tf.cast(learning_rate, variable.dtype)
        alpha = learning_rate * tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        m = self._moved(self._momentums[index], rows, gradient, self.beta_1)
        v = self._moved(self._velocities[index], rows, tf.square(gradient), self.beta_2)
        self.assign_sub(variable, tf.IndexedSlices(alpha * m / (tf.sqrt(v) + self.epsilon), rows))

    def _moved(self, moment, rows, value, beta):
        """Decays `rows` of a moment towards `value` in place; returns them."""
        old = tf.gather(moment.value, rows)
        new = old + (value - old) * (1 - beta)
        self.assign(moment, tf.IndexedSlices(new, rows))
        return new


def _sum_lookups(gradient, variable):
    """Sums a table's gradient over the lookups of each row; leaves a dense gradient as it is."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    values = tf.cast(gradient.values, variable.dtype)
    rows, sums = _sum_duplicates(gradient.indices, values, variable.shape[0])
    return tf.IndexedSlices(sums, rows, gradient.dense_shape)


def _sum_duplicates(indices, values, table_rows):
    """Adds up the values of equal indices.

    Args:
        indices: int (n,), in [0, table_rows).
        values: (n, dim).
        table_rows: Number of rows of the table.

    Returns:
        The distinct indices (k,) and the sum for each (k, dim).
    """
    if isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        # Workers look each row up once, another number at each step: XLA would compile for each.
        distinct, position = tf.unique(indices)
        return distinct, tf.math.unsorted_segment_sum(values, position, tf.size(distinct))
    sums, is_last = _sum_at_last(indices, values, table_rows)
    distinct = tf.where(is_last)[:, 0]
    return tf.gather(indices, distinct), tf.gather(sums, distinct)


@tf.function(jit_compile=True, reduce_retracing=True)
def _sum_at_last(indices, values, table_rows):
    """Sums where each index occurs last, and where that is.

    The scratch vector has an int32 for each row of the table, an eighth of a table of dim 8.
    `tf.unique` hashes on one thread and is slower up to tables of tens of millions of rows
    (tools/benchmark_optimizer.py).
    """
    count = tf.size(indices)
    position = tf.range(count)
    last = tf.gather(tf.math.unsorted_segment_max(position, indices, table_rows), indices)
    return tf.math.unsorted_segment_sum(values, last, count), tf.equal(last, position)
