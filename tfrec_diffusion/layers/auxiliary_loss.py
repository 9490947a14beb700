"""A loss that a layer adds to its model's in training."""

from keras import ops


def add_mean_loss(layer, errors, real, weight, tracker):
    """Adds `weight` times the mean of the errors, and shows the mean itself as a metric.

    Args:
        layer: The layer that the loss is added to.
        errors: float (rows, ...).
        real: bool (rows,): rows that count.
        weight: Of the loss: a number or a scalar tensor.
        tracker: `keras.metrics.Mean`.
    """
    errors = ops.cast(errors, "float32")
    errors = ops.mean(ops.reshape(errors, (ops.shape(errors)[0], -1)), axis=1)
    real = ops.cast(real, "float32")
    loss = ops.sum(errors * real) / ops.maximum(ops.sum(real), 1.0)
    tracker.update_state(loss)
    layer.add_loss(weight * loss)
