"""Generators of the next item's embedding: DreamRec's (algorithms 1 and 2) and DiffuRec's.

Both learn from the history alone: from all behaviors but the newest they generate the newest.
Embeddings are scaled to mean 0 and variance 1, like the noise.
"""

import keras
from keras import ops

from tfrec_diffusion.diffusion import sampler
from tfrec_diffusion.diffusion.denoisers import MLPDenoiser, sinusoids
from tfrec_diffusion.diffusion.guidance import mix
from tfrec_diffusion.diffusion.schedule import Schedule
from tfrec_diffusion.layers.arguments import (
    check_not_negative,
    check_positive_integers,
    check_share,
)
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.encoder import BehaviorEncoder
from tfrec_diffusion.layers.noise import fixed_normal, normal, randint, uniform
from tfrec_diffusion.layers.normalization import LOWEST_LOGIT, unit_scale


class _Generator(keras.layers.Layer):
    def __init__(self, schedule, num_steps, weight, length, num_heads, num_blocks, **kwargs):
        super().__init__(**kwargs)
        check_positive_integers(num_steps=num_steps, length=length)
        if length < 2:
            raise ValueError(f"`length` must be at least 2. Received: {length=}")
        if num_steps > schedule.num_steps:
            raise ValueError(
                f"`num_steps` must be at most {schedule.num_steps}. Received: {num_steps=}"
            )
        check_not_negative(weight=weight)
        self.num_steps = num_steps
        self.weight = weight
        self.length = length
        self.num_heads = num_heads
        self.num_blocks = num_blocks
        self.schedule = schedule
        timesteps = sampler.strided(num_steps, schedule.num_steps)
        chain = sampler.ddpm(schedule, timesteps, sigma="posterior")
        self.chain = chain.predicting_x0(schedule)
        self.encoder = BehaviorEncoder(length, num_heads, num_blocks, dtype=self.dtype_policy)
        self.seed_generator = keras.random.SeedGenerator()
        self.loss_tracker = keras.metrics.Mean(name="generation_loss")

    def chain_noise(self, x, training):
        """Noise of the start, then of each step, (steps + 1, batch, d).

        At inference it is the same for every row and in every call, (steps + 1, 1, d).
        """
        if training:
            shape = (self.num_steps + 1, *ops.shape(x))
            return ops.cast(normal(shape, self.seed_generator), x.dtype)
        return ops.cast(fixed_normal((self.num_steps + 1, 1, x.shape[-1])), x.dtype)

    def prepare(self, behaviors, real):
        """The newest behaviors at unit scale and their mask, padded on the left to at least two."""
        behaviors = ops.pad(unit_scale(behaviors), ((0, 0), (2, 0), (0, 0)))
        return behaviors[:, -self.length :], ops.pad(real, ((0, 0), (2, 0)))[:, -self.length :]

    def noised(self, x_0):
        """Draws a step t for each row, (batch,), and x_t at that step, (batch, d)."""
        t = randint(ops.shape(x_0)[:1], 1, self.schedule.num_steps + 1, self.seed_generator)
        noise = ops.cast(normal(ops.shape(x_0), self.seed_generator), x_0.dtype)
        return t, self.schedule.q_sample(x_0, t, noise)

    def compute_output_spec(self, behaviors, *_, training=None):
        batch, _, dim = behaviors.shape
        return keras.KerasTensor((batch, dim), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class OracleGenerator(_Generator):
    """DreamRec: generates the item that a user has in mind by denoising pure noise.

    The denoiser f_theta(x_t, t, c) predicts x_0. It is guided by c, the history encoded by a
    Transformer, with the strength w: (1 + w) f(x_t, t, c) - w f(x_t, t). So that f(x_t, t) is
    learned too, training leaves c out of some rows. The loss is |f(x_t, t, c) - x_0|^2.

    Args:
        num_steps: int. Number of evaluations of the denoiser, evenly over the T steps.
            Defaults to `20`.
        guidance_weight: float. w. Defaults to `2.0`.
        condition_dropout: float. Share of the rows that training leaves unguided.
            Defaults to `0.1`.
        weight: float. Weight of the loss. If 0, there is no loss. Defaults to `0.1`.
        length: int. Number of newest behaviors that the encoder sees. Defaults to `50`.
        num_heads: int. Number of heads of the encoder. Must divide d. Defaults to `2`.
        num_blocks: int. Number of blocks of the encoder. Defaults to `1`.
        num_train_steps: int. Number of steps T of the noise schedule, whose betas grow linearly
            from 1e-4 to 0.02. Defaults to `1000`.

    Call arguments:
        behaviors: float tensor of shape (batch, k, d), k at most `length`. Newest last, padded on
            the left.
        real: bool tensor of shape (batch, k). True = real.
        training: bool.

    Returns:
        float tensor of shape (batch, d). The generated embedding, at unit scale. Gradients flow
        through the last evaluation of the denoiser only.

    Reference:
        Yang et al., NeurIPS 2023: https://arxiv.org/abs/2310.20453
    """

    def __init__(
        self,
        num_steps=20,
        guidance_weight=2.0,
        condition_dropout=0.1,
        weight=0.1,
        length=50,
        num_heads=2,
        num_blocks=1,
        num_train_steps=1000,
        **kwargs,
    ):
        schedule = Schedule.linear(num_train_steps)
        super().__init__(schedule, num_steps, weight, length, num_heads, num_blocks, **kwargs)
        check_not_negative(guidance_weight=guidance_weight)
        check_share(condition_dropout=condition_dropout)
        self.guidance_weight = guidance_weight
        self.condition_dropout = condition_dropout
        self.num_train_steps = num_train_steps
        self.denoiser = MLPDenoiser(dtype=self.dtype_policy)

    def build(self, behaviors_shape, *_):
        dim = behaviors_shape[-1]
        self.encoder.build(behaviors_shape)
        self.denoiser.build((None, None, dim))
        self.no_condition = self.add_weight(
            name="no_condition", shape=(dim,), initializer=keras.initializers.RandomNormal()
        )

    def call(self, behaviors, real, training=None):
        behaviors, real = self.prepare(behaviors, real)
        if training and self.weight > 0:
            past = self.condition(behaviors[:, :-1], real[:, :-1])
            self._add_loss(behaviors[:, -1], real[:, -1], past)
        condition = self.condition(behaviors, real)
        weight = (1 + self.guidance_weight) * ops.cast(real[:, -1:], condition.dtype)
        return self.generate(condition, weight, self.chain_noise(condition, training))

    def condition(self, behaviors, real):
        """c: the encoder's last output, or a learned vector for rows without behaviors.

        Args:
            behaviors: float tensor of shape (batch, k, d).
            real: bool tensor of shape (batch, k).

        Returns:
            float tensor of shape (batch, d).
        """
        state = self.encoder.encode(behaviors, real[:, None])[:, -1]
        return ops.where(real[:, -1:], state, self._none(state))

    def generate(self, condition, weight, noise):
        """Algorithm 2.

        Args:
            condition: float tensor of shape (batch, d). c.
            weight: float tensor of shape (batch, 1). 1 + w, or 0 where there is no condition.
            noise: float tensor of shape (steps + 1, batch or 1, d). Standard normal noise of the
                start, then of each step.

        Returns:
            float tensor of shape (batch, d).
        """
        both = ops.stack([self._none(condition), condition], axis=1)
        both = self.denoiser.condition(both)
        times = self.denoiser.embed_time(self.chain.timesteps)

        def predict(x, step):
            predictions = self.denoiser(x[:, None], times[step][None, None], both)
            return mix(predictions, weight)

        start = noise[0] + ops.zeros_like(condition)
        return sampler.sample_with_last_gradient(self.chain, predict, start, noise[1:])

    def _none(self, like):
        return ops.cast(self.no_condition, like.dtype) + ops.zeros_like(like)

    def _add_loss(self, newest, real, condition):
        x_0 = ops.stop_gradient(newest)
        t, x = self.noised(x_0)
        kept = uniform(ops.shape(real), self.seed_generator) >= self.condition_dropout
        condition = ops.where(kept[:, None], condition, self._none(condition))
        predicted = self.denoiser(
            x[:, None],
            self.denoiser.embed_time(t)[:, None],
            self.denoiser.condition(condition[:, None]),
        )
        errors = ops.square(predicted[:, 0] - x_0)
        add_mean_loss(self, errors, real, self.weight, self.loss_tracker)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TargetReconstructor(_Generator):
    """DiffuRec: generates the next item by denoising pure noise in the history's own Transformer.

    f_theta(x_t, t, e) is the last output of a Transformer over z_i = e_i + lambda_i (x_t + d_t),
    where d_t is the embedding of the step and lambda_i ~ N(delta, delta). At inference lambda_i is
    delta. The loss is the cross-entropy of f(x_t, t, e) . x_0 against the next items of the other
    requests in the batch.

    Args:
        num_steps: int. Number of evaluations, evenly over the T steps. Defaults to `8`.
        uncertainty: float. delta. Defaults to `0.001`.
        weight: float. Weight of the loss. If 0, there is no loss. Defaults to `0.1`.
        length: int. Number of newest behaviors that the Transformer sees. Defaults to `50`.
        num_heads: int. Number of heads of the Transformer. Must divide d. Defaults to `2`.
        num_blocks: int. Number of blocks of the Transformer. Defaults to `1`.
        num_train_steps: int. Number of steps T of the noise schedule, whose betas grow linearly
            from 0.01 + 0.1 / T to 0.01 + 20 / T. Defaults to `32`.

    Call arguments:
        behaviors: float tensor of shape (batch, k, d), k at most `length`. Newest last, padded on
            the left.
        real: bool tensor of shape (batch, k). True = real.
        items: int tensor of shape (batch, k). Ids of the items. Requests whose next items are equal
            are not negatives of each other.
        training: bool.

    Returns:
        float tensor of shape (batch, d). The generated embedding. Gradients flow through the last
        evaluation only.

    Reference:
        Li et al., TOIS 2023: https://arxiv.org/abs/2304.00686
    """

    def __init__(
        self,
        num_steps=8,
        uncertainty=0.001,
        weight=0.1,
        length=50,
        num_heads=2,
        num_blocks=1,
        num_train_steps=32,
        **kwargs,
    ):
        first, last = 0.01 + 0.1 / num_train_steps, min(0.01 + 20 / num_train_steps, 0.999)
        schedule = Schedule.linear(num_train_steps, first, last)
        super().__init__(schedule, num_steps, weight, length, num_heads, num_blocks, **kwargs)
        check_not_negative(uncertainty=uncertainty)
        self.uncertainty = uncertainty
        self.num_train_steps = num_train_steps

    def build(self, behaviors_shape, *_):
        self.encoder.build(behaviors_shape)

    def call(self, behaviors, real, items, training=None):
        behaviors, real = self.prepare(behaviors, real)
        if training and self.weight > 0:
            self._add_loss(behaviors, real, ops.pad(items, ((0, 0), (2, 0)))[:, -1])
        noise = self.chain_noise(behaviors[:, -1], training)
        return self.generate(behaviors, real, self._uncertainties(behaviors, training), noise)

    def approximate(self, behaviors, real, uncertainties, x, t):
        """f_theta(x_t, t, e), which predicts x_0.

        Args:
            behaviors: float tensor of shape (batch, k, d). e.
            real: bool tensor of shape (batch, k). True = real.
            uncertainties: float tensor of shape (batch, k, d), or a number. lambda.
            x: float tensor of shape (batch, d). x_t.
            t: int tensor of shape (batch or 1,).

        Returns:
            float tensor of shape (batch, d).
        """
        noise = x + ops.cast(sinusoids(t, x.shape[-1]), x.dtype)
        tokens = behaviors + uncertainties * noise[:, None]
        # In a row without behaviors the last position, which is padding, attends to itself.
        attended = real[:, None] | ops.eye(ops.shape(real)[1], dtype="bool")
        return self.encoder.encode(tokens, attended)[:, -1]

    def generate(self, behaviors, real, uncertainties, noise):
        """The reverse phase of DiffuRec.

        Args:
            behaviors: float tensor of shape (batch, k, d). e.
            real: bool tensor of shape (batch, k). True = real.
            uncertainties: float tensor of shape (batch, k, d), or a number. lambda.
            noise: float tensor of shape (steps + 1, batch or 1, d). Standard normal noise of the
                start, then of each step.

        Returns:
            float tensor of shape (batch, d).
        """
        timesteps = ops.convert_to_tensor(self.chain.timesteps, "int32")

        def predict(x, step):
            return self.approximate(behaviors, real, uncertainties, x, timesteps[step][None])

        start = noise[0] + ops.zeros_like(behaviors[:, -1])
        return sampler.sample_with_last_gradient(self.chain, predict, start, noise[1:])

    def _uncertainties(self, behaviors, training):
        if not training:
            return self.uncertainty
        noise = ops.cast(normal(ops.shape(behaviors), self.seed_generator), behaviors.dtype)
        return self.uncertainty * (1 + noise)

    def _add_loss(self, behaviors, real, items):
        x_0, past, of_past = behaviors[:, -1], behaviors[:, :-1], real[:, :-1]
        t, x = self.noised(x_0)
        predicted = self.approximate(past, of_past, self._uncertainties(past, True), x, t)
        logits = ops.cast(ops.matmul(predicted, ops.transpose(x_0)), "float32")
        others = ops.not_equal(items[:, None], items) & real[:, -1]
        own = ops.eye(ops.shape(items)[0], dtype="bool")
        logits = ops.where(own | others, logits, LOWEST_LOGIT)
        errors = -ops.diagonal(ops.log_softmax(logits, axis=-1))
        add_mean_loss(self, errors, of_past[:, -1], self.weight, self.loss_tracker)
