"""Adam that updates only those rows of embedding tables that a batch looks up."""

import math

import keras
import tensorflow as tf

from tfrec_diffusion.names import SCHEDULES


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LazyAdam(keras.optimizers.Adam):
    """Adam that moves the embedding rows of a batch and leaves the others alone.

    Of a variable whose gradient is `tf.IndexedSlices`, as an embedding table's is, a step updates
    only the rows of the gradient and only their moments. Where the gradient has every row, the step
    equals that of `keras.optimizers.Adam`, and so does every step of a dense gradient.

    Clipping applies to the gradients of the whole step, after they are summed over replicas and
    over all lookups of a row, just as if gradients of tables were dense.

    Args:
        learning_rate: float or `keras.optimizers.schedules.LearningRateSchedule`. Step size.
            Defaults to `0.001`.
        name: str. Name of the optimizer. Defaults to `"lazy_adam"`.
        beta_1: float. Decay rate of the first moments. Defaults to `0.9`.
        beta_2: float. Decay rate of the second moments. Defaults to `0.999`.
        epsilon: float. Added to the root of the second moment, by which the first is divided.
            Defaults to `1e-7`.
        clipnorm: float or `None`. The most that the norm of each variable's gradient may be. If
            `None`, these are not clipped. Defaults to `None`.
        global_clipnorm: float or `None`. The most that the norm of all gradients together may be.
            If `None`, it is not clipped. Defaults to `None`.
        table_factor: float. Step size of sparse gradients, as a multiple of `learning_rate`; more
            than 0. Defaults to `1.0`.
        table_decay: float. How much of themselves, times the step size, the rows of a sparse
            gradient lose in a step; at least 0. Other rows lose nothing. Defaults to `0.0`.
        steps_before: int. Steps that the moments have seen before the first one of this optimizer,
            where they come from another. Adam divides young moments by what they lack. Defaults to
            `0`.
        **kwargs: Further arguments of `keras.optimizers.Adam`, except `amsgrad`, `weight_decay`,
            `clipvalue`, `gradient_accumulation_steps`, `use_ema` and `loss_scale_factor`, which
            would touch every row of a table or fail on sparse gradients.

    Raises:
        ValueError: If one of those arguments is given, `table_factor` is not positive, or
            `table_decay` is negative.

    Example:

    >>> model.compile(LazyAdam(1e-3, global_clipnorm=5.0), LogLoss())
    """

    _DENSE_ONLY = (
        "amsgrad",
        "weight_decay",
        "clipvalue",
        "use_ema",
        "loss_scale_factor",
        "gradient_accumulation_steps",
    )

    def __init__(
        self,
        learning_rate=0.001,
        name="lazy_adam",
        table_factor=1.0,
        table_decay=0.0,
        steps_before=0,
        **kwargs,
    ):
        refused = {name: kwargs[name] for name in self._DENSE_ONLY if kwargs.get(name)}
        if refused:
            raise ValueError(
                f"LazyAdam does not take {sorted(self._DENSE_ONLY)}: they touch every row of a "
                f"table. Received: {refused}"
            )
        if not table_factor > 0:
            raise ValueError(
                f"`table_factor` must be above 0. Received: table_factor={table_factor!r}"
            )
        if not table_decay >= 0:
            raise ValueError(
                f"`table_decay` must be at least 0. Received: table_decay={table_decay!r}"
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.table_factor = table_factor
        self.table_decay = table_decay
        self.steps_before = steps_before

    def get_config(self):
        names = ("table_factor", "table_decay", "steps_before")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _clip_gradients(self, grads):
        # Keras clips before the sum over replicas, but it is the norm of the sum that counts.
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        summed = super()._all_reduce_sum_gradients(grads_and_vars)
        variables = [variable for _, variable in summed]
        gradients = [_sum_lookups(gradient, variable) for gradient, variable in summed]
        if self.global_clipnorm:
            # Keras's own clipping would make the gradients of tables dense.
            gradients, _ = tf.clip_by_global_norm(gradients, self.global_clipnorm)
        else:
            gradients = super()._clip_gradients(gradients)
        return list(zip(gradients, variables, strict=True))

    def update_step(self, gradient, variable, learning_rate):
        step = tf.cast(self.iterations + 1, variable.dtype)
        learning_rate = tf.cast(learning_rate, variable.dtype)
        if not isinstance(gradient, tf.IndexedSlices):
            if self.steps_before:  # Keras corrects for moments as young as its own steps
                young = self._corrected(1.0, step)
                learning_rate = self._corrected(learning_rate, step + self.steps_before) / young
            super().update_step(gradient, variable, learning_rate)
            return
        rows, gradient = gradient.indices, gradient.values

        index = self._get_variable_index(variable)
        learning_rate *= self.table_factor
        alpha = self._corrected(learning_rate, step + self.steps_before)
        m = self._moved(self._momentums[index], rows, gradient, self.beta_1)
        v = self._moved(self._velocities[index], rows, tf.square(gradient), self.beta_2)
        change = alpha * m / (tf.sqrt(v) + self.epsilon)
        if self.table_decay:
            change += learning_rate * self.table_decay * tf.gather(variable, rows)
        self.assign_sub(variable, tf.IndexedSlices(change, rows))

    def _corrected(self, learning_rate, step):
        """Adam's step size where the moments are of so many steps."""
        return learning_rate * tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)

    def _moved(self, moment, rows, value, beta):
        """Moves `rows` of a moment towards `value`, in place; returns their new values."""
        old = tf.gather(moment.value, rows)
        new = old + (value - old) * (1 - beta)
        self.assign(moment, tf.IndexedSlices(new, rows))
        return new


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises over the first steps, and then stays or falls to 0.

    Args:
        learning_rate: float. The highest.
        kind: str. What comes after the rise: `"constant"`, or `"linear"` or `"cosine"`, which reach
            0 at `steps`.
        steps: int. Number of all steps.
        warmup_steps: int. Steps in which the rate rises in proportion to them. Defaults to `0`.

    Call arguments:
        step: int tensor. Steps taken before.

    Returns:
        float32 scalar tensor.
    """

    def __init__(self, learning_rate, kind, steps, warmup_steps=0):
        if kind not in SCHEDULES:
            raise ValueError(f"`kind` must be one of {SCHEDULES}. Received: {kind!r}")
        self.learning_rate = learning_rate
        self.kind = kind
        self.steps = steps
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rise = tf.minimum((step + 1) / max(1, self.warmup_steps), 1.0)
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        left = tf.clip_by_value(left, 0.0, 1.0)
        fall = {
            "constant": 1.0,
            "linear": left,
            "cosine": (1 - tf.cos(math.pi * left)) / 2,
        }
        return self.learning_rate * rise * fall[self.kind]

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "kind": self.kind,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
        }


def _sum_lookups(gradient, variable):
    """Sums the gradient of a table over the lookups of each row; a dense one stays as it is."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    values = tf.cast(gradient.values, variable.dtype)
    rows, sums = _sum_duplicates(gradient.indices, values, variable.shape[0])
    return tf.IndexedSlices(sums, rows, gradient.dense_shape)


def _sum_duplicates(indices, values, table_rows):
    """Adds up the values of equal indices.

    Args:
        indices: int tensor of shape (n,). In [0, table_rows).
        values: float tensor of shape (n, dim).
        table_rows: int. Number of rows of the table.

    Returns:
        Tuple of the distinct indices, of shape (k,), and their sums, of shape (k, dim).
    """
    if isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        # Workers look each row up once, so that the number of rows changes from step to step, and
        # XLA would compile for each number.
        distinct, position = tf.unique(indices)
        return distinct, tf.math.unsorted_segment_sum(values, position, tf.size(distinct))
    sums, is_last = _sum_at_last(indices, values, table_rows)
    distinct = tf.where(is_last)[:, 0]
    return tf.gather(indices, distinct), tf.gather(sums, distinct)


@tf.function(jit_compile=True, reduce_retracing=True)
def _sum_at_last(indices, values, table_rows):
    """Adds up the values of equal indices, at the position where the index occurs last.

    Returns the sums, of shape (n, dim), and a bool of shape (n,) that tells these positions.

    The scratch vector has an int32 for each row of the table, an eighth of a table of dim 8.
    `tf.unique` hashes on one thread and is slower for tables of up to tens of millions of rows
    (tools/benchmarks/optimizer_speed.py).
    """
    count = tf.size(indices)
    position = tf.range(count)
    last = tf.gather(tf.math.unsorted_segment_max(position, indices, table_rows), indices)
    return tf.math.unsorted_segment_sum(values, last, count), tf.equal(last, position)
