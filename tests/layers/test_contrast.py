import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.contrast import ContrastiveCalibrator

BATCH, CANDIDATES, CHANNELS, DIM = 6, 3, 2, 5


def reference(layer, interests, augmented, candidate_mask, users):
    """Eq. 20 pair by pair."""

    def cosine(a, b):
        a, b = a @ layer.projection.numpy(), b @ layer.augmented_projection.numpy()
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    losses = []
    for u, n in np.argwhere(candidate_mask):
        others = [
            v
            for v in range(len(users))
            if v != u and candidate_mask[v, n] and not (users[v] == users[u] and users[u] >= 2)
        ]
        for i in range(interests.shape[2]):
            positive, *negatives = (
                np.exp(cosine(interests[u, n, i], augmented[v, n, i]) / layer.temperature)
                for v in (u, *others)
            )
            losses.append(-np.log(positive / (positive + sum(negatives))))
    return np.mean(losses)


def loss_of(layer, *inputs):
    """What the layer adds in training, without its weight."""
    layer(*inputs, training=True)
    return layer.losses[0] / layer.weight


def loss_and_gradients(layer, *inputs):
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs[:2])
        loss = loss_of(layer, *inputs)
    return loss, tape.gradient(loss, [*inputs[:2], *layer.trainable_variables])


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    interests, augmented = rng.normal(size=(2, BATCH, CANDIDATES, CHANNELS, DIM)).astype("f")
    candidate_mask = rng.random((BATCH, CANDIDATES)) < 0.7
    candidate_mask[4] = False
    return interests, augmented, candidate_mask


@pytest.fixture
def layer(inputs):
    layer = ContrastiveCalibrator(temperature=0.2)
    layer.build(inputs[0].shape, inputs[1].shape)
    return layer


@pytest.mark.parametrize("jit_compile", [False, True])
def test_equals_the_sum_over_pairs(layer, inputs, jit_compile):
    interests = tf.TensorSpec([None, None, CHANNELS, DIM])
    signature = [interests, interests, tf.TensorSpec([None, None], "bool")]
    signature.append(tf.TensorSpec([None], "int32"))

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def loss(*inputs):
        return loss_of(layer, *inputs)

    for users in (
        [2, 3, 4, 5, 6, 7],
        [2, 2, 9, 9, 9, 2],
        [1, 1, 1, 0, 0, 0],  # unknown users may differ
        [8, 8, 8, 8, 8, 8],
    ):
        users = np.array(users, np.int32)
        expected = reference(layer, *inputs, users)
        np.testing.assert_allclose(loss(*inputs, users), expected, rtol=1e-4, atol=1e-6)


def test_without_users_all_other_requests_are_negatives(layer, inputs):
    assert loss_of(layer, *inputs) == loss_of(layer, *inputs, np.arange(2, 2 + BATCH))


def test_two_orthogonal_users_by_hand():
    layer = ContrastiveCalibrator(temperature=0.5)
    layer.build((None, None, 1, 2), (None, None, 1, 2))
    layer.set_weights([np.eye(2), np.eye(2)])
    interests = np.array([[3, 0], [0, 0.1]], "f").reshape(2, 1, 1, 2)
    mask = np.ones((2, 1), bool)
    matched, crossed = (
        float(loss_of(layer, interests, x, mask)) for x in (interests, interests[::-1])
    )
    assert matched == pytest.approx(np.log(1 + np.exp(-2)), rel=1e-5)
    assert crossed == pytest.approx(np.log(1 + np.exp(2)), rel=1e-5)


@pytest.mark.parametrize("users", [None, [5]])
def test_a_single_request_costs_nothing(layer, inputs, users):
    one = [x[:1] for x in inputs]
    loss, gradients = loss_and_gradients(layer, *one, *([np.array(users)] if users else []))
    assert loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_padded_candidates_are_neither_anchors_nor_negatives(layer, inputs):
    interests, augmented, candidate_mask = inputs
    real = candidate_mask[..., None, None]
    other = [np.where(real, x, np.float32(100)) for x in (interests, augmented)]
    expected, gradients = loss_and_gradients(layer, *inputs)
    np.testing.assert_allclose(loss_of(layer, *other, candidate_mask), expected, rtol=1e-5)
    for gradient in gradients[:2]:
        assert (gradient.numpy()[~candidate_mask] == 0).all()
        assert (gradient.numpy()[candidate_mask] != 0).any(axis=(1, 2)).all()
    assert loss_of(layer, interests, augmented, np.zeros_like(candidate_mask)) == 0


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_zero_interests_have_finite_gradients(inputs, dtype):
    interests, augmented, candidate_mask = inputs
    interests[0], augmented[1], interests[2, :, 0] = 0, 0, 0
    layer = ContrastiveCalibrator(dtype=dtype)
    loss, gradients = loss_and_gradients(layer, interests, augmented, candidate_mask)
    assert loss.dtype == tf.float32 and np.isfinite(loss)
    assert all(np.abs(gradient).max() < 1e3 for gradient in gradients)


def test_is_computed_in_float32(layer, inputs):
    rounded = [tf.cast(x, "bfloat16") for x in inputs[:2]]
    low = ContrastiveCalibrator(temperature=0.2, dtype="mixed_bfloat16")
    low.build(inputs[0].shape, inputs[1].shape)
    low.set_weights(layer.get_weights())
    expected = loss_of(layer, *(tf.cast(x, "float32") for x in rounded), inputs[2])
    np.testing.assert_allclose(loss_of(low, *rounded, inputs[2]), expected, rtol=1e-6)


def test_adds_its_loss_in_training_only_and_changes_nothing(inputs):
    layer = ContrastiveCalibrator(weight=0.25)
    np.testing.assert_array_equal(layer(*inputs), inputs[1])
    assert layer.losses == []
    np.testing.assert_array_equal(layer(*inputs, training=True), inputs[1])
    (loss,) = layer.losses
    assert loss > 0 and layer.loss_tracker.result() == loss / 0.25


def test_symbolic_shape():
    interests = keras.Input((None, CHANNELS, DIM))
    mask, users = keras.Input((None,), dtype="bool"), keras.Input((), dtype="int32")
    outputs = ContrastiveCalibrator()(interests, interests, mask, users)
    assert outputs.shape == (None, None, CHANNELS, DIM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "`temperature` must be positive. Received: temperature=0"),
        ({"weight": -1}, "`weight` must be >= 0. Received: weight=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveCalibrator(**arguments)
