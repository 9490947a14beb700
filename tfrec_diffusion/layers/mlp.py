"""Multilayer perceptron: the tower that every model ends in, and its activations."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_share
from tfrec_diffusion.layers.dice import Dice


def make_activation(name, shared_axes=None, dtype=None):
    """Makes the layer of an activation, to be called through `activate`.

    Args:
        name: str. `"dice"`, `"prelu"` (one slope per unit) or `"relu"`.
        shared_axes: list of int. Axes along which PReLU shares its slopes: all between the batch
            and the units. Defaults to `None`: there are none.
        dtype: str or `keras.DTypePolicy`. Dtype policy of the layer. Defaults to `None`: Keras's
            global one.

    Returns:
        `keras.layers.Layer`.

    Raises:
        ValueError: If there is no such activation.
    """
    if name == "dice":
        return Dice(dtype=dtype)
    if name == "prelu":
        return keras.layers.PReLU(shared_axes=shared_axes, dtype=dtype)
    if name == "relu":
        return keras.layers.ReLU(dtype=dtype)
    raise ValueError(f'`activation` must be "dice", "prelu" or "relu". Received: {name!r}')


def check_units(units):
    """Checks the widths of layers.

    Args:
        units: tuple or list of int, or int. Widths of the layers, or the width of the only one.

    Returns:
        tuple of int.

    Raises:
        ValueError: If there is none, or one is not a positive integer.
    """
    widths = tuple(units) if isinstance(units, list | tuple) else (units,)
    if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(f"`units` must be positive widths. Received: units={units!r}")
    return widths


def activate(layer, inputs, row_mask, training):
    """Calls a layer that `make_activation` made.

    Args:
        layer: `keras.layers.Layer`.
        inputs: float tensor of shape (..., units).
        row_mask: bool tensor of shape (...), True = real, or `None`. Read by Dice alone, because
            the other activations do not depend on other rows of the batch.
        training: bool. Read by Dice alone.

    Returns:
        float tensor of the shape of `inputs`.
    """
    if isinstance(layer, Dice):
        return layer(inputs, row_mask=row_mask, training=training)
    return layer(inputs)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MLP(keras.layers.Layer):
    """Dense layers over several inputs, each followed by an activation and dropout.

    The result is that of the concatenated inputs, but they are not concatenated. Each input is
    multiplied by its own rows of the first kernel, so that an input that does not depend on the
    candidate is multiplied once per request, whatever the number of candidates.

    Args:
        units: tuple of int. Widths of the layers.
        activation: str. `"dice"`, `"prelu"` or `"relu"`. Defaults to `"dice"`.
        dropout: float. Dropout rate, in [0, 1). Defaults to `0.0`.

    Call arguments:
        inputs: list of float tensors of shape (batch, candidates, dim), or (batch, dim) for an
            input that all candidates share.
        candidate_mask: bool tensor of shape (batch, candidates), True = real. Defaults to `None`:
            all candidates are real.
        training: bool. Whether dropout and Dice run in training mode. Defaults to `None`, which is
            `False`.

    Returns:
        float tensor of shape (batch, candidates, units[-1]).
    """

    def __init__(self, units, activation="dice", dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        units = check_units(units)
        check_share(dropout=dropout)
        self.units = units
        self.activation = activation
        self.dropout = dropout
        self.dense = [keras.layers.Dense(n, dtype=self.dtype_policy) for n in units[1:]]
        self.activations = [
            make_activation(activation, shared_axes=[1], dtype=self.dtype_policy) for _ in units
        ]
        self.dropouts = [keras.layers.Dropout(dropout, dtype=self.dtype_policy) for _ in units]

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(sum(s[-1] for s in input_shape), self.units[0])
        )
        self.bias = self.add_weight(name="bias", shape=(self.units[0],), initializer="zeros")
        shape = self.compute_output_shape(input_shape)
        for i, width in enumerate(self.units):
            if i > 0:
                self.dense[i - 1].build(shape)
            shape = (*shape[:-1], width)
            self.activations[i].build(shape)

    def call(self, inputs, candidate_mask=None, training=None):
        x = self.bias
        start = 0
        for part in inputs:
            stop = start + part.shape[-1]
            product = ops.matmul(part, self.kernel[start:stop])
            x = x + (product if len(part.shape) == 3 else product[:, None])
            start = stop
        for i in range(len(self.units)):
            if i > 0:
                x = self.dense[i - 1](x)
            x = activate(self.activations[i], x, candidate_mask, training)
            x = self.dropouts[i](x, training=training)
        return x

    def compute_output_shape(self, input_shape):
        candidates = next((s[1] for s in input_shape if len(s) == 3), 1)
        return (input_shape[0][0], candidates, self.units[-1])
