import keras
import literal
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.diffusion.denoiser import GuidedDenoiser

ROWS, CHANNELS, DIM = 3, 4, 8
VARIANTS = {
    "full": {},
    "W": {"context_guidance": False},
    "X": {"channel_guidance": False},
    "Y": {"context_guidance": False, "channel_guidance": False},
}


@pytest.fixture
def make(randomize):
    def make(dim=DIM, **arguments):
        denoiser = GuidedDenoiser(**arguments)
        denoiser.build(dim)
        return randomize(denoiser)

    return make


@pytest.fixture
def denoiser(make):
    return make()


def draw(c=CHANNELS, dim=DIM):
    """Interests, channels, noised interests and their steps."""
    rng = np.random.default_rng(0)
    interests, channels, x = rng.normal(size=(3, ROWS, c, dim)).astype("f")
    return interests, channels, x, rng.integers(1, 1001, (ROWS, c))


def predict(denoiser, interests, channels, x, t):
    condition = denoiser.condition(interests, channels)
    return denoiser(x, denoiser.embed_time(t), condition)


def reference(denoiser, interests, channels, x, t):
    outputs = np.zeros(x.shape)
    for row, i in np.ndindex(*t.shape):
        outputs[row, i] = literal.epsilon_theta(
            denoiser, x[row, i], t[row, i], interests[row], channels[row], i
        )
    return outputs


# === Equations ===


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_literal_denoiser(make, variant, num_blocks):
    denoiser = make(num_blocks=num_blocks, **VARIANTS[variant])
    for c in (1, 2, 4):
        inputs = draw(c)
        np.testing.assert_allclose(
            predict(denoiser, *inputs), reference(denoiser, *inputs), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("dim", "num_heads", "ffn_factor"), [(8, 1, 1), (8, 4, 2), (5, 1, 4)])
def test_other_sizes(make, dim, num_heads, ffn_factor):
    inputs = draw(dim=dim)
    denoiser = make(dim, num_heads=num_heads, ffn_factor=ffn_factor)
    np.testing.assert_allclose(
        predict(denoiser, *inputs), reference(denoiser, *inputs), rtol=1e-5, atol=1e-5
    )


def test_traced_with_open_rows(denoiser):
    """Under XLA: see test_generator.py."""
    inputs = draw()
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in inputs]
    traced = tf.function(lambda *inputs: predict(denoiser, *inputs), input_signature=signature)
    np.testing.assert_allclose(traced(*inputs), reference(denoiser, *inputs), rtol=1e-5, atol=1e-5)
    assert traced(*(x[:0] for x in inputs)).shape == (0, CHANNELS, DIM)


def test_time_embedding_by_hand():
    denoiser = GuidedDenoiser()
    denoiser.build(4)
    for layer in denoiser.time_layers:
        layer.kernel.assign(np.eye(4))
    x = np.array([[np.sin(30), np.sin(0.3), np.cos(30), np.cos(0.3)]])
    np.testing.assert_allclose(denoiser.embed_time([30]), x / (1 + np.exp(-x)), rtol=1e-5)


def test_one_step_for_all(denoiser):
    interests, channels, x, _ = draw()
    everywhere = predict(denoiser, interests, channels, x, np.full((ROWS, CHANNELS), 30))
    once = predict(denoiser, interests, channels, x, np.full((1, 1), 30))
    np.testing.assert_allclose(once, everywhere, rtol=1e-5, atol=1e-6)


# === Properties ===


def test_a_noised_interest_sees_the_others_without_noise(denoiser):
    interests, channels, x, t = draw()
    expected = predict(denoiser, interests, channels, x, t).numpy()
    x[:, 2] += 1
    outputs = predict(denoiser, interests, channels, x, t).numpy()
    np.testing.assert_allclose(outputs[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=1e-6)
    assert (np.abs(outputs - expected)[:, 2].max(axis=-1) > 1e-2).all()


def test_a_noised_interest_does_not_see_what_it_comes_from(denoiser):
    interests, channels, x, t = draw()
    expected = predict(denoiser, interests, channels, x, t).numpy()
    interests[:, 2] += 1
    outputs = predict(denoiser, interests, channels, x, t).numpy()
    np.testing.assert_allclose(outputs[:, 2], expected[:, 2], atol=1e-6)
    assert (np.abs(outputs - expected)[:, [0, 1, 3]].max(axis=-1) > 1e-3).all()


def test_the_order_of_the_interests_does_not_matter(denoiser):
    inputs, order = draw(), [2, 0, 3, 1]
    outputs = predict(denoiser, *(tensor[:, order] for tensor in inputs))
    expected = predict(denoiser, *inputs).numpy()[:, order]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "seen"),
    [("full", (True, True)), ("W", (False, True)), ("X", (True, False)), ("Y", (False, False))],
)
def test_variants_see_what_guides_them(make, variant, seen):
    denoiser = make(**VARIANTS[variant])
    interests, channels, x, t = (tf.convert_to_tensor(tensor) for tensor in draw())
    with tf.GradientTape() as tape:
        tape.watch([interests, channels])
        outputs = predict(denoiser, interests, channels, x, t)
    gradients = tape.gradient(outputs, [interests, channels], unconnected_gradients="zero")
    for gradient, guides in zip(gradients, seen, strict=True):
        assert (gradient.numpy() != 0).any(axis=-1).all() == guides
        assert (gradient.numpy() != 0).any() == guides


def test_rows_do_not_see_each_other(denoiser):
    inputs = draw()
    alone = [predict(denoiser, *(x[row : row + 1] for x in inputs)) for row in range(ROWS)]
    np.testing.assert_allclose(predict(denoiser, *inputs), np.concatenate(alone), atol=1e-6)


def test_gradients_reach_every_weight(denoiser):
    with tf.GradientTape() as tape:
        outputs = predict(denoiser, *draw())
    gradients = tape.gradient(outputs, denoiser.trainable_variables)
    for gradient, weight in zip(gradients, denoiser.trainable_variables, strict=True):
        assert (np.abs(gradient) > 1e-4).any(), weight.path
    assert len(gradients) == 2 * (2 + 2 * 10 + 1)  # kernel and bias, gamma and beta


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_any_interests_have_finite_predictions_and_gradients(denoiser, scale):
    interests, channels, x, t = draw()
    tensors = [tf.convert_to_tensor(scale * tensor) for tensor in (interests, channels, x)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = predict(denoiser, *tensors, t)
    for tensor in (outputs, *tape.gradient(outputs, tensors)):
        assert np.isfinite(tensor).all()


# === Arguments ===


def test_config():
    arguments = {
        "num_blocks": 3,
        "num_heads": 4,
        "ffn_factor": 2,
        "context_guidance": False,
        "channel_guidance": False,
    }
    denoiser = GuidedDenoiser(**arguments, name="theta")
    config = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(denoiser)
    ).get_config()
    assert config.items() >= {**arguments, "name": "theta"}.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "`num_blocks` must be a positive integer. Received: num_blocks=0"),
        ({"num_heads": 1.5}, "`num_heads` must be a positive integer. Received: num_heads=1.5"),
        ({"ffn_factor": -1}, "`ffn_factor` must be a positive integer. Received: ffn_factor=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GuidedDenoiser(**arguments)


def test_heads_that_do_not_divide_the_width():
    message = "`num_heads` must divide the width of an interest, 8. Received: num_heads=3"
    with pytest.raises(ValueError, match=message):
        GuidedDenoiser(num_heads=3).build(8)
