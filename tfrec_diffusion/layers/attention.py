"""Target attention over the history: the local activation unit (DIN, eq. 3)."""

import itertools

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.mlp import activate, check_units, make_activation
from tfrec_diffusion.layers.normalization import masked_softmax

# At inference on a CPU, requests are computed in blocks that stay in its cache. The best of the
# powers of two by `tools/benchmarks/model_speed.py`.
_POSITIONS_PER_BLOCK = 4096


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class LocalActivationUnit(keras.layers.Layer):
    """Sum of the behaviors, weighted by an MLP of each behavior and the candidate.

    DIN has no softmax over the weights, so that their sum tells how much of the history matches;
    `softmax=True` is the common variant. The first layer of the MLP, over [history, target,
    history * target], is computed as the product of the history with
    (W_history + diag(target) W_product), plus target W_target. This is the same function, but no
    tensor of width 3 d is made.

    Args:
        units: tuple of int. Widths of the layers of the MLP before its last one, which is linear
            with one unit. Defaults to `(80, 40)`.
        activation: str. `"dice"`, `"prelu"` or `"relu"`. Defaults to `"dice"`.
        softmax: bool. Whether the weights of the real behaviors are normalized by a softmax.
            Defaults to `False`.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        target: float tensor of shape (batch, candidates, d).
        history_mask: bool tensor of shape (batch, length), True = real.
        candidate_mask: bool tensor of shape (batch, candidates), True = real.
        training: bool. Whether the activations run in training mode. Defaults to `None`, which
            is `False`.

    Returns:
        float tensor of shape (batch, candidates, d). Zeros where no behavior is real.

    Reference:
        https://arxiv.org/abs/1706.06978
    """

    def __init__(self, units=(80, 40), activation="dice", softmax=False, **kwargs):
        super().__init__(**kwargs)
        self.units = check_units(units)
        self.activation = activation
        self.softmax = softmax
        self.activations = [
            make_activation(activation, dtype=self.dtype_policy) for _ in self.units
        ]

    def build(self, history_shape, target_shape=None):
        dim = history_shape[-1]
        widths = (3 * dim, *self.units, 1)
        self.kernels, self.biases = [], []
        for i, (rows, width) in enumerate(itertools.pairwise(widths)):
            self.kernels.append(self.add_weight(name=f"kernel_{i}", shape=(rows, width)))
            self.biases.append(
                self.add_weight(name=f"bias_{i}", shape=(width,), initializer="zeros")
            )
        for layer, width in zip(self.activations, self.units, strict=True):
            layer.build((None, width))

    def call(self, history, target, history_mask, candidate_mask, training=None):
        inputs = (history, target, history_mask, candidate_mask)
        if training or tf.config.list_logical_devices("GPU"):
            return self._attend(*inputs, training)
        batch, length, dim = ops.shape(history)
        candidates = ops.shape(target)[1]
        block = _requests_per_block(batch, length * candidates)
        blocks = ops.maximum(-(-batch // block), 1)  # a loop over no block has no output shape
        padding = blocks * block - batch

        def split(tensor):
            tensor = tf.pad(tensor, [[0, padding]] + [[0, 0]] * (len(tensor.shape) - 1))
            return ops.reshape(tensor, (blocks, block, *ops.shape(tensor)[1:]))

        outputs = tf.map_fn(
            lambda inputs: self._attend(*inputs, training=False),
            tuple(split(tensor) for tensor in inputs),
            fn_output_signature=self.compute_dtype,
        )
        return ops.reshape(outputs, (batch + padding, candidates, dim))[:batch]

    def _attend(self, history, target, history_mask, candidate_mask, training):
        batch, length, dim = ops.shape(history)
        candidates = ops.shape(target)[1]
        units = self.units[0]
        of_history, of_target, of_product = (
            self.kernels[0][i * dim : (i + 1) * dim] for i in range(3)
        )
        mask = ops.logical_and(history_mask[:, :, None], candidate_mask[:, None])
        real = ops.reshape(ops.cast(mask, self.compute_dtype), (-1, 1))

        # (batch, d, candidates * units)
        kernel = of_history[:, None] + (
            ops.transpose(target, (0, 2, 1))[..., None] * of_product[:, None]
        )
        kernel = ops.reshape(kernel, (batch, dim, candidates * units))
        shift = ops.reshape(
            ops.matmul(target, of_target) + self.biases[0], (batch, 1, candidates * units)
        )
        # A bias is added as a product with ones, or with zeros for padding. Its gradient then is a
        # product too, which on a CPU is several times faster than a sum over all positions.
        x = ops.matmul(history, kernel) + ops.matmul(ops.ones_like(history[..., :1]), shift)
        x = ops.reshape(x, (-1, units))  # (batch * length * candidates, units)
        for i, layer in enumerate(self.activations):
            if i > 0:
                x = ops.matmul(x, self.kernels[i]) + ops.matmul(real, self.biases[i][None])
            x = activate(layer, x, real[:, 0], training)
        scores = (ops.matmul(x, self.kernels[-1]) + self.biases[-1]) * real
        scores = ops.reshape(scores, (batch, length, candidates))
        if not self.softmax:
            return ops.einsum("bln,bld->bnd", scores, history)
        logits = ops.cast(ops.transpose(scores, (0, 2, 1)), "float32")
        weights = masked_softmax(logits, history_mask[:, None])
        return ops.matmul(ops.cast(weights, self.compute_dtype), history)

    def compute_output_spec(self, history, target, *_, training=None):
        return keras.KerasTensor(target.shape, self.compute_dtype)


def _requests_per_block(batch, positions):
    """How many requests make a block: as many as fit into a CPU's cache, at most `batch`.

    Args:
        batch: int or scalar int tensor. Number of requests.
        positions: int or scalar int tensor. Behaviors times candidates of a request.

    Returns:
        int, or a scalar int tensor if an argument is one.
    """
    if isinstance(batch, int) and isinstance(positions, int):
        block = max(_POSITIONS_PER_BLOCK // max(positions, 1), 1)
        block = 1 << (block.bit_length() - 1)  # divides most batches without padding
        return max(min(block, batch), 1)
    block = tf.maximum(_POSITIONS_PER_BLOCK // tf.maximum(positions, 1), 1)
    return tf.maximum(tf.minimum(block, batch), 1)
