import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers import variational
from tfrec_diffusion.layers.variational import VariationalGenerator

BATCH, CANDIDATES, CHANNELS, DIM = 4, 3, 3, 5


def two_layers(mlp, dense, x):
    hidden = np.maximum(x @ mlp.kernel.numpy() + mlp.bias.numpy(), 0)
    return hidden @ dense.kernel.numpy() + dense.bias.numpy()


def encode(layer, interests, channels):
    """Mean and log variance, channel by channel."""
    moments = []
    for i in range(interests.shape[2]):
        rest = [interests[:, :, k] for k in range(interests.shape[2]) if k != i]
        others = np.mean(rest, axis=0) if rest else np.zeros_like(interests[:, :, i])
        x = np.concatenate([interests[:, :, i], others, channels[:, :, i]], axis=-1)
        moments.append(two_layers(layer.encoder, layer.moments, x))
    return np.split(np.stack(moments, axis=2), 2, axis=-1)


def decode(layer, z, channels):
    x = np.concatenate([z, channels], axis=-1)
    return two_layers(layer.decoder, layer.reconstruction, x)


def objective(interests, augmented, mean, log_variance, candidate_mask):
    losses = []
    for b, n in np.argwhere(candidate_mask):
        for i in range(interests.shape[2]):
            error = np.mean((augmented[b, n, i] - interests[b, n, i]) ** 2)
            m, s = mean[b, n, i], np.exp(log_variance[b, n, i] / 2)
            losses.append(error + np.mean((m**2 + s**2 - 1) / 2 - np.log(s)))
    return np.mean(losses)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    interests, channels = rng.normal(size=(2, BATCH, CANDIDATES, CHANNELS, DIM)).astype("f")
    candidate_mask = np.arange(CANDIDATES) < np.array([3, 1, 0, 2])[:, None]
    return interests, channels, candidate_mask


@pytest.fixture
def make(inputs):
    def make(shape=inputs[0].shape, **arguments):
        layer = VariationalGenerator(**arguments)
        layer.build(shape, shape)
        for weight in layer.trainable_weights:
            weight.assign(np.random.default_rng(1).normal(size=weight.shape, scale=0.3))
        return layer

    return make


def test_inference_decodes_the_mean(make, inputs):
    interests, channels, _ = inputs
    layer = make(latent_dim=7)
    outputs = layer(*inputs)
    mean, _ = encode(layer, interests, channels)
    assert mean.shape == (BATCH, CANDIDATES, CHANNELS, 7)
    np.testing.assert_allclose(outputs, decode(layer, mean, channels), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer(*inputs), outputs)
    assert layer.losses == []


@pytest.mark.parametrize("latent_dim", [None, 7])
def test_training_decodes_a_sample_and_adds_its_loss(make, inputs, latent_dim, monkeypatch):
    interests, channels, candidate_mask = inputs
    layer = make(latent_dim=latent_dim, weight=0.25)
    mean, log_variance = encode(layer, interests, channels)
    noise = np.random.default_rng(2).normal(size=mean.shape).astype("f")
    monkeypatch.setattr(variational, "normal", lambda shape, _: noise.reshape(shape))
    outputs = layer(*inputs, training=True)

    augmented = decode(layer, mean + np.exp(log_variance / 2) * noise, channels)
    np.testing.assert_allclose(outputs, augmented, rtol=1e-4, atol=1e-5)
    expected = objective(interests, augmented, mean, log_variance, candidate_mask)
    np.testing.assert_allclose(layer.losses, [0.25 * expected], rtol=1e-5)
    np.testing.assert_allclose(layer.loss_tracker.result(), expected, rtol=1e-5)


def test_noise_is_new_in_each_step(make, inputs):
    layer = make()
    first, second = (layer(*inputs, training=True).numpy() for _ in range(2))
    assert (np.abs(first - second).max(axis=-1) > 1e-3).all()


def test_one_channel_has_no_others(make, inputs):
    interests, channels, candidate_mask = inputs
    interests, channels = interests[:, :, :1], channels[:, :, :1]
    layer = make(interests.shape)
    mean, _ = encode(layer, interests, channels)
    outputs = layer(interests, channels, candidate_mask)
    np.testing.assert_allclose(outputs, decode(layer, mean, channels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "jit_compile"), [("float32", False), ("mixed_bfloat16", True)])
def test_traced_with_open_shapes(make, inputs, dtype, jit_compile):
    layer = make(dtype=dtype)
    interests = tf.TensorSpec([None, None, CHANNELS, DIM])
    signature = [interests, interests, tf.TensorSpec([None, None], "bool")]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def step(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs[:2])
            outputs = layer(*inputs, training=True)
            (loss,) = layer.losses
        return outputs, loss, tape.gradient(loss, [*inputs[:2], *layer.trainable_variables])

    outputs, loss, gradients = step(*inputs)
    assert outputs.dtype == layer.compute_dtype and loss.dtype == tf.float32
    assert layer.loss_tracker.result() > 0
    assert all(np.isfinite(tf.cast(gradient, "float32")).all() for gradient in gradients)
    real = inputs[2]
    for gradient in gradients[:2]:
        assert (gradient.numpy()[~real] == 0).all() and (gradient.numpy()[real] != 0).all()


def test_padding_changes_no_loss(make, inputs):
    interests, channels, candidate_mask = inputs
    layer = make()
    losses = []
    for padding in (0, 5):
        layer.seed_generator.state.assign([1, 2])
        other = np.where(candidate_mask[..., None, None], interests, np.float32(padding))
        layer(other, channels, candidate_mask, training=True)
        losses.append(layer.losses[-1])
    assert losses[0] == losses[1] > 0


def test_a_batch_of_padding_costs_nothing(make, inputs):
    layer = make()
    layer(*inputs[:2], np.zeros_like(inputs[2]), training=True)
    assert layer.losses == [0]


def test_interests_are_the_target_without_gradient(make, inputs):
    """With the encoder cut off, no gradient is left."""
    layer = make()
    for weight in layer.encoder.trainable_weights:
        weight.assign(tf.zeros_like(weight))
    interests = tf.convert_to_tensor(inputs[0])
    with tf.GradientTape() as tape:
        tape.watch(interests)
        layer(interests, *inputs[1:], training=True)
        loss = layer.losses[0]
    assert not np.any(tape.gradient(loss, interests))


def test_symbolic_shape():
    interests = keras.Input((None, CHANNELS, DIM))
    layer = VariationalGenerator(latent_dim=3)
    outputs = layer(interests, interests, keras.Input((None,), dtype="bool"))
    assert outputs.shape == (None, None, CHANNELS, DIM)


def test_keras_file_keeps_the_weights(tmp_path, inputs):
    parts = [keras.Input(shape) for shape in ((None, CHANNELS, DIM), (None, CHANNELS, DIM))]
    parts.append(keras.Input((None,), dtype="bool"))
    model = keras.Model(parts, VariationalGenerator(latent_dim=3)(*parts))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(list(inputs)), model(list(inputs)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "`latent_dim` must be a positive integer. Received: "),
        ({"weight": -1}, "`weight` must be >= 0. Received: weight=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VariationalGenerator(**arguments)
