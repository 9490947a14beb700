"""HierDiffuse's fusion of long- and short-term interests by denoising (sections 3.2-3.4)."""

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

# Spans as shares of T, and the share of the curriculum in which they stay small.
_SMALL_SPAN, _LARGE_SPAN, _SMALL_SPANS = 0.1, 0.5, 0.1
_CHAINS = {"tcc": sampler.consistency, "ddim": sampler.ddim, "ddpm": sampler.ddpm}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffusionFusion(keras.layers.Layer):
    """Denoises one interest under the guidance of others: h^fusion = Denoise(h^L + noise, {y_g}).

    This is eq. 1. The denoiser f_theta(x_t, t, y) predicts x_0. In training the Trajectory
    Convergence Constraint (eq. 8) is added to the model's losses. Its x_0 is h^L without gradient,
    so that the encoder cannot reduce the loss by collapsing. The spans delta and the weight of the
    trajectory term follow a curriculum over the training steps, which the layer counts itself. At
    inference the noise is the same for every row and in every call.

    Args:
        denoiser: `MLPDenoiser` or `TransformerDenoiser`.
        sampler: str. `"tcc"` (from any x_t to x_0 in one evaluation), `"ddim"` or `"ddpm"`.
            Defaults to `"tcc"`.
        num_steps: int. Number of evaluations of the denoiser. Defaults to `1`.
        start_step: int or `None`. The step t that h^L is perturbed to before it is denoised. At T
            nothing of h^L is left. If `None`, T. Defaults to `None`.
        weight: float. Weight of the loss. If 0, there is no loss. Defaults to `0.1`.
        reconstruction: bool. Whether the loss has the first term of eq. 8 (table 2c).
            Defaults to `True`.
        trajectory: bool. Whether the loss has the second term of eq. 8 (table 2c).
            Defaults to `True`.
        trajectory_state: str. What x at t - delta is: `"same_noise"`, which is h^L perturbed with
            the noise of x_t, or `"ddim"`, which is the deterministic step from the denoiser's own
            estimate. Defaults to `"same_noise"`.
        curriculum_steps: int. Number of training steps in which the spans grow and the weight of
            the trajectory term falls; usually all of them. Defaults to `10_000`.
        condition_dropout: float. Share of the conditions that training leaves out, so that the
            denoiser learns the unconditional prediction. Defaults to `0.1`.
        num_train_steps: int. Number of steps T of the noise schedule. Defaults to `1000`.

    Call arguments:
        interest: float tensor of shape (batch, d). The long-term interest h^L.
        conditions: float tensor of shape (batch, conditions, d). The short-term interests y.
        weights: float tensor of shape (batch, conditions). Weights of the guidance, 0 where a
            condition is absent.
        real: bool tensor of shape (batch,). Rows that count in the loss.
        training: bool.

    Returns:
        float tensor of shape (batch, d). The fused interest h^fusion.
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
        """Makes the chain of a sampler over this layer's schedule.

        Args:
            name: str. `"tcc"`, `"ddim"` or `"ddpm"`.
            num_steps: int. Number of evaluations of the denoiser.
            start_step: int or `None`. The first step t. If `None`, T. Defaults to `None`.

        Returns:
            `Chain`.
        """
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
        if not self.denoiser.built:
            self.denoiser.build((None, None, dim))
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
            interest: float tensor of shape (batch, d).
            conditions: float tensor of shape (batch, conditions, d).
            weights: float tensor of shape (batch, conditions).
            noise: float tensor of shape (steps + 1, batch or 1, d). Standard normal noise of the
                perturbation, then of each step of the chain.
            chain: `Chain` or `None`. If `None`, the layer's own. Defaults to `None`.

        Returns:
            float tensor of shape (batch, d).
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
        """The two terms of eq. 8, with f_theta(x_t, t, y) for each condition y as Phi_theta.

        Args:
            interest: float tensor of shape (batch, d). x_0.
            conditions: float tensor of shape (batch, conditions, d).
            t: int tensor of shape (batch,), in [1, T].
            span: int tensor of shape (batch,), in [0, t]. delta.
            noise: float tensor of shape (batch, d). Standard normal noise.

        Returns:
            Two float tensors of shape (batch, conditions), the squared errors of the reconstruction
            and of the trajectory, averaged over d.
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
        """Returns the share of the curriculum that is done, a float32 scalar in [0, 1]."""
        done = ops.cast(self.steps_done, "float32") / self.curriculum_steps
        return ops.minimum(done, 1.0)

    def span_bounds(self, progress):
        """The least and the largest span delta.

        They are 1 and 0.1 T in the first tenth of the curriculum. Afterwards the least is 0.1 T,
        and the largest grows linearly from 0.1 T to 0.5 T.

        Args:
            progress: float scalar in [0, 1]. Share of the curriculum that is done.

        Returns:
            Two float scalars.
        """
        late = (progress - _SMALL_SPANS) / (1 - _SMALL_SPANS)
        small, grown = _SMALL_SPAN * self.num_train_steps, _LARGE_SPAN * self.num_train_steps
        low = ops.where(late < 0, 1.0, small)
        return low, small + ops.maximum(late, 0.0) * (grown - small)

    def trajectory_weight(self, progress):
        """lambda of eq. 8, which falls from 1.0 to 0.2.

        Args:
            progress: float scalar in [0, 1]. Share of the curriculum that is done.

        Returns:
            float scalar.
        """
        return 1.0 - 0.8 * progress

    def inference_noise(self, count):
        """The noise of inference, the same for every row and in every call.

        Args:
            count: int. Number of vectors of noise, one more than the steps of the chain.

        Returns:
            float32 tensor of shape (count, 1, d). Standard normal numbers.
        """
        return fixed_normal((count, 1, self.no_condition.shape[0]))

    def _with_none(self, conditions):
        """Puts the vector that stands for no condition before the conditions."""
        batch, _, dim = ops.shape(conditions)
        none = ops.broadcast_to(ops.cast(self.no_condition, conditions.dtype), (batch, 1, dim))
        return ops.concatenate([none, conditions], axis=1)

    def _add_loss(self, interest, conditions, present, real):
        batch = ops.shape(interest)[:1]
        progress = self.progress()
        # Keras's own `assign_add` reads and then writes: one of two workers' steps would be lost.
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
        # `build` builds the denoiser. Older files hold a number in place of the shape it had.
        denoiser = {k: v for k, v in config.pop("denoiser").items() if k != "build_config"}
        return cls(keras.saving.deserialize_keras_object(denoiser), **config)
