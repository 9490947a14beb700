"""CAN's co-action unit: a candidate's own small MLP, applied to behaviors (Zhou et al., 2022)."""

import itertools

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.embedding import TableEmbedding
from tfrec_diffusion.layers.mlp import check_units


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class CoAction(keras.layers.Layer):
    """sum_j sum_c MLP_a((P_j)^c): the MLP of value a, on the powers of the vectors of behaviors.

    Both come from tables of their own, so that what two values say together is learned apart from
    what each says alone. A unit's outputs are those of all its layers, tanh, side by side.

    Args:
        rows: Rows of the feature's table.
        units: Widths of the MLP's layers.
        dim: Width of the vectors P.
        orders: Highest power, C.
        stddev: Standard deviation of the initial tables.

    Call arguments:
        behaviors: int (batch, length), rows.
        targets: int (batch, candidates), rows of the same table.
        history_mask: bool (batch, length), True = real.

    Returns:
        (batch, candidates, sum of units): zeros without behaviors.

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

    def build(self, *_):
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
        """(batch, candidates, parameters) to kernels and biases, (batch, candidates, ..)."""
        shape, layers, start = ops.shape(parameters)[:2], [], 0
        for rows, columns in self._shapes:
            middle, end = start + rows * columns, start + (rows + 1) * columns
            kernel = ops.reshape(parameters[..., start:middle], (*shape, rows, columns))
            layers.append((kernel, parameters[..., middle:end][:, :, None]))
            start = end
        return layers

    def compute_output_spec(self, behaviors, targets, history_mask):
        return keras.KerasTensor((*targets.shape, sum(self.units)), self.compute_dtype)

    def get_config(self):
        config = {
            "rows": self.rows,
            "units": self.units,
            "dim": self.dim,
            "orders": self.orders,
            "stddev": self.stddev,
        }
        return {**super().get_config(), **config}
