import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.encoder import BehaviorEncoder, LongTermEncoder

LENGTH, DIM, HEADS = 4, 6, 2


def normalize(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * layer.gamma.numpy() + layer.beta.numpy()


def dense(layer, x):
    return x @ layer.kernel.numpy() + layer.bias.numpy()


def block(layer, tokens, seen):
    """A standard post-norm block over tokens (k, d); seen[i]: what the i-th attends to."""
    query, query_bias, key, key_bias, value, value_bias, out, out_bias = (
        layer.attention.get_weights()
    )
    attended = np.zeros_like(tokens)
    for i, head in np.ndindex(len(tokens), HEADS):
        q = tokens[i] @ query[:, head] + query_bias[head]
        k = tokens[seen[i]] @ key[:, head] + key_bias[head]
        v = tokens[seen[i]] @ value[:, head] + value_bias[head]
        weights = np.exp(k @ q / np.sqrt(DIM // HEADS))
        attended[i] += weights / weights.sum() @ v @ out[head]
    x = normalize(layer.attention_norm, tokens + attended + out_bias)
    hidden = np.maximum(dense(layer.feed_forward, x), 0)
    return normalize(layer.feed_forward_norm, x + dense(layer.feed_forward_output, hidden))


def encode(encoder, history, history_mask, sessions=None):
    """A list of each user's newest behaviors, encoded; without padding."""
    encoded = []
    for row in range(len(history)):
        tokens = history[row][history_mask[row]][-LENGTH:].astype("float64")
        count = len(tokens)
        tokens = tokens + encoder.positions.numpy()[LENGTH - count :]
        session = np.zeros(count) if sessions is None else sessions[row][-count:] if count else []
        for layer in encoder.blocks:
            tokens = block(layer, tokens, [np.flatnonzero(session == s) for s in session])
        encoded.append(tokens)
    return encoded


@pytest.fixture
def inputs():
    history = np.random.default_rng(0).normal(size=(5, 7, DIM)).astype("f")
    return history, np.arange(7) < np.array([7, 0, 3, 1, 5])[:, None]


@pytest.fixture
def make():
    def make(cls, **arguments):
        layer = cls(LENGTH, HEADS, **arguments)
        layer.build((None, None, DIM))
        rng = np.random.default_rng(1)
        for weight in layer.trainable_weights:
            weight.assign(rng.normal(size=weight.shape, scale=0.5))
        return layer

    return make


# === BehaviorEncoder ===


@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("in_sessions", [False, True])
def test_equals_the_literal_encoder(make, inputs, num_blocks, in_sessions):
    encoder = make(BehaviorEncoder, num_blocks=num_blocks)
    sessions = np.array([[1, 1, 0, 0], [9, 9, 9, 9], [9, 2, 1, 1], [9, 9, 9, 0], [2, 1, 0, 0]])
    inputs = (*inputs, sessions) if in_sessions else inputs
    behaviors, real = encoder(*inputs)
    for row, expected in enumerate(encode(encoder, *inputs)):
        count = len(expected)
        np.testing.assert_array_equal(real[row], np.arange(LENGTH) >= LENGTH - count)
        np.testing.assert_allclose(behaviors[row, LENGTH - count :], expected, rtol=1e-4, atol=1e-4)


def test_a_behavior_sees_those_of_its_session(make, inputs):
    encoder = make(BehaviorEncoder, num_blocks=2)
    history = tf.convert_to_tensor(inputs[0][:1])
    sessions = np.array([[1, 1, 0, 0]])
    with tf.GradientTape() as tape:
        tape.watch(history)
        newest = tf.reduce_sum(encoder(history, inputs[1][:1], sessions)[0][0, -1] ** 3)
    seen = (tape.gradient(newest, history).numpy()[0] != 0).any(axis=-1)
    np.testing.assert_array_equal(seen, [0, 0, 0, 0, 0, 1, 1])


# === LongTermEncoder ===


def test_long_term_interest_is_the_mean_at_unit_scale(make, inputs):
    layer = make(LongTermEncoder)
    expected = np.zeros((5, DIM))
    for row, behaviors in enumerate(encode(layer.encoder, *inputs)):
        if len(behaviors):
            mean = behaviors.mean(axis=0)
            expected[row] = (mean - mean.mean()) / mean.std()
    np.testing.assert_allclose(layer(*inputs), expected, rtol=1e-3, atol=1e-4)


# Longer than LENGTH, shorter, and none.
@pytest.mark.parametrize(("jit_compile", "lengths"), [(False, (7, 2, 0)), (True, (7, 0))])
def test_open_shapes(make, inputs, lengths, jit_compile):
    layer = make(LongTermEncoder)
    signature = [tf.TensorSpec([None, None, DIM]), tf.TensorSpec([None, None], tf.bool)]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def run(history, history_mask):
        with tf.GradientTape() as tape:
            tape.watch(history)
            interest = layer(history, history_mask)
            loss = tf.reduce_sum(interest**3)
        return interest, tape.gradient(loss, [history, *layer.trainable_variables])

    for length in lengths:
        history, mask = (x[:, :length] for x in inputs)
        interest, gradients = run(history, mask)
        np.testing.assert_allclose(interest, layer(history, mask), rtol=1e-4, atol=1e-5)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert (interest[1].numpy() == 0).all()  # no behaviors


def test_older_behaviors_and_padding_change_nothing(make, inputs):
    layer, (history, mask) = make(LongTermEncoder), inputs
    read = mask & (np.arange(7) >= mask.sum(axis=1, keepdims=True) - LENGTH)
    other = np.where(read[..., None], history, np.float32(1e4))
    np.testing.assert_allclose(layer(other, mask), layer(history, mask), rtol=1e-5)
    # Row 2 has 3 behaviors: the same without padding.
    alone = layer(history[2:3, :3], mask[2:3, :3])
    np.testing.assert_allclose(alone, layer(history, mask)[2:3], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight(make, inputs):
    layer = make(LongTermEncoder)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(*inputs) ** 3)
    gradients = tape.gradient(loss, layer.trainable_variables)
    for weight, gradient in zip(layer.trainable_variables, gradients, strict=True):
        # A bias of the keys cancels in the softmax.
        assert (np.abs(gradient).max() > 1e-4) != weight.path.endswith("key/bias"), weight.path


# === Arguments ===


@pytest.mark.parametrize("argument", ["length", "num_heads", "num_blocks"])
@pytest.mark.parametrize("value", [0, 2.0, None])
def test_wrong_arguments(argument, value):
    message = f"`{argument}` must be a positive integer. Received: {argument}={value!r}"
    with pytest.raises(ValueError, match=message):
        BehaviorEncoder(**{"length": 3, argument: value})


def test_heads_that_do_not_divide_the_width():
    message = "`num_heads` must divide the width of the behaviors. Received: num_heads=4, width 6"
    with pytest.raises(ValueError, match=message):
        BehaviorEncoder(3, num_heads=4).build((None, None, 6))
