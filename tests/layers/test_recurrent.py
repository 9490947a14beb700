import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.recurrent import (
    InterestEvolution,
    InterestExtractor,
    NextBehaviorLoss,
)

BATCH, CANDIDATES, STEPS, DIM, TARGET_DIM = 4, 3, 5, 6, 4
COUNTS = np.array([5, 0, 2, 1])  # real behaviors, on the right


@pytest.fixture
def inputs():
    """States, target and which are real; padding is not zero."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(BATCH, STEPS, DIM)).astype("f")
    target = rng.normal(size=(BATCH, CANDIDATES, TARGET_DIM)).astype("f")
    return states, target, np.arange(STEPS) >= STEPS - COUNTS[:, None]


def randomized(layer):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.7))
    return layer


@pytest.fixture
def extractor():
    layer = InterestExtractor()
    layer.build((None, None, DIM))
    return randomized(layer)


@pytest.fixture
def evolution():
    layer = InterestEvolution()
    layer.build((None, None, DIM), (None, None, TARGET_DIM))
    return randomized(layer)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def literal_extraction(layer, behaviors, real):
    """Eq. 2-5, one row and behavior at a time; z = 1 - u says how much of the state stays."""
    kernel, recurrent_kernel, biases = (
        weight.numpy().astype("float64") for weight in layer.gru.weights
    )
    states = np.zeros(behaviors.shape)
    for b in range(len(behaviors)):
        h = np.zeros(behaviors.shape[-1])
        for t in np.flatnonzero(real[b]):
            x_z, x_r, x_h = np.split(behaviors[b, t] @ kernel + biases[0], 3)
            h_z, h_r, h_h = np.split(h @ recurrent_kernel + biases[1], 3)
            z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
            h = z * h + (1 - z) * np.tanh(x_h + r * h_h)
            states[b, t] = h
    return states


def literal_evolution(layer, states, target, real):
    """Eq. 8-12, one row, candidate and behavior at a time; without padding."""
    attention_kernel, kernel, recurrent_kernel, bias = (
        weight.numpy().astype("float64")
        for weight in (layer.attention_kernel, layer.kernel, layer.recurrent_kernel, layer.bias)
    )
    w_u, w_r, w_h = np.split(kernel, 3, axis=1)
    u_u, u_r, u_h = np.split(recurrent_kernel, 3, axis=1)
    b_u, b_r, b_h = np.split(bias, 3)
    evolved = np.zeros((*target.shape[:2], states.shape[-1]))
    for b, n in np.ndindex(target.shape[:2]):
        interests = states[b][real[b]].astype("float64")
        if not len(interests):
            continue
        h = evolved[b, n]
        attention = softmax(
            np.array([state @ attention_kernel.T @ target[b, n] for state in interests])
        )
        for a, x in zip(attention, interests, strict=True):
            u = sigmoid(x @ w_u + b_u + h @ u_u)
            r = sigmoid(x @ w_r + b_r + h @ u_r)
            proposal = np.tanh(x @ w_h + b_h + r * (h @ u_h))
            h = (1 - a * u) * h + a * u * proposal
        evolved[b, n] = h
    return evolved


# === InterestExtractor ===


def test_extraction_equals_the_literal_loop(extractor, inputs):
    """Padded on the left: zeros before the first behavior and in a row without any."""
    behaviors, _, real = inputs
    states = extractor(behaviors, real).numpy()
    np.testing.assert_allclose(states, literal_extraction(extractor, behaviors, real), atol=1e-5)
    assert (states[~real] == 0).all() and (states[real] != 0).all()


def test_extraction_does_not_look_ahead_or_at_padding(extractor, inputs):
    behaviors, _, real = inputs
    states = extractor(behaviors, real).numpy()
    junk = np.where(real[..., None], behaviors, np.float32(50))
    np.testing.assert_array_equal(extractor(junk, real), states)
    later = behaviors.copy()
    later[:, -1] += 3
    changed = (extractor(later, real).numpy() != states).any(axis=-1)
    np.testing.assert_array_equal(changed, real & (np.arange(STEPS) == STEPS - 1))
    np.testing.assert_allclose(  # by itself and without padding
        extractor(behaviors[2:3, -2:], real[2:3, -2:]), states[2:3, -2:], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("jit_compile", "shapes"), [(False, ((4, 5), (2, 2), (4, 0))), (True, ((4, 5), (4, 0)))]
)
def test_extraction_with_open_shapes(extractor, inputs, shapes, jit_compile):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, DIM]),
            tf.TensorSpec([None, None], tf.bool),
        ],
        jit_compile=jit_compile,
    )
    def run(behaviors, real):
        with tf.GradientTape() as tape:
            tape.watch(behaviors)
            states = extractor(behaviors, real)
            loss = tf.reduce_sum(states**2)
        return states, tape.gradient(loss, [behaviors, *extractor.trainable_weights])

    behaviors, _, real = inputs
    for batch, length in shapes:
        cut = behaviors[:batch, STEPS - length :], real[:batch, STEPS - length :]
        states, (of_behaviors, *of_weights) = run(*cut)
        assert states.shape == (batch, length, DIM)
        np.testing.assert_allclose(states, literal_extraction(extractor, *cut), atol=1e-5)
        np.testing.assert_array_equal((of_behaviors.numpy() != 0).any(axis=-1), cut[1])
        for gradient in of_weights:
            assert np.isfinite(gradient).all()
            assert (np.abs(gradient).max() > 0) == (length > 0)


def test_a_copy_with_the_same_weights_is_the_same(extractor, inputs):
    behaviors, _, real = inputs
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(extractor))
    copy.set_weights(extractor.get_weights())
    np.testing.assert_array_equal(copy(behaviors, real), extractor(behaviors, real))


# === InterestEvolution ===


def test_equals_the_literal_loop(evolution, inputs):
    evolved = evolution(*inputs)
    np.testing.assert_allclose(evolved, literal_evolution(evolution, *inputs), atol=1e-5)
    assert (evolved[1].numpy() == 0).all()  # no behaviors


def test_one_step_by_hand():
    layer = InterestEvolution()
    layer.build((None, None, 1), (None, None, 1))
    layer.attention_kernel.assign([[1.0]])
    layer.kernel.assign([[0.0, 0.0, 2.0]])  # u = r = 1/2 whatever comes
    layer.recurrent_kernel.assign([[0.0, 0.0, 0.0]])
    # One behavior has all attention: half of tanh(2 * 0.5) from 0.
    evolved = layer(np.array([[[0.5]]], "f"), np.array([[[7.0]]], "f"), np.array([[True]]))
    np.testing.assert_allclose(evolved, [[[np.tanh(1.0) / 2]]], rtol=1e-6)


def test_with_full_attention_it_is_a_gru(evolution, inputs):
    """Keras's update gate z says how much stays: z = 1 - u, which is the sigmoid of -(..)."""
    states, _, _ = inputs
    sign = np.repeat([-1, 1, 1], DIM)
    gru = keras.layers.GRU(DIM, reset_after=True)
    gru.build(states.shape)
    bias = np.stack([evolution.bias * sign, np.zeros(3 * DIM)])
    gru.set_weights([evolution.kernel * sign, evolution.recurrent_kernel * sign, bias])
    evolved = evolution.evolve(states, tf.ones((BATCH, 1, STEPS)))
    np.testing.assert_allclose(evolved[:, 0], gru(states), rtol=1e-4, atol=1e-5)


def test_without_attention_nothing_evolves(evolution, inputs):
    evolved = evolution.evolve(inputs[0], tf.zeros((BATCH, CANDIDATES, STEPS)))
    np.testing.assert_array_equal(evolved, np.zeros((BATCH, CANDIDATES, DIM)))


def test_attention_sums_to_1_over_real_behaviors(evolution, inputs):
    attention = evolution.attention(*inputs).numpy()
    real = inputs[-1]
    assert attention.shape == (BATCH, CANDIDATES, STEPS)
    assert (attention[~np.repeat(real[:, None], CANDIDATES, axis=1)] == 0).all()
    expected = np.repeat((COUNTS > 0)[:, None], CANDIDATES, axis=1)
    np.testing.assert_allclose(attention.sum(axis=-1), expected, rtol=1e-6)
    assert np.ptp(attention[0], axis=0).max() > 0.1  # candidates differ


def test_padding_and_other_candidates_change_nothing(evolution, inputs):
    states, target, real = inputs
    evolved = evolution(*inputs)
    junk = np.where(real[..., None], states, np.float32(50))
    np.testing.assert_array_equal(evolution(junk, target, real), evolved)
    shorter = evolution(states[2:3, -2:], target[2:3, 1:2], real[2:3, -2:])
    np.testing.assert_allclose(shorter, evolved[2:3, 1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("jit_compile", "shapes"), [(False, ((5, 3), (2, 1), (0, 2))), (True, ((5, 3), (0, 2)))]
)
def test_evolution_with_open_shapes(evolution, inputs, shapes, jit_compile):
    vectors = [tf.TensorSpec([None, None, width]) for width in (DIM, TARGET_DIM)]

    @tf.function(
        input_signature=[*vectors, tf.TensorSpec([None, None], tf.bool)], jit_compile=jit_compile
    )
    def run(states, target, real):
        with tf.GradientTape() as tape:
            tape.watch([states, target])
            evolved = evolution(states, target, real)
            loss = tf.reduce_sum(evolved**2)
        return evolved, tape.gradient(loss, [states, target, *evolution.trainable_weights])

    states, target, real = inputs
    for length, candidates in shapes:
        cut = states[:, STEPS - length :], target[:, :candidates], real[:, STEPS - length :]
        evolved, gradients = run(*cut)
        np.testing.assert_allclose(evolved, literal_evolution(evolution, *cut), atol=1e-5)
        for gradient in gradients:
            assert np.isfinite(gradient).all()
            assert np.abs(gradient).max(initial=0) > 0 or length == 0


def test_gradients_equal_differences(evolution, inputs):
    """Through all steps, by every weight."""
    weights = evolution.trainable_weights
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(evolution(*inputs) ** 2)
    for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        center, losses = weight.numpy(), []
        direction = np.random.default_rng(2).normal(size=weight.shape)
        for distance in (-1e-4, 1e-4):
            weight.assign(center + distance * direction)
            losses.append((literal_evolution(evolution, *inputs) ** 2).sum())
        weight.assign(center)
        expected = np.sum(gradient * direction) * 2e-4
        assert losses[1] - losses[0] == pytest.approx(expected, rel=2e-2, abs=1e-6)


# === NextBehaviorLoss ===


def tagged():
    """Behaviors that say where they stand, (row, place), which are real, and items, all different;
    padding is -1, of item 0."""
    real = np.arange(STEPS) >= STEPS - COUNTS[:, None]
    rows, places = np.indices(real.shape)
    behaviors = np.where(real[..., None], np.stack([rows, places], axis=-1), -1)
    return behaviors.astype("f"), real, np.where(real, 1 + rows * STEPS + places, 0)


def spy(monkeypatch, layer):
    """Records states, positives and negatives of each call of `errors`."""
    calls, errors = [], layer.errors
    monkeypatch.setattr(layer, "errors", lambda *args: calls.append(args) or errors(*args))
    return calls


def test_errors_by_hand():
    states = np.array([[[1.0, 0.0], [0.0, 2.0]]], "f")
    positives = np.array([[[2.0, 5.0], [5.0, 0.0]]], "f")
    negatives = np.array([[[0.0, 3.0], [7.0, -1.0]]], "f")
    # Products 2 and 0; 0 and -2. -log s(x) - log(1 - s(y)) of each pair
    expected = [[-np.log(sigmoid(2)) - np.log(1 / 2), -np.log(1 / 2) - np.log(1 - sigmoid(-2))]]
    errors = NextBehaviorLoss().errors(states, positives, negatives)
    np.testing.assert_allclose(errors, expected, rtol=1e-6)


def test_errors_of_large_products_are_finite():
    vector = np.full((1, 1, 2), 100.0, "f")
    np.testing.assert_allclose(NextBehaviorLoss().errors(vector, -vector, vector), [[40_000.0]])


def test_the_next_behavior_of_real_ones_counts():
    """Rows of 5, 2 and 1 behaviors have 4, 1 and 0 that another follows."""
    behaviors, real, items = (x[COUNTS > 0] for x in tagged())
    layer = NextBehaviorLoss(weight=0.5)

    def errors(states, positives, negatives):
        np.testing.assert_array_equal(positives, behaviors[:, 1:])
        return 100 * states[..., 0] + states[..., 1]  # of the state that tells them

    layer.errors = errors
    layer(behaviors, behaviors, real, items, training=True)
    expected = np.mean([0, 1, 2, 3, 203])
    np.testing.assert_allclose(layer.losses, [0.5 * expected], rtol=1e-6)
    np.testing.assert_allclose(layer.loss_tracker.result(), expected, rtol=1e-6)


def test_negatives_are_real_behaviors_of_other_requests(monkeypatch):
    behaviors, real, items = tagged()
    layer = NextBehaviorLoss()
    calls = spy(monkeypatch, layer)
    for _ in range(60):
        layer(behaviors, behaviors, real, items, training=True)
    drawn = np.stack([negatives for *_, negatives in calls])  # (60, batch, k - 1, 2)
    for row, request in enumerate(drawn.swapaxes(0, 1)):
        found = {(*behavior,) for behavior in request.reshape(-1, 2).astype(int)}
        found.discard((-1, -1))  # drawn from the empty request: it counts for nothing
        others = {
            (b, STEPS - 1 - back) for b in range(BATCH) if b != row for back in range(COUNTS[b])
        }
        assert found == others


def test_negatives_from_an_empty_request_do_not_count():
    """Of two requests, one without behaviors: the other has no negatives."""
    behaviors, real, items = tagged()
    layer = NextBehaviorLoss()
    layer(behaviors[:2], behaviors[:2], real[:2], items[:2], training=True)
    np.testing.assert_array_equal(layer.losses, [0.0])


def test_negatives_of_the_same_item_do_not_count():
    """The other request has one behavior, of item 3: it is no negative of item 3."""
    items = np.array([[1, 2, 3, 2, 3], [0, 0, 0, 0, 3]])
    layer = NextBehaviorLoss()
    layer.errors = lambda states, *_: states[..., 0]
    states = np.broadcast_to(np.arange(STEPS, dtype="f")[:, None], (2, STEPS, DIM))
    layer(states, states, items > 0, items, training=True)
    np.testing.assert_allclose(layer.losses, [np.mean([0, 2])])  # before either 2


def test_requests_of_one_item_teach_nothing(inputs):
    states, _, real = inputs
    states = tf.constant(states)
    for items, taught in ((7 * real, False), (np.cumsum(real, axis=1), True)):
        layer = NextBehaviorLoss()
        with tf.GradientTape() as tape:
            tape.watch(states)
            layer(states, states, real, items, training=True)
            (loss,) = layer.losses
        assert (loss.numpy() > 0) == taught
        assert (tape.gradient(loss, states).numpy() != 0).any() == taught


def test_a_batch_of_one_has_no_negatives():
    behaviors, real, items = tagged()
    layer = NextBehaviorLoss()
    layer(behaviors[:1], behaviors[:1], real[:1], items[:1], training=True)
    np.testing.assert_array_equal(layer.losses, [0.0])


def test_it_adds_a_loss_in_training_only_and_returns_the_states():
    behaviors, real, items = tagged()
    for layer, training, losses in (
        (NextBehaviorLoss(), True, 1),
        (NextBehaviorLoss(), False, 0),
        (NextBehaviorLoss(), None, 0),
        (NextBehaviorLoss(weight=0), True, 0),
    ):
        states = layer(2 * behaviors, behaviors, real, items, training=training)
        np.testing.assert_array_equal(states, 2 * behaviors)
        assert len(layer.losses) == losses


@pytest.mark.parametrize("jit_compile", [False, True])
def test_loss_with_open_shapes(inputs, jit_compile):
    layer = NextBehaviorLoss()
    vectors = tf.TensorSpec([None, None, DIM])

    @tf.function(
        input_signature=[
            vectors,
            vectors,
            tf.TensorSpec([None, None], tf.bool),
            tf.TensorSpec([None, None], tf.int32),
        ],
        jit_compile=jit_compile,
    )
    def run(states, behaviors, real, items):
        with tf.GradientTape() as tape:
            tape.watch([states, behaviors])
            layer(states, behaviors, real, items, training=True)
            (loss,) = layer.losses
        return loss, *tape.gradient(loss, [states, behaviors])

    states, _, real = inputs
    items = np.arange(BATCH * STEPS, dtype="int32").reshape(BATCH, STEPS)
    for batch, length in ((4, 5), (3, 1), (1, 5), (4, 0)):
        cut = [x[:batch, STEPS - length :] for x in (states, states[::-1], real, items)]
        loss, of_states, of_behaviors = run(*cut)
        assert np.isfinite(loss)
        assert np.isfinite(of_states).all() and np.isfinite(of_behaviors).all()
        assert (loss.numpy() > 0) == (batch > 1 and length > 1)
    loss, of_states, of_behaviors = run(states, states, real, items)
    assert np.abs(of_states).max() > 0 and np.abs(of_behaviors).max() > 0
    assert (of_states.numpy()[1] == 0).all()  # no behaviors


def test_losses_of_low_precision_are_float32(inputs):
    states, _, real = inputs
    layer = NextBehaviorLoss(dtype="mixed_bfloat16")
    outputs = layer(states, states, real, np.cumsum(real, axis=1), training=True)
    assert outputs.dtype == tf.bfloat16
    assert layer.losses[0].dtype == tf.float32


@pytest.mark.parametrize("weight", [-0.1, "1", None, float("nan")])
def test_wrong_weight(weight):
    with pytest.raises(ValueError, match=f"`weight` must be >= 0. Received: weight={weight!r}"):
        NextBehaviorLoss(weight)
