"""Conditional VAE in place of the diffusion module (DiffuMIN, table 4)."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative, check_positive_integers
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.layers.noise import normal


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class VariationalGenerator(keras.layers.Layer):
    """Generates augmented interests r*_i = decoder(z, o_i) with z ~ N(mu, sigma^2).

    An encoder computes mu and sigma from the interest r_i, the mean of the other interests and the
    channel o_i. Encoder and decoder have one hidden ReLU layer of width 2 d. At inference z = mu,
    so that equal requests get equal scores.

    In training, the layer adds its loss, which is computed in float32: the squared error of r*_i
    plus KL(N(mu, sigma^2) || N(0, 1)). Both are averaged over their components, and then over real
    candidates and channels. The error has no gradient with respect to the r_i that r*_i is compared
    with, because they could shrink to reduce it.

    Args:
        latent_dim: int or `None`. Width of z. Defaults to `None`: d.
        weight: float. Weight of the loss. Defaults to `0.01`.

    Call arguments:
        interests: float tensor of shape (batch, candidates, channels, d). The interests r.
        channels: float tensor of the shape of `interests`. The channels o.
        candidate_mask: bool tensor of shape (batch, candidates), True = real.
        training: bool. Whether to sample z and add the loss. Defaults to `None`, which is `False`.

    Returns:
        float tensor of the shape of `interests`. The augmented interests r*.

    Reference:
        https://arxiv.org/abs/1312.6114
    """

    def __init__(self, latent_dim=None, weight=0.01, **kwargs):
        super().__init__(**kwargs)
        if latent_dim is not None:
            check_positive_integers(latent_dim=latent_dim)
        check_not_negative(weight=weight)
        self.latent_dim = latent_dim
        self.weight = weight
        self.seed_generator = keras.random.SeedGenerator()
        self.loss_tracker = keras.metrics.Mean(name="variational_loss")

    def build(self, interests_shape, channels_shape=None):
        dim = interests_shape[-1]
        latent_dim = self.latent_dim or dim
        tokens, latents, hidden = (None, None, dim), (None, None, latent_dim), (None, None, 2 * dim)

        self.encoder = MLP((2 * dim,), "relu", dtype=self.dtype_policy)
        self.moments = keras.layers.Dense(2 * latent_dim, dtype=self.dtype_policy)
        self.decoder = MLP((2 * dim,), "relu", dtype=self.dtype_policy)
        self.reconstruction = keras.layers.Dense(dim, dtype=self.dtype_policy)
        self.encoder.build([tokens] * 3)
        self.moments.build(hidden)
        self.decoder.build([latents, tokens])
        self.reconstruction.build(hidden)

    def call(self, interests, channels, candidate_mask, training=None):
        shape = ops.shape(interests)
        others = ops.sum(interests, axis=2, keepdims=True) - interests
        others /= max(shape[2] - 1, 1)
        # (batch, candidates * channels, d)
        r, others, o = (
            ops.reshape(x, (shape[0], -1, shape[3])) for x in (interests, others, channels)
        )
        mean, log_variance = ops.split(self.moments(self.encoder([r, others, o])), 2, axis=-1)
        z = mean
        if training:
            noise = ops.cast(normal(ops.shape(mean), self.seed_generator), mean.dtype)
            z = mean + ops.exp(0.5 * log_variance) * noise
        augmented = self.reconstruction(self.decoder([z, o]))
        if training:
            error = self._error(r, augmented, mean, log_variance)
            error, real = ops.reshape(error, (-1, shape[2])), ops.reshape(candidate_mask, (-1,))
            add_mean_loss(self, error, real, self.weight, self.loss_tracker)
        return ops.reshape(augmented, shape)

    def _error(self, interests, augmented, mean, log_variance):
        target, augmented, mean, log_variance = (
            ops.cast(x, "float32")
            for x in (ops.stop_gradient(interests), augmented, mean, log_variance)
        )
        error = ops.mean(ops.square(augmented - target), axis=-1)
        divergence = 0.5 * ops.mean(
            ops.square(mean) + ops.exp(log_variance) - 1 - log_variance, axis=-1
        )
        return error + divergence

    def compute_output_spec(self, interests, *_, training=None):
        return keras.KerasTensor(interests.shape, self.compute_dtype)
