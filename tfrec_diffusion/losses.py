"""The loss of click probabilities of shape (batch, candidates)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LogLoss(keras.losses.Loss):
    """Binary cross-entropy of each candidate.

    A padded candidate has the sample weight 0, which leaves it out of the mean.

    Args:
        positive_weight: float. How many times the loss of a positive counts, above 0. A model that
            minimizes it gives a click the odds of the truth times this weight, which
            `calibration.undo_positive_weight` undoes. Defaults to `1.0`.
        reduction: str or `None`. As in `keras.losses.Loss`: how the losses of the candidates become
            one number. The default divides their weighted sum by the sum of the weights. Defaults
            to `"mean_with_sample_weight"`.
        name: str. Name of the loss. Defaults to `"log_loss"`.
        **kwargs: Further arguments of `keras.losses.Loss`: `dtype`.

    Call arguments:
        y_true: tensor of shape (batch, candidates). Labels, 0 or 1, of any numeric dtype.
        y_pred: float32 tensor of shape (batch, candidates). Probabilities in [0, 1].
        sample_weight: float tensor of shape (batch, candidates), optional. Weights of the
            candidates.

    Returns:
        float32 scalar tensor, or one of shape (batch, candidates) if `reduction` is `None` or
        `"none"`.

    Example:

    >>> LogLoss()([[1.0, 0.0]], [[0.5, 0.9]], sample_weight=[[1.0, 0.0]])  # -log(0.5) = 0.6931
    """

    def __init__(
        self,
        positive_weight=1.0,
        reduction="mean_with_sample_weight",
        name="log_loss",
        **kwargs,
    ):
        super().__init__(name=name, reduction=reduction, **kwargs)
        if not positive_weight > 0:
            raise ValueError(
                f"`positive_weight` must be above 0. Received: positive_weight={positive_weight}"
            )
        self.positive_weight = positive_weight

    def call(self, y_true, y_pred):
        y_true = ops.cast(y_true, y_pred.dtype)
        loss = ops.binary_crossentropy(y_true, y_pred)
        if self.positive_weight == 1:
            return loss
        return loss * (1 + (self.positive_weight - 1) * y_true)

    def get_config(self):
        return {**super().get_config(), "positive_weight": self.positive_weight}
