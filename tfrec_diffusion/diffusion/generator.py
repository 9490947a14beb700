"""DiffuMIN's diffusion multi-interest generator (section 3.4, algorithms 1 and 2)."""

import keras
import numpy as np
from keras import ops

from tfrec_diffusion.diffusion import sampler
from tfrec_diffusion.diffusion.denoiser import GuidedDenoiser
from tfrec_diffusion.diffusion.schedule import Schedule
from tfrec_diffusion.layers.arguments import check_choice, check_not_negative
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.noise import normal, randint
from tfrec_diffusion.layers.normalization import unit_length

_INFERENCE_SEED = 2025


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffusionGenerator(keras.layers.Layer):
    """Augmented interests r*: aggregated interests, perturbed and denoised under guidance.

    In training both phases run: the denoising loss (eq. 18) at a random step is added to the
    model's losses, and gradients flow through all steps of sampling. At inference the noise is the
    same for every row: a request's interests depend on nothing else.

    Args:
        num_steps: T' of eq. 19: steps of sampling.
        spacing: "consecutive": t = T'..1, as the paper. "strided": T' steps evenly from
            `start_step` down.
        start_step: For "strided", in [T', T].
        start: Where sampling starts. "uniform": at r perturbed to a random t in 1..T, then denoised
            as if that were the first of the T' steps (algorithm 2 as printed). "matched": at
            r perturbed to the first of the T' steps. "gaussian": at noise (variant Z).
        sampler: "ddpm" (eq. 19) or "ddim".
        sigma: Of "ddpm", "beta" or "posterior": see `sampler.ddpm`.
        normalize_interests: Whether r has length 1 where it is diffused.
        weight: lambda_1 of the loss, eq. 24.
        num_blocks, num_heads, context_guidance, channel_guidance: Of `GuidedDenoiser`.
        num_train_steps: T, with betas from 1e-4 to 0.02.

    Call arguments:
        interests: r, float (batch, candidates, c, d).
        channels: o, as `interests`.
        candidate_mask: bool (batch, candidates), True = real.
        training: bool.

    Returns:
        r*, as `interests`.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(
        self,
        num_steps=20,
        spacing="consecutive",
        start_step=None,
        start="matched",
        sampler="ddpm",
        sigma="beta",
        normalize_interests=True,
        weight=0.01,
        num_blocks=2,
        num_heads=2,
        context_guidance=True,
        channel_guidance=True,
        num_train_steps=1000,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("spacing", spacing, ("consecutive", "strided"))
        check_choice("start", start, ("uniform", "matched", "gaussian"))
        check_choice("sampler", sampler, ("ddpm", "ddim"))
        check_choice("sigma", sigma, ("beta", "posterior"))
        if not isinstance(num_steps, int) or not 0 < num_steps <= num_train_steps:
            raise ValueError(
                f"`num_steps` must be an integer in [1, {num_train_steps}]. "
                f"Received: num_steps={num_steps!r}"
            )
        check_not_negative(weight=weight)
        self.num_steps = num_steps
        self.spacing = spacing
        self.start_step = start_step
        self.start = start
        self.sampler = sampler
        self.sigma = sigma
        self.normalize_interests = normalize_interests
        self.weight = weight
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.context_guidance = context_guidance
        self.channel_guidance = channel_guidance
        self.num_train_steps = num_train_steps
        self.schedule = Schedule.linear(num_train_steps)
        self.chain = self._make_chain()
        self.denoiser = GuidedDenoiser(
            num_blocks,
            num_heads,
            context_guidance=context_guidance,
            channel_guidance=channel_guidance,
            dtype=self.dtype_policy,
            name="denoiser",
        )
        self.seed_generator = keras.random.SeedGenerator()
        self.loss_tracker = keras.metrics.Mean(name="diffusion_loss")

    def _make_chain(self):
        if self.spacing == "strided":
            low, high = self.num_steps, self.num_train_steps
            if not isinstance(self.start_step, int) or not low <= self.start_step <= high:
                raise ValueError(
                    f'`start_step` must be an integer in [{low}, {high}] with spacing="strided". '
                    f"Received: start_step={self.start_step!r}"
                )
            timesteps = sampler.strided(self.num_steps, self.start_step)
        else:
            timesteps = sampler.consecutive(self.num_steps)
        if self.sampler == "ddim":
            return sampler.ddim(self.schedule, timesteps)
        return sampler.ddpm(self.schedule, timesteps, self.sigma)

    def build(self, interests_shape, *_):
        self.denoiser.build(interests_shape[-1])

    def call(self, interests, channels, candidate_mask, training=None):
        shape = ops.shape(interests)
        interests, channels = (
            ops.reshape(tensor, (-1, *interests.shape[2:])) for tensor in (interests, channels)
        )
        if self.normalize_interests:
            interests = unit_length(interests)
        condition = self.denoiser.condition(interests, channels)
        if training:
            t, noise = self._random_step(interests), self._random_noise(interests)
            error = self.denoising_error(interests, condition, t, noise)
            real = ops.reshape(candidate_mask, (-1,))
            add_mean_loss(self, error, real, self.weight, self.loss_tracker)
            t, noise = (
                self._random_step(interests),
                self._random_noise(interests, len(self.chain) + 1),
            )
        else:
            t, noise = self._fixed_randomness(interests)
        augmented = self.generate(interests, condition, t, noise)
        return ops.reshape(augmented, shape)

    def denoising_error(self, interests, condition, t, noise):
        """Algorithm 1: squared error of the noise predicted in q(interests, t).

        Args:
            interests: float (rows, c, d).
            condition: `GuidedDenoiser.condition` of them.
            t: int (rows, c).
            noise: As `interests`.

        Returns:
            (rows, c): the mean over d.
        """
        x = self.schedule.q_sample(interests, t, noise)
        predicted = self.denoiser(x, self.denoiser.embed_time(t), condition)
        return ops.mean(ops.square(noise - predicted), axis=-1)

    def generate(self, interests, condition, t, noise):
        """Algorithm 2.

        Args:
            interests: float (rows, c, d).
            condition: `GuidedDenoiser.condition` of them.
            t: int (rows or 1, c): steps of the perturbation where `start` is "uniform".
            noise: float (T' + 1, rows or 1, c, d): of the perturbation, then of each step.

        Returns:
            As `interests`.
        """
        if self.start == "gaussian":
            x = ops.zeros_like(interests) + noise[0]
        else:
            if self.start == "matched":
                t = ops.full_like(t, self.chain.timesteps[0])
            x = self.schedule.q_sample(interests, t, noise[0])
        times = self.denoiser.embed_time(self.chain.timesteps)[:, None, None]  # (T', 1, 1, d)

        def denoise(x, step):
            return self.denoiser(x, times[step], condition)

        return sampler.sample(self.chain, denoise, x, noise[1:])

    def _random_step(self, interests):
        shape = ops.shape(interests)[:-1]
        return randint(shape, 1, self.num_train_steps + 1, self.seed_generator)

    def _random_noise(self, interests, *leading):
        return normal((*leading, *ops.shape(interests)), self.seed_generator)

    def _fixed_randomness(self, interests):
        rng = np.random.default_rng(_INFERENCE_SEED)
        c, dim = interests.shape[1:]
        t = rng.integers(1, self.num_train_steps + 1, (1, c))
        noise = rng.standard_normal((len(self.chain) + 1, 1, c, dim), "float32")
        return ops.convert_to_tensor(t, "int32"), ops.convert_to_tensor(noise)

    def compute_output_spec(self, interests, channels, candidate_mask, training=None):
        return keras.KerasTensor(interests.shape, self.compute_dtype)

    def get_config(self):
        config = {
            "num_steps": self.num_steps,
            "spacing": self.spacing,
            "start_step": self.start_step,
            "start": self.start,
            "sampler": self.sampler,
            "sigma": self.sigma,
            "normalize_interests": self.normalize_interests,
            "weight": self.weight,
            "num_blocks": self.num_blocks,
            "num_heads": self.num_heads,
            "context_guidance": self.context_guidance,
            "channel_guidance": self.channel_guidance,
            "num_train_steps": self.num_train_steps,
        }
        return {**super().get_config(), **config}
