import keras
import literal
import numpy as np
import pytest
import tensorflow as tf
from differences import assert_gradients_are_differences
from inference import (
    assert_inference_is_fixed,
    assert_rows_are_independent,
    assert_xla_equals_eager,
)

from tfrec_diffusion.diffusion import DiffusionGenerator

BATCH, CANDIDATES, CHANNELS, DIM, STEPS = 2, 3, 4, 8, 3
VARIANTS = {
    "full": {},
    "W": {"context_guidance": False},
    "X": {"channel_guidance": False},
    "Y": {"context_guidance": False, "channel_guidance": False},
    "Z": {"start": "gaussian"},
}
SAMPLERS = {
    "as the paper": {"start": "uniform"},
    "posterior": {"start": "uniform", "sigma": "posterior"},
    "matched": {"start": "matched"},
    "strided": {"spacing": "strided", "start_step": 400, "start": "uniform"},
    "strided, posterior": {"spacing": "strided", "start_step": 400, "sigma": "posterior"},
    "strided, matched": {"spacing": "strided", "start_step": 400, "start": "matched"},
    "ddim": {"sampler": "ddim"},
    "ddim, strided": {"sampler": "ddim", "spacing": "strided", "start_step": 400},
    "ddim, strided, gaussian": {
        "sampler": "ddim",
        "spacing": "strided",
        "start_step": 400,
        "start": "gaussian",
    },
}


@pytest.fixture
def make(randomize):
    def make(num_steps=STEPS, dim=DIM, **arguments):
        generator = DiffusionGenerator(num_steps, **arguments)
        generator.build((None, None, CHANNELS, dim))
        return randomize(generator)

    return make


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    interests, channels = rng.normal(size=(2, BATCH, CANDIDATES, CHANNELS, DIM)).astype("f")
    return interests, channels, np.array([[True, True, False], [True, False, False]])


def draw(rows=3, c=CHANNELS, dim=DIM, num_steps=STEPS):
    """Rows of interests and channels; a step and noise for each phase."""
    rng = np.random.default_rng(0)
    r, o = rng.normal(size=(2, rows, c, dim)).astype("f")
    t = rng.integers(1, 1001, (rows, c), dtype=np.int32)
    noise = rng.normal(size=(num_steps + 1, rows, c, dim)).astype("f")
    return r, o, t, noise


def assert_equals_the_literal_algorithms(generator, r, o, t, noise):
    condition = generator.denoiser.condition(r, o)
    error = generator.denoising_error(r, condition, t, noise[0])
    augmented = generator.generate(r, condition, t, noise)
    expected = literal.denoising_error(generator, r, o, t, noise[0])
    np.testing.assert_allclose(error, expected, rtol=1e-5, atol=1e-5)
    expected = literal.generate(generator, r, o, t, noise)
    np.testing.assert_allclose(augmented, expected, rtol=1e-5, atol=1e-5)


# === Algorithms 1 and 2 ===


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_equal_the_literal_algorithms(make, variant):
    generator = make(**{"start": "uniform", **VARIANTS[variant]})
    assert_equals_the_literal_algorithms(generator, *draw())


def test_one_interest_equals_the_literal_algorithms(make):
    assert_equals_the_literal_algorithms(make(start="uniform"), *draw(c=1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_equal_the_literal_algorithms(make, sampler):
    assert_equals_the_literal_algorithms(make(**SAMPLERS[sampler]), *draw())


# === Gradients ===


def test_gradients_equal_differences_of_the_literal_algorithm(make):
    """By interests, channels and all weights, through all steps."""
    r, o, t, noise = draw(rows=1, c=2, dim=4)
    generator = make(dim=4, spacing="strided", start_step=100)
    probe = np.random.default_rng(2).normal(size=r.shape)

    r_variable, o_variable = tf.Variable(r), tf.Variable(o)
    variables = [r_variable, o_variable, *(w.value for w in generator.trainable_variables)]
    with tf.GradientTape() as tape:
        condition = generator.denoiser.condition(r_variable, o_variable)
        augmented = generator.generate(r_variable, condition, t, noise)
        loss = tf.reduce_sum(augmented * probe.astype("f"))
    gradients = tape.gradient(loss, variables)

    def literal_loss():
        interests, channels = r_variable.numpy(), o_variable.numpy()
        return np.sum(literal.generate(generator, interests, channels, t, noise) * probe)

    assert_gradients_are_differences(variables, gradients, literal_loss)


def test_xla_equals_eager(make, inputs):
    assert_xla_equals_eager(make(2, num_blocks=1), *inputs, open_axes=2)


def test_what_the_loss_reaches(make, inputs):
    """All weights, and the interests and channels of real candidates alone."""
    generator, (*tensors, mask) = make(), map(tf.convert_to_tensor, inputs)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        generator(*tensors, mask, training=True)
        (loss,) = generator.losses
    by_inputs, by_weights = tape.gradient(loss, [tensors, generator.trainable_variables])
    for gradient in by_inputs:
        reached = (gradient.numpy() != 0).any(axis=-1)
        np.testing.assert_array_equal(reached, np.repeat(mask[..., None], CHANNELS, axis=-1))
    for weight, gradient in zip(generator.trainable_variables, by_weights, strict=True):
        assert (gradient.numpy() != 0).any(), weight.path


@pytest.mark.parametrize("normalize_interests", [False, True])
def test_empty_interests_have_finite_values_and_gradients(make, inputs, normalize_interests):
    _, channels, mask = inputs
    interests = tf.zeros_like(channels)
    generator = make(normalize_interests=normalize_interests)
    with tf.GradientTape() as tape:
        tape.watch(interests)
        outputs = generator(interests, channels, mask, training=True)
        total = tf.add_n(generator.losses) + tf.reduce_sum(outputs**2)
    gradients = tape.gradient(total, [interests, *generator.trainable_variables])
    for tensor in (outputs, total, *gradients):
        assert np.isfinite(tensor).all()


# === Inference ===


def test_inference_is_fixed_and_rows_are_independent(make, inputs):
    generator = make()
    assert_inference_is_fixed(generator, *inputs)
    assert generator.loss_tracker.result() == 0
    rows = [x.reshape(BATCH * CANDIDATES, 1, *x.shape[2:]) for x in inputs]
    assert_rows_are_independent(generator, *rows)
    of_requests = tf.reshape(generator(*inputs), rows[0].shape)
    np.testing.assert_allclose(of_requests, generator(*rows), rtol=1e-5, atol=1e-6)


def test_the_noise_of_inference_never_changes(make, inputs):
    """Or the scores of saved models would. Each interest has its own noise."""
    generator = make(start="uniform", normalize_interests=False)
    rng = np.random.default_rng(2025)
    t = rng.integers(1, 1001, (1, CHANNELS))
    noise = tf.constant(rng.standard_normal((STEPS + 1, 1, CHANNELS, DIM), "float32"))
    interests, channels = (x.reshape(-1, CHANNELS, DIM) for x in inputs[:2])
    condition = generator.denoiser.condition(interests, channels)
    expected = generator.generate(interests, condition, t, noise)
    outputs = generator(*inputs)
    np.testing.assert_array_equal(outputs, tf.reshape(expected, outputs.shape))


@pytest.mark.parametrize("training", [False, True])
def test_normalized_interests_are_diffused_at_length_1(make, inputs, training):
    interests, *rest = inputs
    generator, plain = make(normalize_interests=True), make(normalize_interests=False)
    for layer in (generator, plain):
        layer.seed_generator.state.assign([1, 2])
    length = np.linalg.norm(interests, axis=-1, keepdims=True)
    expected = plain(interests / length, *rest, training=training)
    outputs = generator(interests, *rest, training=training)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(generator.losses, plain.losses, rtol=1e-5)


# === Training ===


def test_noise_is_new_in_each_step_and_follows_the_seed(make, inputs):
    runs = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        generator = make()
        runs.append([generator(*inputs, training=True).numpy() for _ in range(2)])
    first, again, other = runs
    np.testing.assert_array_equal(first, again)
    for different in (first[1], other[0]):
        assert (np.abs(first[0] - different).max(axis=-1) > 1e-3).all()


def test_what_is_drawn_in_training(make, spy):
    """t uniform in 1..T and noise standard normal: new for each phase, row, interest and step."""
    generator = make(2, num_train_steps=4)
    optimization = spy(generator, "denoising_error")
    sampling = spy(generator, "generate")
    rows = np.zeros((500, 2, CHANNELS, DIM), "f")
    generator(rows, rows, np.ones((500, 2), bool), training=True)
    ((_, _, *optimization),), ((_, _, *sampling),) = optimization, sampling
    for t, noise in (optimization, sampling):
        values, counts = np.unique(t, return_counts=True)
        assert t.shape == (1000, CHANNELS)
        np.testing.assert_array_equal(values, [1, 2, 3, 4])
        np.testing.assert_allclose(counts / 4000, 0.25, atol=0.03)
        assert np.mean(noise) == pytest.approx(0, abs=0.02)
        assert np.var(noise) == pytest.approx(1, abs=0.02)
    assert sampling[1].shape == (3, 1000, CHANNELS, DIM)
    noise = np.concatenate([optimization[1][None], sampling[1]])
    np.testing.assert_allclose(np.corrcoef(noise.reshape(4, -1)), np.eye(4), atol=0.03)
    assert (optimization[0].numpy() == sampling[0].numpy()).mean() == pytest.approx(0.25, abs=0.03)


def test_call_is_both_algorithms_on_what_it_draws(make, inputs, spy):
    interests, channels, mask = inputs
    generator = make(weight=0.25, start="uniform", normalize_interests=False)
    optimization = spy(generator, "denoising_error")
    sampling = spy(generator, "generate")
    outputs = generator(*inputs, training=True)

    r, o = (x.reshape(-1, CHANNELS, DIM) for x in (interests, channels))
    t, noise = (tensor.numpy() for tensor in sampling[0][2:])
    expected = literal.generate(generator, r, o, t, noise).reshape(outputs.shape)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)

    t, noise = (tensor.numpy() for tensor in optimization[0][2:])
    error = literal.denoising_error(generator, r, o, t, noise)
    expected = error.reshape(BATCH, CANDIDATES, CHANNELS)[mask].mean()  # of real candidates
    np.testing.assert_allclose(generator.losses, [0.25 * expected], rtol=1e-5)
    np.testing.assert_allclose(generator.loss_tracker.result(), expected, rtol=1e-5)


def test_a_batch_of_padding_costs_nothing(make, inputs):
    generator = make()
    generator(*inputs[:2], np.zeros_like(inputs[2]), training=True)
    assert generator.losses == [0]


def test_float32_within_a_model_of_bfloat16(make, inputs):
    rounded = [tf.cast(x, "bfloat16") for x in inputs[:2]]
    expected = make()(*(tf.cast(x, "float32") for x in rounded), inputs[2])
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        outputs = make(dtype="float32")(*rounded, inputs[2])
    finally:
        keras.config.set_dtype_policy("float32")
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


# === Configuration ===


def test_symbolic_call_and_keras_file(make, inputs, tmp_path):
    parts = [keras.Input((None, CHANNELS, DIM)), keras.Input((None, CHANNELS, DIM))]
    parts.append(keras.Input((None,), dtype="bool"))
    generator = make()
    outputs = generator(*parts)
    assert outputs.shape == (None, None, CHANNELS, DIM)
    model = keras.Model(parts, outputs)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(list(inputs)), generator(*inputs))


def test_arguments_of_the_denoiser_reach_it():
    arguments = {"num_blocks": 1, "num_heads": 4}
    arguments |= {"context_guidance": False, "channel_guidance": False}
    denoiser = DiffusionGenerator(**arguments).denoiser
    assert {name: getattr(denoiser, name) for name in arguments} == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing": "even"}, "`spacing` must be one of ['consecutive', 'strided']. Received: spa"),
        ({"start": "zero"}, "`start` must be one of ['gaussian', 'matched', 'uniform']. Received"),
        ({"sampler": "sde"}, "`sampler` must be one of ['ddim', 'ddpm']. Received: sampler='sde'"),
        ({"sigma": 1}, "`sigma` must be one of ['beta', 'posterior']. Received: sigma=1"),
        ({"num_steps": 0}, "`num_steps` must be an integer in [1, 1000]. Received: num_steps=0"),
        ({"num_steps": 2.0}, "`num_steps` must be an integer in [1, 1000]. Received: num_steps=2"),
        (
            {"num_steps": 11, "num_train_steps": 10},
            "`num_steps` must be an integer in [1, 10]. Received: num_steps=11",
        ),
        (
            {"spacing": "strided"},
            '`start_step` must be an integer in [20, 1000] with spacing="strided". '
            "Received: start_step=None",
        ),
        ({"spacing": "strided", "start_step": 1001}, "in [20, 1000]"),
        ({"spacing": "strided", "start_step": 19}, "Received: start_step=19"),
        ({"weight": -1}, "`weight` must be >= 0. Received: weight=-1"),
        ({"num_blocks": 0}, "`num_blocks` must be a positive integer. Received: num_blocks=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        DiffusionGenerator(**arguments)
    assert message in str(error.value)


def test_heads_that_do_not_divide_the_width(make):
    with pytest.raises(ValueError, match="`num_heads` must divide the width of an interest, 8"):
        make(num_heads=3)
