"""An averaged teacher, whose predictions a consistency loss compares with (Song et al., 2023)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class Teacher(keras.layers.Layer):
    """Exponential moving averages of another layer's weights, which that layer can run with.

    The averages are not trainable. They start as copies of the weights, where a second layer would
    draw its own, so that layers that are built afterwards start as they would without a teacher.

    >>> teacher.follow(denoiser.weights)  # once, in `build`
    >>> teacher.update(denoiser.weights)  # in each step of training
    >>> with teacher.in_place_of(denoiser.weights):
    ...     prediction = denoiser(...)

    Args:
        decay: float. Share of the averages that an update keeps, in [0, 1). Defaults to `0.95`.
    """

    def __init__(self, decay=0.95, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay

    def follow(self, weights):
        """Makes an average of each weight, which starts where the weight does.

        Args:
            weights: list of `keras.Variable`.
        """

        def average(weight):
            return self.add_weight(
                name=weight.name,
                shape=weight.shape,
                initializer=lambda *_, **__: ops.convert_to_tensor(weight),
                trainable=False,
                autocast=False,
            )

        self.averages = [average(weight) for weight in weights]
        self.built = True

    def update(self, weights):
        """Moves the averages toward the weights.

        Args:
            weights: list of `keras.Variable`, as in `follow`.
        """
        for average, weight in zip(self.averages, weights, strict=True):
            average.assign(average + (1 - self.decay) * (weight - average))

    def in_place_of(self, weights):
        """A context in which the averages are read where the weights are.

        Args:
            weights: list of `keras.Variable`, as in `follow`.

        Returns:
            `keras.StatelessScope`.
        """
        return keras.StatelessScope(list(zip(weights, self.averages, strict=True)))
