"""The fully connected tower that every model ends in."""

import keras
from keras import ops

from tfrec_diffusion.layers import dice
from tfrec_diffusion.layers.arguments import check_share


def make_activation(name, shared_axes=None, dtype=None):
    """The layer of an activation's name, to be called through `activate`.

    Args:
        name: "dice", "prelu" (one slope a unit) or "relu".
        shared_axes: Axes between the batch and the units, along which PReLU shares its slopes.
        dtype: Dtype policy.
    """
    if name == "dice":
        return dice.Dice(dtype=dtype)
    if name == "prelu":
        return keras.layers.PReLU(shared_axes=shared_axes, dtype=dtype)
    if name == "relu":
        return keras.layers.ReLU(dtype=dtype)
    raise ValueError(f'`activation` must be "dice", "prelu" or "relu". Received: {name!r}')


def check_units(units):
    """Widths of layers as a tuple; a single width is one layer.

    Raises:
        ValueError: If they are not positive integers.
    """
    widths = tuple(units) if isinstance(units, list | tuple) else (units,)
    if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(f"`units` must be positive widths. Received: units={units!r}")
    return widths


def activate(layer, inputs, row_mask, training):
    """Calls a `make_activation` layer; only Dice looks at the rows of the batch together."""
    if isinstance(layer, dice.Dice):
        return layer(inputs, row_mask=row_mask, training=training)
    return layer(inputs)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MLP(keras.layers.Layer):
    """Dense layers with an activation and dropout after each, over concatenated inputs.

    The inputs are never concatenated: each has its own rows of the first kernel, and what does not
    depend on the candidate is multiplied once per request, for any number of candidates.

    Args:
        units: Widths, first to last.
        activation: "dice", "prelu" or "relu".
        dropout: Rate in [0, 1).

    Call arguments:
        inputs: List of float tensors, (batch, candidates, dim) or, for what the candidates share,
            (batch, dim).
        candidate_mask: Optional bool (batch, candidates), True = real.
        training: bool.

    Returns:
        (batch, candidates, units[-1]).
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

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": self.activation,
            "dropout": self.dropout,
        }
