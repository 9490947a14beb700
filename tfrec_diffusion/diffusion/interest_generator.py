"""DiffuMIN's diffusion multi-interest generator (section 3.4, algorithms 1 and 2)."""

import keras
from keras import ops

from tfrec_diffusion.diffusion import sampler
from tfrec_diffusion.diffusion.denoisers import GuidedDenoiser
from tfrec_diffusion.diffusion.schedule import Schedule
from tfrec_diffusion.layers.arguments import check_choice, check_not_negative
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.noise import fixed_generator, normal, randint
from tfrec_diffusion.layers.normalization import unit_length


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffusionGenerator(keras.layers.Layer):
    """Generates augmented interests r* by perturbing and denoising aggregated interests r.

    In training both algorithms of the paper run. Algorithm 1 adds the denoising loss (eq. 18) at a
    random step to the model's losses. Algorithm 2 samples r*, and gradients flow through all its
    steps. At inference the noise is the same for every row and in every call, so that the
    augmented interests of a request depend on nothing but the request.

    Args:
        num_steps: int. Number of sampling steps T' (eq. 19). Defaults to `20`.
        spacing: str. The steps t at which sampling evaluates the denoiser: `"consecutive"`, which
            is T', T' - 1, .., 1 as in the paper, or `"strided"`, which is T' steps evenly from
            `start_step` down. Defaults to `"consecutive"`.
        start_step: int or `None`. The first step of `"strided"`, in [T', T]; unused otherwise.
            Defaults to `None`.
        start: str. What sampling starts from: `"matched"`, r perturbed to the first sampling step;
            `"uniform"`, r perturbed to a random t in 1..T and then denoised as if t were the first
            sampling step (algorithm 2 as printed); or `"gaussian"`, pure noise (variant Z).
            Defaults to `"matched"`.
        sampler: str. `"ddpm"` (eq. 19) or `"ddim"`. Defaults to `"ddpm"`.
        sigma: str. Variance of `"ddpm"`, as in `sampler.ddpm`: `"beta"` or `"posterior"`.
            Defaults to `"beta"`.
        normalize_interests: bool. Whether r is scaled to length 1 before it is perturbed.
            Defaults to `True`.
        weight: float. Weight lambda_1 of the denoising loss (eq. 24). Defaults to `0.01`.
        num_blocks: int. As in `GuidedDenoiser`. Defaults to `2`.
        num_heads: int. As in `GuidedDenoiser`. Defaults to `2`.
        context_guidance: bool. As in `GuidedDenoiser`. Defaults to `True`.
        channel_guidance: bool. As in `GuidedDenoiser`. Defaults to `True`.
        num_train_steps: int. Number of steps T of the noise schedule, whose betas grow linearly
            from 1e-4 to 0.02. Defaults to `1000`.

    Call arguments:
        interests: float tensor of shape (batch, candidates, c, d). The aggregated interests r.
        channels: float tensor of shape (batch, candidates, c, d). The channels o.
        candidate_mask: bool tensor of shape (batch, candidates). True = real.
        training: bool.

    Returns:
        float tensor of shape (batch, candidates, c, d). The augmented interests r*.

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
        self.denoiser.build((None, *interests_shape[2:]))

    def call(self, interests, channels, candidate_mask, training=None):
        shape = ops.shape(interests)
        interests, channels = (
            ops.reshape(tensor, (-1, *interests.shape[2:])) for tensor in (interests, channels)
        )
        if self.normalize_interests:
            interests = unit_length(interests)
        condition = self.denoiser.condition(interests, channels)
        if training:
            t, noise = self._random_steps(interests), self._random_noise(interests)
            error = self.denoising_error(interests, condition, t, noise)
            real = ops.reshape(candidate_mask, (-1,))
            add_mean_loss(self, error, real, self.weight, self.loss_tracker)
            t = self._random_steps(interests)
            noise = self._random_noise(interests, len(self.chain) + 1)
        else:
            t, noise = self._fixed_randomness(interests)
        augmented = self.generate(interests, condition, t, noise)
        return ops.reshape(augmented, shape)

    def denoising_error(self, interests, condition, t, noise):
        """Algorithm 1: squared errors of the noise predicted in perturbed interests.

        Args:
            interests: float tensor of shape (rows, c, d).
            condition: What `GuidedDenoiser.condition` returned for them.
            t: int tensor of shape (rows, c). Steps that the interests are perturbed to.
            noise: float tensor of shape (rows, c, d). Standard normal noise.

        Returns:
            float tensor of shape (rows, c). Means over d.
        """
        x = self.schedule.q_sample(interests, t, noise)
        predicted = self.denoiser(x, self.denoiser.embed_time(t), condition)
        return ops.mean(ops.square(noise - predicted), axis=-1)

    def generate(self, interests, condition, t, noise):
        """Algorithm 2: perturbs interests and denoises them.

        Args:
            interests: float tensor of shape (rows, c, d).
            condition: What `GuidedDenoiser.condition` returned for them.
            t: int tensor of shape (rows or 1, c). Steps that the interests are perturbed to if
                `start` is `"uniform"`; only its shape matters otherwise.
            noise: float tensor of shape (T' + 1, rows or 1, c, d). Standard normal noise of the
                perturbation, then of each sampling step.

        Returns:
            float tensor of shape (rows, c, d).
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

    def _random_steps(self, interests):
        shape = ops.shape(interests)[:-1]
        return randint(shape, 1, self.num_train_steps + 1, self.seed_generator)

    def _random_noise(self, interests, *leading):
        return normal((*leading, *ops.shape(interests)), self.seed_generator)

    def _fixed_randomness(self, interests):
        rng = fixed_generator()
        c, dim = interests.shape[1:]
        t = rng.integers(1, self.num_train_steps + 1, (1, c))
        noise = rng.standard_normal((len(self.chain) + 1, 1, c, dim), "float32")
        return ops.convert_to_tensor(t, "int32"), ops.convert_to_tensor(noise)

    def compute_output_spec(self, interests, channels, candidate_mask, training=None):
        return keras.KerasTensor(interests.shape, self.compute_dtype)
