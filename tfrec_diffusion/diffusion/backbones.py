"""HierDiffuse's denoisers f_theta(x_t, t, y), which predict x_0 (eq. 4, 8; table 2b)."""

import keras
from keras import ops

from tfrec_diffusion.diffusion.denoiser import DenoiserBlock, apply, sinusoids


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MLPDenoiser(keras.layers.Layer):
    """MLP([x_t, t, y]).

    The first layer splits: what depends on t or on y alone is made once, by `embed_time` and
    `condition`, and x_t is multiplied once for all conditions.

    Args:
        units: Widths of the hidden layers.

    Call arguments:
        x: float (batch, 1 or conditions, d).
        time: `embed_time` of the steps of x.
        condition: `condition` of y.

    Returns:
        The predicted x_0, (batch, conditions, d).

    Reference:
        HierDiffuse, section 3.2.
    """

    def __init__(self, units=(128, 128), **kwargs):
        super().__init__(**kwargs)
        self.units = tuple(units)

    def build(self, dim):
        def dense(rows, columns, **kwargs):
            layer = keras.layers.Dense(columns, dtype=self.dtype_policy, **kwargs)
            layer.build((None, rows))
            return layer

        first, *rest = self.units
        self.of_x = dense(dim, first)
        self.of_time = dense(dim, first, use_bias=False)
        self.of_condition = dense(dim, first, use_bias=False)
        self.hidden = []
        for width in rest:
            self.hidden.append(dense(first, width, activation="swish"))
            first = width
        self.x_0 = dense(first, dim)

    def embed_time(self, t):
        """int (...) to (..., units[0])."""
        return self.of_time(sinusoids(t, self.x_0.units))

    def condition(self, y):
        """float (batch, conditions, d) to (batch, conditions, units[0])."""
        return self.of_condition(y)

    def call(self, x, time, condition):
        hidden = ops.silu(apply(self.of_x, x) + time + condition)
        for layer in self.hidden:
            hidden = apply(layer, hidden)
        return apply(self.x_0, hidden)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TransformerDenoiser(keras.layers.Layer):
    """Self-attention over the two tokens x_t and y, each with the time added; the first is read.

    Args:
        num_blocks: Number of blocks.
        num_heads: Of each; they divide d.

    Call arguments and Returns: see `MLPDenoiser`.
    """

    def __init__(self, num_blocks=2, num_heads=2, **kwargs):
        super().__init__(**kwargs)
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.blocks = [
            DenoiserBlock(num_heads, channel_guidance=False, dtype=self.dtype_policy)
            for _ in range(num_blocks)
        ]

    def build(self, dim):
        self.of_time = keras.layers.Dense(dim, dtype=self.dtype_policy)
        self.x_0 = keras.layers.Dense(dim, dtype=self.dtype_policy)
        for layer in (self.of_time, self.x_0):
            layer.build((None, dim))
        for block in self.blocks:
            block.build(dim)

    def embed_time(self, t):
        """int (...) to (..., d)."""
        return self.of_time(sinusoids(t, self.x_0.units))

    def condition(self, y):
        """y as it is, and the blocks' weights."""
        return y, [block.fold() for block in self.blocks]

    def call(self, x, time, condition):
        y, folded = condition
        tokens = ops.stack([x + ops.zeros_like(y), y]) + time
        tokens = ops.reshape(tokens, (2, -1, y.shape[-1]))  # (2, batch * conditions, d)
        for i, (block, weights) in enumerate(zip(self.blocks, folded, strict=True)):
            asking = tokens[:1] if i == self.num_blocks - 1 else tokens
            tokens = block(asking, tokens, weights)
        return ops.reshape(apply(self.x_0, tokens), ops.shape(y))

    def get_config(self):
        config = {"num_blocks": self.num_blocks, "num_heads": self.num_heads}
        return {**super().get_config(), **config}
