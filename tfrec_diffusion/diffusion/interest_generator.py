"""DiffuMIN's diffusion multi-interest generator (section 3.4, algorithms 1 and 2).

Its sampler `"tcc"` is HierDiffuse's (eq. 7-8).
"""

import keras
from keras import ops

from tfrec_diffusion.diffusion import sampler
from tfrec_diffusion.diffusion.denoisers import GuidedDenoiser
from tfrec_diffusion.diffusion.schedule import Schedule
from tfrec_diffusion.diffusion.teacher import Teacher
from tfrec_diffusion.layers.arguments import check_choice, check_not_negative, check_share
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.noise import fixed_generator, normal, randint, uniform
from tfrec_diffusion.layers.normalization import root_mean_square, unit_length

# T' of the paper, where `"tcc"` starts.
_STEPS = 20


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffusionGenerator(keras.layers.Layer):
    """Generates augmented interests r* by perturbing and denoising aggregated interests r.

    In training both algorithms of the paper run. Algorithm 1 adds the denoising loss (eq. 18) at a
    random step to the model's losses. Algorithm 2 samples r*, and gradients flow through all its
    steps. At inference the noise is the same for every row and in every call, so that the
    augmented interests of a request depend on nothing but the request.

    With `sampler="tcc"`, r* is the denoiser's estimate of x_0 in one evaluation, and the loss is
    that of HierDiffuse's Trajectory Convergence Constraint (eq. 8 there), with t in
    1..`start_step`. Its other estimate comes from a teacher: moving averages of the denoiser's
    weights, which are saved with the layer and get no gradient.

    Args:
        num_steps: int or `None`. Number of sampling steps T' (eq. 19). If `None`, 20, or 1 with
            sampler `"tcc"`. Defaults to `None`.
        spacing: str. The steps t at which sampling evaluates the denoiser: `"consecutive"`, which
            is T', T' - 1, .., 1 as in the paper, or `"strided"`, which is T' steps evenly from
            `start_step` down. Sampler `"tcc"` is always strided. Defaults to `"consecutive"`.
        start_step: int or `None`. The first step of `"strided"` and of sampler `"tcc"`, in
            [T', T]; unused otherwise. If `None`, 20 with sampler `"tcc"`. Defaults to `None`.
        start: str. What sampling starts from: `"matched"`, r perturbed to the first sampling step;
            `"uniform"`, r perturbed to a random t in 1..T and then denoised as if t were the first
            sampling step (algorithm 2 as printed); or `"gaussian"`, pure noise (variant Z).
            Sampler `"tcc"` requires `"matched"`. Defaults to `"matched"`.
        sampler: str. `"ddpm"` (eq. 19), `"ddim"`, or `"tcc"` (from x_t to x_0 in one evaluation).
            Defaults to `"ddpm"`.
        sigma: str. Variance of `"ddpm"`, as in `sampler.ddpm`: `"beta"` or `"posterior"`.
            Defaults to `"beta"`.
        normalize_interests: bool or str. Whether r is scaled to length 1 before it is perturbed.
            With `"proportional"`, r is divided by its root mean square over d, and r* multiplied by
            it again, so that the noise is in proportion to r. Defaults to `True`.
        inference_draws: int. Number of draws of the noise whose mean r* is at inference. With 0,
            sampling has no noise there. Defaults to `1`.
        weight: float. Weight lambda_1 of the denoising loss (eq. 24), or of that of sampler
            `"tcc"`. Defaults to `0.01`.
        trajectory_weight: float. Weight lambda of the second term of the loss of sampler `"tcc"`.
            Defaults to `1.0`.
        teacher_decay: float. Share of the teacher of sampler `"tcc"` that a training step keeps, in
            [0, 1). Defaults to `0.95`.
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
        num_steps=None,
        spacing="consecutive",
        start_step=None,
        start="matched",
        sampler="ddpm",
        sigma="beta",
        normalize_interests=True,
        inference_draws=1,
        weight=0.01,
        trajectory_weight=1.0,
        teacher_decay=0.95,
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
        check_choice("sampler", sampler, ("ddpm", "ddim", "tcc"))
        check_choice("sigma", sigma, ("beta", "posterior"))
        if sampler == "tcc":
            if start != "matched":
                raise ValueError(
                    f'`start` must be "matched" with sampler="tcc". Received: start={start!r}'
                )
            start_step = _STEPS if start_step is None else start_step
        if num_steps is None:
            num_steps = 1 if sampler == "tcc" else _STEPS
        if not isinstance(num_steps, int) or not 0 < num_steps <= num_train_steps:
            raise ValueError(
                f"`num_steps` must be an integer in [1, {num_train_steps}]. "
                f"Received: num_steps={num_steps!r}"
            )
        if normalize_interests not in (True, False, "proportional"):
            raise ValueError(
                '`normalize_interests` must be True, False or "proportional". '
                f"Received: normalize_interests={normalize_interests!r}"
            )
        if not isinstance(inference_draws, int) or inference_draws < 0:
            raise ValueError(
                "`inference_draws` must be an integer of at least 0. "
                f"Received: inference_draws={inference_draws!r}"
            )
        check_not_negative(weight=weight, trajectory_weight=trajectory_weight)
        check_share(teacher_decay=teacher_decay)
        self.num_steps = num_steps
        self.spacing = spacing
        self.start_step = start_step
        self.start = start
        self.sampler = sampler
        self.sigma = sigma
        self.normalize_interests = normalize_interests
        self.inference_draws = inference_draws
        self.weight = weight
        self.trajectory_weight = trajectory_weight
        self.teacher_decay = teacher_decay
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
        if sampler == "tcc":
            self.teacher = Teacher(teacher_decay, name="teacher")
            self.trajectory_tracker = keras.metrics.Mean(name="trajectory_loss")

    def _make_chain(self):
        if self.spacing == "strided" or self.sampler == "tcc":
            low, high = self.num_steps, self.num_train_steps
            if not isinstance(self.start_step, int) or not low <= self.start_step <= high:
                because = 'sampler="tcc"' if self.sampler == "tcc" else 'spacing="strided"'
                raise ValueError(
                    f"`start_step` must be an integer in [{low}, {high}] with {because}. "
                    f"Received: start_step={self.start_step!r}"
                )
            timesteps = sampler.strided(self.num_steps, self.start_step)
        else:
            timesteps = sampler.consecutive(self.num_steps)
        if self.sampler == "tcc":
            return sampler.consistency(self.schedule, timesteps).predicting_noise(self.schedule)
        if self.sampler == "ddim":
            return sampler.ddim(self.schedule, timesteps)
        return sampler.ddpm(self.schedule, timesteps, self.sigma)

    def build(self, interests_shape, *_):
        self.denoiser.build((None, *interests_shape[2:]))
        if self.sampler == "tcc":
            self.teacher.follow(self.denoiser.weights)

    def call(self, interests, channels, candidate_mask, training=None):
        shape = ops.shape(interests)
        interests, channels = (
            ops.reshape(tensor, (-1, *interests.shape[2:])) for tensor in (interests, channels)
        )
        scale = 1.0
        if self.normalize_interests == "proportional":
            scale = root_mean_square(interests)
            interests = ops.divide_no_nan(interests, scale)
        elif self.normalize_interests:
            interests = unit_length(interests)
        condition = self.denoiser.condition(interests, channels)
        if training:
            real = ops.reshape(candidate_mask, (-1,))
            if self.sampler == "tcc":
                self._add_convergence_loss(interests, channels, condition, real)
            else:
                t, noise = self._random_steps(interests), self._random_noise(interests)
                error = self.denoising_error(interests, condition, t, noise)
                add_mean_loss(self, error, real, self.weight, self.loss_tracker)
            t = self._random_steps(interests)
            draws = [(t, self._random_noise(interests, len(self.chain) + 1))]
        else:
            draws = self._fixed_randomness(interests)
        augmented = [self.generate(interests, condition, *draw) for draw in draws]
        return ops.reshape(scale * sum(augmented) / len(augmented), shape)

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
        return ops.mean(ops.square(self._noise_errors(interests, condition, t, noise)), axis=-1)

    def convergence_errors(self, interests, channels, condition, t, earlier, noise):
        """The two terms of HierDiffuse's eq. 8, each divided by (1 - alpha_bar_t) / alpha_bar_t.

        The estimate of x_0 is f(x_t, t) = (x_t - sqrt(1 - alpha_bar_t) epsilon) /
        sqrt(alpha_bar_t), so that f(x_t, t) - x_0 is sqrt((1 - alpha_bar_t) / alpha_bar_t) times
        the error of the predicted noise. Divided by that factor, both terms are errors of noise,
        about as large at each t, and the first one is eq. 18 of DiffuMIN. As they stand in eq. 8,
        they would be 170 times as small at t = 20, and 10,000 times at t = 1.

        x_0 is the same on both sides of each difference and cancels. Gradients reach the interests
        as in eq. 18, only through what the denoiser sees.

        Args:
            interests: float tensor of shape (rows, c, d). x_0.
            channels: float tensor of shape (rows, c, d).
            condition: What `GuidedDenoiser.condition` returned for them.
            t: int tensor of shape (rows, c). Steps that the interests are perturbed to.
            earlier: int tensor of shape (rows, c), in [0, t). Steps t - delta of the teacher.
            noise: float tensor of shape (rows, c, d). Standard normal noise of both steps.

        Returns:
            Two float tensors of shape (rows, c). Means over d.
        """
        errors = self._noise_errors(interests, condition, t, noise)
        with self.teacher.in_place_of(self.denoiser.weights):
            of_teacher = self._noise_errors(
                interests, self.denoiser.condition(interests, channels), earlier, noise
            )
        scales = (self.schedule.noise_to_signal(step, noise.dtype) for step in (earlier, t))
        expected = ops.stop_gradient(ops.divide(*scales) * of_teacher)
        return (
            ops.mean(ops.square(errors), axis=-1),
            ops.mean(ops.square(errors - expected), axis=-1),
        )

    def _noise_errors(self, interests, condition, t, noise):
        x = self.schedule.q_sample(interests, t, noise)
        return noise - self.denoiser(x, self.denoiser.embed_time(t), condition)

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

    def _add_convergence_loss(self, interests, channels, condition, real):
        self.teacher.update(self.denoiser.weights)
        t = self._random_steps(interests, self.start_step)
        share = uniform(ops.shape(t), self.seed_generator)
        earlier = ops.cast(share * ops.cast(t, "float32"), "int32")  # uniform in 0..t - 1
        noise = self._random_noise(interests)
        first, second = self.convergence_errors(interests, channels, condition, t, earlier, noise)
        add_mean_loss(self, first, real, self.weight, self.loss_tracker)
        weight = self.weight * self.trajectory_weight
        add_mean_loss(self, second, real, weight, self.trajectory_tracker)

    def _random_steps(self, interests, largest=None):
        shape = ops.shape(interests)[:-1]
        return randint(shape, 1, (largest or self.num_train_steps) + 1, self.seed_generator)

    def _random_noise(self, interests, *leading):
        return normal((*leading, *ops.shape(interests)), self.seed_generator)

    def _fixed_randomness(self, interests):
        """The steps and the noise of each draw at inference."""
        rng = fixed_generator()
        c, dim = interests.shape[1:]
        draws = []
        for _ in range(max(self.inference_draws, 1)):
            t = rng.integers(1, self.num_train_steps + 1, (1, c))
            noise = rng.standard_normal((len(self.chain) + 1, 1, c, dim), "float32")
            noise *= self.inference_draws > 0
            draws.append((ops.convert_to_tensor(t, "int32"), ops.convert_to_tensor(noise)))
        return draws

    def compute_output_spec(self, interests, channels, candidate_mask, training=None):
        return keras.KerasTensor(interests.shape, self.compute_dtype)
