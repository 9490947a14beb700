"""The denoisers of DiffuMIN (eq. 14-17) and of HierDiffuse (eq. 4, 8; table 2b)."""

import keras
import numpy as np
from keras import ops

from tfrec_diffusion.diffusion.denoiser_block import DenoiserBlock, apply
from tfrec_diffusion.layers.arguments import check_positive_integers


class Denoiser(keras.layers.Layer):
    """Base class of the denoisers, which predict the noise in a vector x_t, or x_0 itself.

    A sampler calls a denoiser in many steps, so what is the same in all of them is made only once:

    >>> condition = denoiser.condition(*guides)  # once for each request
    >>> times = denoiser.embed_time(timesteps)  # once for all steps
    >>> prediction = denoiser(x, times[step][None, None], condition)  # in each step

    `build` takes the shape of `x` and must be called first. The prediction for a row depends on no
    other row.

    Call arguments:
        x: float tensor of shape (rows, n, d). The vectors x_t, n in each row.
        time: float tensor of shape (rows, n, width), or (1, 1, width) if all vectors are at the
            same step. What `embed_time` returned for the steps of `x`.
        condition: What `condition` returned.

    Returns:
        float tensor of shape (rows, n, d). The prediction for each vector of `x`.
    """

    def embed_time(self, t):
        """Embeds steps.

        Args:
            t: int tensor of shape (...), with at least one axis. The steps t.

        Returns:
            float tensor of shape (..., width). Each subclass has a width of its own.
        """
        raise NotImplementedError

    def condition(self, *guides):
        """Prepares what guides the predictions.

        Args:
            *guides: Tensors, which each subclass names.

        Returns:
            A structure of tensors. Only `call` needs to understand it.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class GuidedDenoiser(Denoiser):
    """DiffuMIN's epsilon_theta(r_{i,t}, t, g_1, g_2), which predicts the noise in each interest.

    Each interest r_{i,t} of a row is guided by the other interests of the row, without noise, and
    by its own channel o_i. It is a problem of its own with the tokens
    [r_{i,t}, r_1 .. r_{i-1}, r_{i+1} .. r_c]. Their order does not matter, because the Transformer
    has no position embeddings. Only the first token is read, so the last block computes no other.
    Tensors of tokens have the shape (tokens, problems, d): each operation then handles all problems
    at once, over long contiguous runs of memory.

    Args:
        num_blocks: int. Number of Transformer blocks. Defaults to `2`.
        num_heads: int. Number of heads of each block. Must divide d. Defaults to `2`.
        ffn_factor: int. Width of each block's feed-forward layer as a multiple of d.
            Defaults to `3`.
        context_guidance: bool. Whether the other interests are among the tokens (not in variants W
            and Y of the paper). Defaults to `True`.
        channel_guidance: bool. Whether the channel guides (not in variants X and Y).
            Defaults to `True`.

    Call arguments:
        x: float tensor of shape (rows, c, d). The noised interests r_{i,t}.
        time: As in `Denoiser`.
        condition: As in `Denoiser`.

    Returns:
        float tensor of shape (rows, c, d). The predicted noise.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(
        self,
        num_blocks=2,
        num_heads=2,
        ffn_factor=3,
        context_guidance=True,
        channel_guidance=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive_integers(num_blocks=num_blocks, num_heads=num_heads, ffn_factor=ffn_factor)
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.ffn_factor = ffn_factor
        self.context_guidance = context_guidance
        self.channel_guidance = channel_guidance
        self.blocks = [
            DenoiserBlock(num_heads, ffn_factor, channel_guidance, dtype=self.dtype_policy)
            for _ in range(num_blocks)
        ]
        self.time_layers = []

    def build(self, input_shape):
        dim = input_shape[-1]
        self.time_layers = [
            keras.layers.Dense(dim, "swish", dtype=self.dtype_policy),
            keras.layers.Dense(dim, dtype=self.dtype_policy),
        ]
        self.noise = keras.layers.Dense(dim, dtype=self.dtype_policy)
        for layer in (*self.time_layers, self.noise):
            layer.build((None, dim))
        for block in self.blocks:
            block.build((None, None, dim))

    def embed_time(self, t):
        """See `Denoiser`; the width is d."""
        embedded = sinusoids(t, self.noise.units)
        for layer in self.time_layers:
            embedded = layer(embedded)
        return embedded

    def condition(self, interests, channels):
        """See `Denoiser`.

        Args:
            interests: float tensor of shape (rows, c, d). The interests r without noise (g_1).
            channels: float tensor of shape (rows, c, d). The channels o (g_2).
        """
        c, dim = interests.shape[1:]
        others = [[k for k in range(c) if k != i and self.context_guidance] for i in range(c)]
        others = np.array(others, "int32").reshape(c, -1)
        context = ops.take(interests, others, axis=1)  # (rows, c, c - 1, d)
        channels = ops.reshape(channels, (-1, dim))
        # To (c - 1, problems, d). Without context a size of -1 would be ambiguous.
        context = ops.reshape(
            ops.moveaxis(context, 2, 0), (others.shape[1], ops.shape(channels)[0], dim)
        )
        return context, [block.fold(channels) for block in self.blocks]

    def call(self, x, time, condition):
        context, folded = condition
        dim = x.shape[-1]
        noised = ops.reshape(x, (1, -1, dim))
        tokens = ops.concatenate([noised, context], axis=0) + ops.reshape(time, (-1, dim))
        for block, weights in zip(self.blocks[:-1], folded[:-1], strict=True):
            tokens = block(tokens, tokens, weights)
        noised = self.blocks[-1](tokens[:1], tokens, folded[-1])
        return ops.reshape(apply(self.noise, noised), ops.shape(x))


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MLPDenoiser(Denoiser):
    """HierDiffuse's f_theta(x_t, t, y) = MLP([x_t, t, y]), which predicts x_0.

    The kernel of the first layer is split in three. The products with t and with y are made once,
    by `embed_time` and `condition`.

    Args:
        units: tuple of ints. Widths of the hidden layers. Defaults to `(128, 128)`.

    Call arguments:
        x: float tensor of shape (rows, conditions, d), or (rows, 1, d) if the conditions of a row
            share x_t.
        time: As in `Denoiser`; of shape (rows, 1, width) if the conditions of a row share t.
        condition: As in `Denoiser`.

    Returns:
        float tensor of shape (rows, conditions, d). The predicted x_0.

    Reference:
        HierDiffuse, section 3.2.
    """

    def __init__(self, units=(128, 128), **kwargs):
        super().__init__(**kwargs)
        self.units = tuple(units)

    def build(self, input_shape):
        def dense(rows, columns, **kwargs):
            layer = keras.layers.Dense(columns, dtype=self.dtype_policy, **kwargs)
            layer.build((None, rows))
            return layer

        dim = input_shape[-1]
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
        """See `Denoiser`; the width is `units[0]`."""
        return self.of_time(sinusoids(t, self.x_0.units))

    def condition(self, y):
        """See `Denoiser`.

        Args:
            y: float tensor of shape (rows, conditions, d).
        """
        return self.of_condition(y)

    def call(self, x, time, condition):
        hidden = ops.silu(apply(self.of_x, x) + time + condition)
        for layer in self.hidden:
            hidden = apply(layer, hidden)
        return apply(self.x_0, hidden)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TransformerDenoiser(Denoiser):
    """HierDiffuse's f_theta(x_t, t, y) as a Transformer, which predicts x_0 (table 2b).

    Self-attention over the two tokens x_t and y, with the embedded step added to both. The
    prediction is read from the first.

    Args:
        num_blocks: int. Number of Transformer blocks. Defaults to `2`.
        num_heads: int. Number of heads of each block. Must divide d. Defaults to `2`.

    Call arguments:
        x: As in `MLPDenoiser`.
        time: As in `MLPDenoiser`.
        condition: As in `MLPDenoiser`.

    Returns:
        float tensor of shape (rows, conditions, d). The predicted x_0.
    """

    def __init__(self, num_blocks=2, num_heads=2, **kwargs):
        super().__init__(**kwargs)
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.blocks = [
            DenoiserBlock(num_heads, channel_guidance=False, dtype=self.dtype_policy)
            for _ in range(num_blocks)
        ]

    def build(self, input_shape):
        dim = input_shape[-1]
        self.of_time = keras.layers.Dense(dim, dtype=self.dtype_policy)
        self.x_0 = keras.layers.Dense(dim, dtype=self.dtype_policy)
        for layer in (self.of_time, self.x_0):
            layer.build((None, dim))
        for block in self.blocks:
            block.build((None, None, dim))

    def embed_time(self, t):
        """See `Denoiser`; the width is d."""
        return self.of_time(sinusoids(t, self.x_0.units))

    def condition(self, y):
        """See `Denoiser`.

        Args:
            y: float tensor of shape (rows, conditions, d).
        """
        return y, [block.fold() for block in self.blocks]

    def call(self, x, time, condition):
        y, folded = condition
        tokens = ops.stack([x + ops.zeros_like(y), y]) + time
        tokens = ops.reshape(tokens, (2, -1, y.shape[-1]))  # (2, rows * conditions, d)
        for i, (block, weights) in enumerate(zip(self.blocks, folded, strict=True)):
            asking = tokens[:1] if i == self.num_blocks - 1 else tokens
            tokens = block(asking, tokens, weights)
        return ops.reshape(apply(self.x_0, tokens), ops.shape(y))


def sinusoids(t, dim):
    """Positional encoding of steps (Vaswani et al., 2017, section 3.5).

    Args:
        t: int tensor of shape (...).
        dim: int. Width of the encoding.

    Returns:
        float32 tensor of shape (..., dim).
    """
    frequencies = 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    angles = ops.cast(t, "float32")[..., None] * ops.cast(frequencies, "float32")
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)[..., :dim]
