"""HierDiffuse's fusion of long- and short-term interests by denoising (section 3.2 - 3.4)."""

import keras
from keras import ops

from tfrec_diffusion.diffusion import sampler
from tfrec_diffusion.diffusion.guidance import mix
from tfrec_diffusion.diffusion.schedule import Schedule
from tfrec_diffusion.layers.arguments import (
    check_choice,
    check_not_negative,
    check_positive_integers,
    check_share,
)
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.noise import fixed_normal, normal, randint, uniform

# Of T; and for the first tenth of the curriculum, spans are small.
_SMALL_SPAN, _LARGE_SPAN, _SMALL_SPANS = 0.1, 0.5, 0.1
_CHAINS = {"tcc": sampler.consistency, "ddim": sampler.ddim, "ddpm": sampler.ddpm}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffusionFusion(keras.layers.Layer):
    """h^fusion = Denoise(h^L + noise, {y_g}), eq. 1: one interest, denoised under others' guidance.

    f_theta(x_t, t, y) predicts x_0. In training the Trajectory Convergence Constraint (eq. 8) is
    added to the model's losses; its x_0 is h^L without gradient, so that no encoder can collapse to
    please it. The spans and the weight of the trajectory term follow the layer's own count of
    training steps. At inference the noise is the same for every row.

    Args:
        denoiser: `MLPDenoiser` or `TransformerDenoiser`.
        sampler: "tcc" (any x_t to x_0 in one evaluation), "ddim" or "ddpm".
        num_steps: Evaluations.
        start_step: t at which sampling starts from h^L, perturbed to it; at T nothing of h^L is
            left. `None`: T.
        weight: Of the loss.
        reconstruction, trajectory: Whether the loss has its first, its second term (table 2c).
        trajectory_state: x at t - delta: "same_noise", h^L perturbed by the noise of x_t, or
            "ddim", the deterministic step from f's own estimate.
        curriculum_steps: Training steps over which the spans grow and the weight of the trajectory
            term falls; those of the whole training.
        condition_dropout: Share of the conditions that training leaves out, so that the
            unconditional prediction is learned.
        num_train_steps: T.

    Call arguments:
        interest: h^L, float (batch, d).
        conditions: y, float (batch, conditions, d).
        weights: Of the guidance, float (batch, conditions); 0 where a condition is absent.
        real: bool (batch,): rows that count in the loss.
        training: bool.

    Returns:
        h^fusion, (batch, d).
    """

    def __init__(
        self,
        denoiser,
        sampler="tcc",
        num_steps=1,
        start_step=None,
        weight=0.1,
        reconstruction=True,
        trajectory=True,
        trajectory_state="same_noise",
        curriculum_steps=10_000,
        condition_dropout=0.1,
        num_train_steps=1000,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("sampler", sampler, _CHAINS)
        check_choice("trajectory_state", trajectory_state, ("same_noise", "ddim"))
        check_share(condition_dropout=condition_dropout)
        check_not_negative(weight=weight)
        check_positive_integers(curriculum_steps=curriculum_steps)
        self.denoiser = denoiser
        self.sampler = sampler
        self.num_steps = num_steps
        self.start_step = start_step
        self.weight = weight
        self.reconstruction = reconstruction
        self.trajectory = trajectory
        self.trajectory_state = trajectory_state
        self.curriculum_steps = curriculum_steps
        self.condition_dropout = condition_dropout
        self.num_train_steps = num_train_steps
        self.schedule = Schedule.cosine(num_train_steps)
        self.chain = self.make_chain(sampler, num_steps, start_step)
        self.seed_generator = keras.random.SeedGenerator()
        self.loss_trackers = [
            keras.metrics.Mean(name=f"{name}_loss") for name in ("reconstruction", "trajectory")
        ]

    def make_chain(self, name, num_steps, start_step=None):
        """The `Chain` of a sampler over this layer's schedule."""
        first = self.num_train_steps if start_step is None else start_step
        if not isinstance(num_steps, int) or not 1 <= num_steps <= first <= self.num_train_steps:
            raise ValueError(
                "`num_steps` and `start_step` must be integers, 1 <= num_steps <= start_step <= "
                f"{self.num_train_steps}. Received: {num_steps}, {start_step}"
            )
        chain = _CHAINS[name](self.schedule, sampler.strided(num_steps, first))
        return chain if name == "tcc" else chain.predicting_x0(self.schedule)

    def build(self, interest_shape, *_):
        dim = interest_shape[-1]
        if not self.denoiser.built:  # one from a file is
            self.denoiser.build(dim)
        self.no_condition = self.add_weight(
            name="no_condition", shape=(dim,), initializer=keras.initializers.RandomNormal()
        )
        self.steps_done = self.add_weight(
            name="steps_done", shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, interest, conditions, weights, real, training=None):
        if training:
            if self.weight > 0:
                self._add_loss(interest, conditions, weights > 0, real)
            noise = normal((len(self.chain) + 1, *ops.shape(interest)), self.seed_generator)
        else:
            noise = self.inference_noise(len(self.chain) + 1)
        return self.denoise(interest, conditions, weights, ops.cast(noise, interest.dtype))

    def denoise(self, interest, conditions, weights, noise, chain=None):
        """Eq. 1 with the guidance of eq. 5 or 6.

        Args:
            interest, conditions, weights: See the class.
            noise: float (steps + 1, batch or 1, d): of the perturbation, then of each step.
            chain: `Chain`; `None`: the layer's own.

        Returns:
            (batch, d).
        """
        chain = chain or self.chain
        x = self.schedule.q_sample(interest, int(chain.timesteps[0]), noise[0])
        condition = self.denoiser.condition(self._with_none(conditions))
        times = self.denoiser.embed_time(chain.timesteps)

        def predict(x, step):
            predictions = self.denoiser(x[:, None], times[step][None, None], condition)
            return mix(predictions, weights)

        return sampler.sample(chain, predict, x, noise[1:])

    def convergence_errors(self, interest, conditions, t, span, noise):
        """The two terms of eq. 8, Phi_theta being f_theta(., ., y) for each condition.

        Args:
            interest: x_0, float (batch, d).
            conditions: float (batch, conditions, d).
            t: int (batch,), in [1, T].
            span: int (batch,), delta, in [0, t].
            noise: float (batch, d).

        Returns:
            Reconstruction and trajectory errors, (batch, conditions): squares, averaged over d.
        """
        condition = self.denoiser.condition(conditions)

        def predict(x, t):
            return self.denoiser(x, self.denoiser.embed_time(t)[:, None], condition)

        x_0, noise, earlier = interest[:, None], noise[:, None], t - span
        x = self.schedule.q_sample(x_0, t[:, None], noise)
        estimate = predict(x, t)
        if self.trajectory_state == "ddim":
            x_0 = ops.stop_gradient(estimate)
            noise = self.schedule.noise_in(x, t[:, None], x_0)
        state = self.schedule.q_sample(x_0, earlier[:, None], noise)
        return (
            ops.mean(ops.square(estimate - interest[:, None]), axis=-1),
            ops.mean(ops.square(estimate - predict(state, earlier)), axis=-1),
        )

    def progress(self):
        """Share of the curriculum that is done, float32 in [0, 1]."""
        done = ops.cast(self.steps_done, "float32") / self.curriculum_steps
        return ops.minimum(done, 1.0)

    def span_bounds(self, progress):
        """Least and largest delta: 1 .. 0.1 T at first, then 0.1 T .. up to 0.5 T in the end."""
        late = (progress - _SMALL_SPANS) / (1 - _SMALL_SPANS)
        small, grown = _SMALL_SPAN * self.num_train_steps, _LARGE_SPAN * self.num_train_steps
        low = ops.where(late < 0, 1.0, small)
        return low, small + ops.maximum(late, 0.0) * (grown - small)

    def trajectory_weight(self, progress):
        """lambda of eq. 8: from 1.0 to 0.2."""
        return 1.0 - 0.8 * progress

    def inference_noise(self, count):
        """Fixed standard normal numbers, float32 (count, 1, d), the same for every row."""
        return fixed_normal((count, 1, self.no_condition.shape[0]))

    def _with_none(self, conditions):
        """The conditions behind the one that stands for none."""
        batch, _, dim = ops.shape(conditions)
        none = ops.broadcast_to(ops.cast(self.no_condition, conditions.dtype), (batch, 1, dim))
        return ops.concatenate([none, conditions], axis=1)

    def _add_loss(self, interest, conditions, present, real):
        batch = ops.shape(interest)[:1]
        progress = self.progress()
        # Keras's own reads and writes: of two workers' steps, one would be lost.
        self.steps_done.value.assign_add(1)
        t = randint(batch, 1, self.num_train_steps + 1, self.seed_generator)
        low, high = self.span_bounds(progress)
        share = uniform(batch, self.seed_generator)
        span = ops.minimum(ops.cast(low + share * (high - low), "int32"), t)
        kept = uniform(ops.shape(present), self.seed_generator) >= self.condition_dropout
        conditions = ops.where((present & kept)[..., None], conditions, self.no_condition)
        if conditions.shape[1] == 0:
            conditions = self._with_none(conditions)
        errors = self.convergence_errors(
            ops.stop_gradient(interest),
            conditions,
            t,
            span,
            ops.cast(normal(ops.shape(interest), self.seed_generator), interest.dtype),
        )
        lambdas = (float(self.reconstruction), self.trajectory * self.trajectory_weight(progress))
        for error, factor, tracker in zip(errors, lambdas, self.loss_trackers, strict=True):
            add_mean_loss(self, error, real, self.weight * factor, tracker)

    def compute_output_spec(self, interest, *_, training=None):
        return keras.KerasTensor(interest.shape, self.compute_dtype)

    def get_config(self):
        config = {
            "denoiser": keras.saving.serialize_keras_object(self.denoiser),
            "sampler": self.sampler,
            "num_steps": self.num_steps,
            "start_step": self.start_step,
            "weight": self.weight,
            "reconstruction": self.reconstruction,
            "trajectory": self.trajectory,
            "trajectory_state": self.trajectory_state,
            "curriculum_steps": self.curriculum_steps,
            "condition_dropout": self.condition_dropout,
            "num_train_steps": self.num_train_steps,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        """See `keras.Layer.from_config`."""
        denoiser = keras.saving.deserialize_keras_object(config.pop("denoiser"))
        return cls(denoiser, **config)
