"""Losses over (batch, candidates)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LogLoss(keras.losses.Loss):
    """Binary cross-entropy of each candidate; a weight of 0 leaves a padded one out of the mean.

    Call arguments:
        y_true: (batch, candidates) in {0, 1}.
        y_pred: (batch, candidates) in [0, 1], float32.
        sample_weight: Optional (batch, candidates).
    """

    def __init__(self, reduction="mean_with_sample_weight", name="log_loss", **kwargs):
        super().__init__(name=name, reduction=reduction, **kwargs)

    def call(self, y_true, y_pred):
        return ops.binary_crossentropy(ops.cast(y_true, y_pred.dtype), y_pred)
