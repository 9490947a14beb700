"""Interest extractor (DIEN, eq. 2-5), its loss (eq. 6) and interest evolution (eq. 8-12)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative
from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss
from tfrec_diffusion.layers.noise import randint, uniform
from tfrec_diffusion.layers.normalization import masked_softmax


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class InterestExtractor(keras.layers.Layer):
    """A GRU over the behaviors (eq. 2-5).

    Call arguments:
        behaviors: float tensor of shape (batch, k, d), oldest first, padded on the left.
        real: bool tensor of shape (batch, k), True = real.

    Returns:
        float tensor of shape (batch, k, d). The state after each behavior, zeros for padding.

    Reference:
        https://arxiv.org/abs/1809.03672
    """

    def build(self, behaviors_shape):
        dim = behaviors_shape[-1]
        # cuDNN does not support padding on the left.
        self.gru = keras.layers.GRU(
            dim, return_sequences=True, use_cudnn=False, dtype=self.dtype_policy
        )
        self.gru.build((None, None, dim))

    def call(self, behaviors, real):
        # One step of padding, because Keras's GRU fails for sequences of length 0.
        behaviors = ops.pad(behaviors, ((0, 0), (1, 0), (0, 0)))
        return self.gru(behaviors, mask=ops.pad(real, ((0, 0), (1, 0))))[:, 1:]

    def compute_output_spec(self, behaviors, real):
        return keras.KerasTensor(behaviors.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class NextBehaviorLoss(keras.layers.Layer):
    """Auxiliary loss: the state after behavior t predicts behavior t + 1 (eq. 6).

    The next behavior is told from a negative, which is a random behavior of another request of the
    batch. If the negative has the same item as the behavior, the pair does not count. The layer
    adds the loss in training only.

    Args:
        weight: float. Weight alpha of the loss. Defaults to `1.0`.

    Call arguments:
        states: float tensor of shape (batch, k, d). The state after each behavior.
        behaviors: float tensor of shape (batch, k, d), oldest first, padded on the left.
        real: bool tensor of shape (batch, k), True = real.
        items: int tensor of shape (batch, k). The items of the behaviors.
        training: bool. Whether to add the loss. Defaults to `None`, which is `False`.

    Returns:
        `states`, unchanged.

    Reference:
        https://arxiv.org/abs/1809.03672
    """

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        check_not_negative(weight=weight)
        self.weight = weight
        self.seed_generator = keras.random.SeedGenerator()
        self.loss_tracker = keras.metrics.Mean(name="next_behavior_loss")

    def call(self, states, behaviors, real, items, training=None):
        if training and self.weight > 0:
            places, there = self._draw(real)
            negatives = tf.gather_nd(behaviors, places)
            there &= tf.not_equal(tf.gather_nd(items, places), items)
            errors = self.errors(states[:, :-1], behaviors[:, 1:], negatives[:, 1:])
            follows = real[:, :-1] & real[:, 1:] & there[:, 1:]
            errors, follows = ops.reshape(errors, (-1,)), ops.reshape(follows, (-1,))
            add_mean_loss(self, errors, follows, self.weight, self.loss_tracker)
        return states

    def errors(self, states, positives, negatives):
        """Errors -log s(h_t . e_{t+1}) - log(1 - s(h_t . e'_{t+1})) of the predictions.

        Args:
            states: float tensor of shape (batch, k - 1, d). The states h_t.
            positives: float tensor of shape (batch, k - 1, d). The next behaviors e_{t+1}.
            negatives: float tensor of shape (batch, k - 1, d). The negatives e'_{t+1}.

        Returns:
            float32 tensor of shape (batch, k - 1).
        """
        states = ops.cast(states, "float32")
        positive, negative = (
            ops.sum(states * ops.cast(x, "float32"), axis=-1) for x in (positives, negatives)
        )
        return ops.softplus(-positive) + ops.softplus(negative)

    def _draw(self, real):
        """Indices (batch, k, 2) of behaviors of other requests, and if there are any (batch, k)."""
        batch, length = tf.shape(real)[0], tf.shape(real)[1]
        own = tf.range(batch)[:, None]
        shift = randint(tf.shape(real), 1, tf.maximum(batch, 2), self.seed_generator)
        other = (own + shift) % batch
        counts = tf.gather(tf.reduce_sum(tf.cast(real, tf.int32), axis=1), other)
        share = uniform(tf.shape(real), self.seed_generator)
        back = tf.cast(share * tf.cast(counts, tf.float32), tf.int32)  # counted from the newest
        place = length - 1 - tf.minimum(back, tf.maximum(counts - 1, 0))
        return tf.stack([other, place], axis=-1), (counts > 0) & (other != own)

    def compute_output_spec(self, states, behaviors, real, items, training=None):
        return keras.KerasTensor(states.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class InterestEvolution(keras.layers.Layer):
    """AUGRU: a GRU whose update gate is scaled by the attention of each candidate (eq. 8-12).

    a_t = softmax_t(h_t W e_a); u~_t = a_t u_t; h'_t = (1 - u~_t) h'_{t-1} + u~_t h~_t, for a
    candidate e_a, states h_t of the extractor, and the update gate u_t and proposal h~_t of a GRU.
    The product of the states with the GRU's kernel is computed once for all steps and candidates.

    Call arguments:
        states: float tensor of shape (batch, k, d), from `InterestExtractor`.
        target: float tensor of shape (batch, candidates, dim).
        real: bool tensor of shape (batch, k), True = real. Padding leaves the state unchanged.

    Returns:
        float tensor of shape (batch, candidates, d). The last state h'_T, zeros without behaviors.

    Reference:
        https://arxiv.org/abs/1809.03672
    """

    def build(self, states_shape, target_shape):
        dim = states_shape[-1]
        self.attention_kernel = self.add_weight(
            name="attention_kernel", shape=(target_shape[-1], dim)
        )
        self.kernel = self.add_weight(name="kernel", shape=(dim, 3 * dim))
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(dim, 3 * dim), initializer="orthogonal"
        )
        self.bias = self.add_weight(name="bias", shape=(3 * dim,), initializer="zeros")

    def call(self, states, target, real):
        return self.evolve(states, self.attention(states, target, real))

    def attention(self, states, target, real):
        """The attention a_t of each candidate to the states.

        Args:
            states: float tensor of shape (batch, k, d).
            target: float tensor of shape (batch, candidates, dim).
            real: bool tensor of shape (batch, k), True = real.

        Returns:
            float tensor of shape (batch, candidates, k). 0 for padding.
        """
        query = ops.matmul(target, self.attention_kernel)
        logits = ops.cast(ops.matmul(query, ops.transpose(states, (0, 2, 1))), "float32")
        return ops.cast(masked_softmax(logits, real[:, None]), states.dtype)

    def evolve(self, states, attention):
        """Runs the GRU.

        Args:
            states: float tensor of shape (batch, k, d).
            attention: float tensor of shape (batch, candidates, k).

        Returns:
            float tensor of shape (batch, candidates, d). The last state h'_T.
        """
        # One step of padding without attention, because XLA fails for a loop of length 0.
        states = ops.pad(states, ((0, 0), (1, 0), (0, 0)))
        attention = ops.pad(attention, ((0, 0), (0, 0), (1, 0)))
        batch, candidates, steps = ops.shape(attention)
        dim = states.shape[-1]
        inputs = tf.transpose(ops.matmul(states, self.kernel) + self.bias, (1, 0, 2))
        attention = tf.transpose(attention, (2, 0, 1))[..., None]
        recurrent_kernel = ops.cast(self.recurrent_kernel, states.dtype)

        def step(t, state):
            of_input = inputs[t][:, None]
            of_state = tf.reshape(state @ recurrent_kernel, (batch, candidates, 3 * dim))
            update, reset = tf.split(
                tf.sigmoid(of_input[..., : 2 * dim] + of_state[..., : 2 * dim]), 2, axis=-1
            )
            proposal = tf.tanh(of_input[..., 2 * dim :] + reset * of_state[..., 2 * dim :])
            update = attention[t] * update
            state = tf.reshape(state, (batch, candidates, dim))
            state = (1 - update) * state + update * proposal
            return t + 1, tf.reshape(state, (batch * candidates, dim))

        start = tf.zeros((batch * candidates, dim), states.dtype)
        _, state = tf.while_loop(
            lambda t, _: t < steps, step, (tf.constant(0), start), maximum_iterations=steps
        )
        return tf.reshape(state, (batch, candidates, dim))

    def compute_output_spec(self, states, target, real):
        return keras.KerasTensor((*target.shape[:2], states.shape[-1]), self.compute_dtype)
