"""Co-action unit: a small MLP of the candidate's own, applied to the behaviors (CAN, section 4)."""

import itertools

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.embedding import TableEmbedding
from tfrec_diffusion.layers.mlp import check_units


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class CoAction(keras.layers.Layer):
    """Applies the MLP of each candidate's value to the vectors of the behaviors' values.

    The output is sum_j sum_c MLP_a((P_j)^c), for a candidate of value a, behaviors j and powers c
    from 1 to C. The parameters of MLP_a and the vectors P_j are rows of two tables of the layer's
    own, so that what two values mean together is learned apart from what each means alone. Every
    layer of the MLP has a tanh, and the output of MLP_a is that of all its layers, side by side.

    Args:
        rows: int. Number of rows of the feature's table.
        units: tuple of int. Widths of the MLP's layers. Defaults to `(8, 4)`.
        dim: int. Width of the vectors P. Defaults to `8`.
        orders: int. Highest power C. Defaults to `3`.
        stddev: float. Standard deviation of the initial values of both tables. Defaults to `0.2`.

    Call arguments:
        behaviors: int tensor of shape (batch, length). Rows of the behaviors' values.
        targets: int tensor of shape (batch, candidates). Rows of the candidates' values in the
            same table.
        history_mask: bool tensor of shape (batch, length), True = real.

    Returns:
        float tensor of shape (batch, candidates, sum of `units`). Zeros without behaviors.

    Reference:
        Section 4: https://arxiv.org/abs/2011.05625
    """

    def __init__(self, rows, units=(8, 4), dim=8, orders=3, stddev=0.2, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(dim=dim, orders=orders)
        self.rows = rows
        self.units = check_units(units)
        self.dim = dim
        self.orders = orders
        self.stddev = stddev
        widths = itertools.pairwise((dim, *self.units))
        self._shapes = [(rows_, columns) for rows_, columns in widths]
        parameters = sum((rows_ + 1) * columns for rows_, columns in self._shapes)
        self.mlp_table = TableEmbedding(rows, parameters, stddev, dtype=self.dtype_policy)
        self.vector_table = TableEmbedding(rows, dim, stddev, dtype=self.dtype_policy)

    def build(self, behaviors_shape=None):
        self.mlp_table.build()
        self.vector_table.build()

    def call(self, behaviors, targets, history_mask):
        vectors = self.vector_table(behaviors)[:, None]  # (batch, 1, length, dim)
        layers = self._mlp(self.mlp_table(targets))
        real = ops.cast(history_mask, vectors.dtype)[:, None, None]  # (batch, 1, 1, length)
        pooled, power = 0, 1
        for _ in range(self.orders):
            power = power * vectors
            outputs, x = [], power
            for kernel, bias in layers:
                x = ops.tanh(ops.matmul(x, kernel) + bias)  # (batch, candidates, length, units)
                outputs.append(ops.matmul(real, x)[:, :, 0])
            pooled = pooled + ops.concatenate(outputs, axis=-1)
        return pooled

    def _mlp(self, parameters):
        """Kernel and bias (batch, candidates, ..) of each layer, of (batch, candidates, all)."""
        shape, layers, start = ops.shape(parameters)[:2], [], 0
        for rows, columns in self._shapes:
            middle, end = start + rows * columns, start + (rows + 1) * columns
            kernel = ops.reshape(parameters[..., start:middle], (*shape, rows, columns))
            layers.append((kernel, parameters[..., middle:end][:, :, None]))
            start = end
        return layers

    def compute_output_spec(self, behaviors, targets, history_mask):
        return keras.KerasTensor((*targets.shape, sum(self.units)), self.compute_dtype)
