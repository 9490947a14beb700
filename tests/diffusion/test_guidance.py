import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.diffusion.guidance import ClassifierFreeGuidance, SemanticGuidance, mix
from tfrec_diffusion.diffusion.schedule import Schedule

ROWS, CATEGORIES, DIM = 4, 3, 5


@pytest.fixture
def known():
    """Interests, counts (row 0 knows all categories, row 1 none) and dispersions."""
    rng = np.random.default_rng(0)
    counts = np.array([[3, 1, 9], [0, 0, 0], [0, 2, 5], [70, 0, 1]], "f")
    interests = rng.normal(size=(ROWS, CATEGORIES, DIM)).astype("f")
    return interests, counts, rng.uniform(size=counts.shape).astype("f")


@pytest.fixture
def gate(known, randomize):
    layer = SemanticGuidance()
    layer(*known)
    return randomize(layer)


# === Mixing ===


def test_mix_by_hand():
    predictions = tf.constant([[[1.0, 0.0], [3.0, 10.0], [2.0, -10.0]]] * 3)
    weights = tf.constant([[0.0, 0.0], [0.5, 0.25], [2.0, 0.0]])
    expected = [[1, 0], [0.25 + 1.5 + 0.5, 5 - 2.5], [-1 + 6, 20]]
    np.testing.assert_allclose(mix(predictions, weights), expected)


def test_no_conditions_leave_the_unconditional_prediction():
    predictions = np.random.default_rng(0).normal(size=(ROWS, 1, DIM))
    np.testing.assert_array_equal(mix(predictions, np.zeros((ROWS, 0))), predictions[:, 0])


@pytest.mark.parametrize("t", [1, 500, 1000])
def test_mixing_scores_or_noises_is_mixing_estimates_of_x_0(t):
    """With x_t = signal x_0 + deviation noise, and score = -noise / deviation (eq. 6)."""
    rng = np.random.default_rng(0)
    x_t, x_0 = rng.normal(size=(ROWS, 1, DIM)), rng.normal(size=(ROWS, 1 + CATEGORIES, DIM))
    weights = rng.uniform(0, 2, (ROWS, CATEGORIES))
    alpha_bar = Schedule.cosine().alpha_bars[t]
    signal, deviation = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    noises = (x_t - signal * x_0) / deviation
    scores = -noises / deviation

    mixed = mix(x_0, weights)
    noise = (x_t[:, 0] - signal * mixed) / deviation
    np.testing.assert_allclose(mix(noises, weights), noise)
    np.testing.assert_allclose(mix(scores, weights), -noise / deviation)
    for row in range(ROWS):  # eq. 6 as printed
        printed = (1 - weights[row].sum()) * scores[row, 0]
        for omega, s in zip(weights[row], scores[row, 1:], strict=True):
            printed = printed + omega * s
        np.testing.assert_allclose(-noise[row] / deviation, printed)


# === Weights ===


def test_classifier_free_weights_by_hand(known):
    weights = ClassifierFreeGuidance(1.5)(*known)
    expected = [[1.5, 1.5, 1.5], [0, 0, 0], [0, 1.5, 1.5], [1.5, 0, 1.5]]
    np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("categories", [1, 2, 3])
def test_semantic_weights_sum_to_1_at_first(known, categories):
    interests, counts, dispersions = (x[:1, :categories] for x in known)
    weights = SemanticGuidance()(interests, counts, dispersions)
    np.testing.assert_allclose(weights, np.full((1, categories), 1 / categories), rtol=1e-6)


def test_semantic_weights_equal_a_loop(gate, known):
    interests, counts, dispersions = known
    kernel, bias = gate.kernel.numpy(), gate.bias.numpy()
    expected = np.zeros(counts.shape)
    for row, i in np.ndindex(*counts.shape):
        if counts[row, i]:
            inputs = [*interests[row, i], np.log(1 + counts[row, i]), dispersions[row, i]]
            expected[row, i] = np.log(1 + np.exp(inputs @ kernel[i] + bias[i]))
    np.testing.assert_allclose(gate(*known), expected, rtol=1e-5)


def test_semantic_weights_learn_from_categories_that_are_there(gate, known):
    tensors = [tf.convert_to_tensor(x) for x in known]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        weights = gate(*tensors)
    *by_inputs, by_kernel, by_bias = tape.gradient(weights, [*tensors, gate.kernel, gate.bias])
    for gradient in by_inputs:
        present = gradient.numpy().reshape(ROWS, CATEGORIES, -1).all(axis=-1)
        np.testing.assert_array_equal(present, known[1] > 0)
    assert by_kernel.numpy().all() and by_bias.numpy().all()


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_semantic_weights_are_finite_and_never_negative(gate, known, scale):
    interests, *rest = known
    weights = gate(scale * interests, *rest).numpy()
    assert np.isfinite(weights).all() and (weights >= 0).all()


# === Arguments ===


def test_a_negative_weight():
    with pytest.raises(ValueError, match="`weight` must be >= 0. Received: weight=-1"):
        ClassifierFreeGuidance(-1)
