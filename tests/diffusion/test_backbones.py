import keras
import literal_fusion
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.diffusion.backbones import MLPDenoiser, TransformerDenoiser

ROWS, CONDITIONS = 3, 2
BACKBONES = {
    "one hidden layer": MLPDenoiser((5,)),
    "three hidden layers": MLPDenoiser((5, 7, 4)),
    "one block": TransformerDenoiser(1),
    "three blocks": TransformerDenoiser(3, num_heads=3),
}
each_backbone = pytest.mark.parametrize("name", BACKBONES)


@pytest.fixture
def make(randomize):
    def make(name, dim=6):
        denoiser = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(BACKBONES[name])
        )
        denoiser.build(dim)
        return randomize(denoiser)

    return make


def draw(dim=6):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, ROWS, CONDITIONS, dim)).astype("f")
    return x, rng.integers(0, 1001, (ROWS, CONDITIONS)), y


def predict(denoiser, x, t, y):
    return denoiser(x, denoiser.embed_time(t), denoiser.condition(y))


def reference(denoiser, x, t, y):
    predictions = np.zeros(y.shape)
    for place in np.ndindex(ROWS, CONDITIONS):
        predictions[place] = literal_fusion.f_theta(denoiser, x[place], t[place], y[place])
    return predictions


@each_backbone
def test_equals_the_literal_denoiser(make, name):
    denoiser, inputs = make(name), draw()
    expected = reference(denoiser, *inputs)
    np.testing.assert_allclose(predict(denoiser, *inputs), expected, rtol=1e-5, atol=1e-5)


def test_an_odd_width(make):
    denoiser, inputs = make("three hidden layers", dim=5), draw(dim=5)
    expected = reference(denoiser, *inputs)
    np.testing.assert_allclose(predict(denoiser, *inputs), expected, rtol=1e-5, atol=1e-5)


@each_backbone
def test_conditions_share_x_and_the_step(make, name):
    denoiser, (x, t, y) = make(name), draw()
    x, t = x[:, :1], t[:, :1]
    expected = predict(denoiser, np.repeat(x, CONDITIONS, 1), np.repeat(t, CONDITIONS, 1), y)
    np.testing.assert_allclose(predict(denoiser, x, t, y), expected, rtol=1e-5, atol=1e-6)


@each_backbone
def test_a_prediction_sees_its_own_row_and_condition_only(make, name):
    denoiser, (x, t, y) = make(name), map(tf.convert_to_tensor, draw())
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        prediction = predict(denoiser, x, t, y)[1, 0]
    for gradient in tape.gradient(prediction, [x, y]):
        seen = np.zeros((ROWS, CONDITIONS), bool)
        seen[1, 0] = True
        np.testing.assert_array_equal((gradient.numpy() != 0).any(axis=-1), seen)


@each_backbone
def test_gradients_reach_every_weight(make, name):
    denoiser = make(name)
    with tf.GradientTape() as tape:
        outputs = predict(denoiser, *draw())
    for weight, gradient in zip(
        denoiser.trainable_variables,
        tape.gradient(outputs, denoiser.trainable_variables),
        strict=True,
    ):
        assert (np.abs(gradient) > 1e-4).any(), weight.path


@pytest.mark.parametrize(
    ("denoiser", "config"),
    [
        (MLPDenoiser((5, 7), name="theta"), {"units": (5, 7), "name": "theta"}),
        (TransformerDenoiser(3, num_heads=1), {"num_blocks": 3, "num_heads": 1}),
    ],
)
def test_config(denoiser, config):
    again = type(denoiser).from_config(denoiser.get_config())
    assert again.get_config().items() >= config.items()


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="`num_heads` must divide the width of an interest, 8"):
        TransformerDenoiser(num_heads=3).build(8)
