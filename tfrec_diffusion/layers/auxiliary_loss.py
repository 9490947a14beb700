"""Auxiliary loss that a layer adds to the loss of its model in training."""

from keras import ops


def add_mean_loss(layer, errors, real, weight, tracker):
    """Adds `weight` times the mean of the errors as a loss, and the mean itself to a metric.

    Args:
        layer: `keras.layers.Layer`. The layer that the loss is added to.
        errors: float tensor of shape (rows, ...).
        real: bool tensor of shape (rows,), True = real. The other rows do not count.
        weight: float or scalar float tensor. Weight of the loss.
        tracker: `keras.metrics.Mean`. The metric of the loss without its weight.
    """
    errors = ops.cast(errors, "float32")
    errors = ops.mean(ops.reshape(errors, (ops.shape(errors)[0], -1)), axis=1)
    real = ops.cast(real, "float32")
    loss = ops.sum(errors * real) / ops.maximum(ops.sum(real), 1.0)
    tracker.update_state(loss)
    layer.add_loss(weight * loss)
