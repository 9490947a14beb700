"""The contract of the three denoisers, and each against its equations in numpy."""

import literal
import literal_fusion
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.diffusion import GuidedDenoiser, MLPDenoiser, TransformerDenoiser

ROWS, COUNT, DIM = 3, 2, 6  # COUNT: interests or conditions in a row

CONTRACT = {
    GuidedDenoiser: {},
    MLPDenoiser: {"units": (5, 7)},
    TransformerDenoiser: {"num_heads": 3},
}
each_denoiser = pytest.mark.parametrize("cls", CONTRACT, ids=lambda cls: cls.__name__)


@pytest.fixture
def make(randomize):
    def make(cls, dim=DIM, **arguments):
        denoiser = cls(**arguments)
        denoiser.build((None, None, dim))
        return randomize(denoiser)

    return make


@pytest.fixture
def make_from_contract(make):
    return lambda cls: make(cls, **CONTRACT[cls])


def draw(cls, count=COUNT, dim=DIM):
    """x_t, t and what guides the denoiser: interests and channels, or conditions."""
    rng = np.random.default_rng(0)
    x, *guides = rng.normal(size=(3 if cls is GuidedDenoiser else 2, ROWS, count, dim)).astype("f")
    return x, rng.integers(1, 1001, (ROWS, count)), guides


def predict(denoiser, x, t, guides):
    return denoiser(x, denoiser.embed_time(t), denoiser.condition(*guides))


# === The contract ===


@each_denoiser
def test_prediction_and_embedded_steps_have_the_shapes_of_x_and_of_the_steps(
    make_from_contract, cls
):
    denoiser, (x, t, guides) = make_from_contract(cls), draw(cls)
    prediction = predict(denoiser, x, t, guides)
    assert prediction.shape == x.shape and prediction.dtype == x.dtype
    flat, square = denoiser.embed_time(t.ravel()), denoiser.embed_time(t)
    assert flat.shape[:-1] == (ROWS * COUNT,) and square.shape[:-1] == (ROWS, COUNT)
    np.testing.assert_allclose(tf.reshape(square, flat.shape), flat, rtol=1e-5, atol=1e-6)


@each_denoiser
def test_what_is_made_once_serves_all_steps(make_from_contract, cls):
    denoiser, (x, _, guides) = make_from_contract(cls), draw(cls)
    timesteps = np.array([1000, 300, 1])
    condition, times = denoiser.condition(*guides), denoiser.embed_time(timesteps)
    for step, t in enumerate(timesteps):
        expected = predict(denoiser, x, np.full((ROWS, COUNT), t), guides)
        prediction = denoiser(x, times[step][None, None], condition)
        np.testing.assert_allclose(prediction, expected, rtol=1e-5, atol=1e-6)


@each_denoiser
def test_a_row_sees_no_other(make_from_contract, cls):
    denoiser, (x, t, guides) = make_from_contract(cls), draw(cls)
    tensors = [tf.convert_to_tensor(tensor) for tensor in (x, *guides)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        prediction = predict(denoiser, tensors[0], t, tensors[1:])[1]
    for gradient in tape.gradient(prediction, tensors):
        seen = (gradient.numpy() != 0).any(axis=(1, 2))
        np.testing.assert_array_equal(seen, [False, True, False])


@each_denoiser
def test_a_loop_of_steps_under_xla_with_open_rows(make_from_contract, cls):
    """Predictions and gradients are those of the loop in Python; no weight is left out."""
    denoiser, (x, _, guides) = make_from_contract(cls), draw(cls)
    timesteps = tf.constant([900, 100])

    def step(x, i, times, condition):
        return 0.5 * x + denoiser(x, times[i][None, None], condition)

    def python_loop(x, *made_once):
        return step(step(x, 0, *made_once), 1, *made_once)

    def graph_loop(x, *made_once):
        def body(i, x):
            return i + 1, step(x, i, *made_once)

        return tf.while_loop(lambda i, _: i < 2, body, (0, x), maximum_iterations=2)[1]

    def run(loop, x, *guides):
        with tf.GradientTape() as tape:
            tape.watch([x, *guides])
            x_0 = loop(x, denoiser.embed_time(timesteps), denoiser.condition(*guides))
            loss = tf.reduce_sum(x_0**2)
        return x_0, *tape.gradient(loss, [x, *guides, *denoiser.trainable_variables])

    inputs = [tf.convert_to_tensor(tensor) for tensor in (x, *guides)]
    signature = [tf.TensorSpec([None, COUNT, DIM])] * len(inputs)
    compiled = tf.function(
        lambda *inputs: run(graph_loop, *inputs), input_signature=signature, jit_compile=True
    )
    expected = run(python_loop, *inputs)
    for outputs, of_python in zip(compiled(*inputs), expected, strict=True):
        np.testing.assert_allclose(outputs, of_python, rtol=1e-3, atol=1e-3)
        assert np.abs(of_python).max() > 1e-3


def test_no_rows(make):
    x, t, guides = draw(GuidedDenoiser)
    empty = predict(make(GuidedDenoiser), x[:0], t[:0], [guide[:0] for guide in guides])
    assert empty.shape == (0, COUNT, DIM)


@pytest.mark.parametrize("cls", [GuidedDenoiser, TransformerDenoiser])
def test_heads_that_do_not_divide_the_width(cls):
    message = "`num_heads` must divide the width of an interest, 8. Received: num_heads=3"
    with pytest.raises(ValueError, match=message):
        cls(num_heads=3).build((None, None, 8))


# === GuidedDenoiser ===

VARIANTS = {
    "full": {},
    "W": {"context_guidance": False},
    "X": {"channel_guidance": False},
    "Y": {"context_guidance": False, "channel_guidance": False},
}


def assert_equals_the_literal_denoiser(denoiser, **sizes):
    x, t, (interests, channels) = draw(GuidedDenoiser, **sizes)
    expected = np.zeros(x.shape)
    for row, i in np.ndindex(*t.shape):
        expected[row, i] = literal.epsilon_theta(
            denoiser, x[row, i], t[row, i], interests[row], channels[row], i
        )
    prediction = predict(denoiser, x, t, (interests, channels))
    np.testing.assert_allclose(prediction, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_guided_denoiser_equals_the_literal_one(make, variant, num_blocks):
    denoiser = make(GuidedDenoiser, num_blocks=num_blocks, **VARIANTS[variant])
    for count in (1, 4):
        assert_equals_the_literal_denoiser(denoiser, count=count)


@pytest.mark.parametrize(("dim", "num_heads", "ffn_factor"), [(8, 4, 2), (5, 1, 4)])
def test_guided_denoiser_of_other_sizes(make, dim, num_heads, ffn_factor):
    denoiser = make(GuidedDenoiser, dim, num_heads=num_heads, ffn_factor=ffn_factor)
    assert_equals_the_literal_denoiser(denoiser, dim=dim)


def test_time_embedding_by_hand():
    denoiser = GuidedDenoiser()
    denoiser.build((None, None, 4))
    for layer in denoiser.time_layers:
        layer.kernel.assign(np.eye(4))
    x = np.array([[np.sin(30), np.sin(0.3), np.cos(30), np.cos(0.3)]])
    np.testing.assert_allclose(denoiser.embed_time([30]), x / (1 + np.exp(-x)), rtol=1e-5)


def test_a_noised_interest_sees_the_others_without_noise_and_not_what_it_comes_from(make):
    denoiser, (x, t, guides) = make(GuidedDenoiser), draw(GuidedDenoiser, count=4)
    x, interests, channels = (tf.convert_to_tensor(tensor) for tensor in (x, *guides))
    with tf.GradientTape() as tape:
        tape.watch([x, interests, channels])
        prediction = predict(denoiser, x, t, (interests, channels))[:, 2]
    gradients = tape.gradient(prediction, [x, interests, channels])
    itself = np.arange(4) == 2
    for gradient, seen in zip(gradients, (itself, ~itself, itself), strict=True):
        sees = (gradient.numpy() != 0).any(axis=-1)
        np.testing.assert_array_equal(sees, np.broadcast_to(seen, sees.shape))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_any_interests_have_finite_predictions_and_gradients(make, scale):
    denoiser, (x, t, guides) = make(GuidedDenoiser), draw(GuidedDenoiser)
    tensors = [tf.convert_to_tensor(scale * tensor) for tensor in (x, *guides)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        prediction = predict(denoiser, tensors[0], t, tensors[1:])
    for tensor in (prediction, *tape.gradient(prediction, tensors)):
        assert np.isfinite(tensor).all()


@pytest.mark.parametrize("wrong", [{"num_blocks": 0}, {"num_heads": 1.5}, {"ffn_factor": -1}])
def test_wrong_arguments(wrong):
    ((name, value),) = wrong.items()
    message = f"`{name}` must be a positive integer. Received: {name}={value}"
    with pytest.raises(ValueError, match=message):
        GuidedDenoiser(**wrong)


# === MLPDenoiser and TransformerDenoiser ===

SIZES = {
    "one hidden layer": (MLPDenoiser, {"units": (5,)}, DIM),
    "three hidden layers": (MLPDenoiser, {"units": (5, 7, 4)}, DIM),
    "an odd width": (MLPDenoiser, {"units": (5, 7)}, 5),
    "one block": (TransformerDenoiser, {"num_blocks": 1}, DIM),
    "three blocks": (TransformerDenoiser, {"num_blocks": 3, "num_heads": 3}, DIM),
}


@pytest.mark.parametrize("name", SIZES)
def test_hierdiffuse_s_denoisers_equal_the_literal_ones(make, name):
    cls, arguments, dim = SIZES[name]
    denoiser, (x, t, (y,)) = make(cls, dim, **arguments), draw(cls, dim=dim)
    expected = np.zeros(y.shape)
    for place in np.ndindex(ROWS, COUNT):
        expected[place] = literal_fusion.f_theta(denoiser, x[place], t[place], y[place])
    np.testing.assert_allclose(predict(denoiser, x, t, (y,)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [MLPDenoiser, TransformerDenoiser])
def test_conditions_may_share_x_and_the_step(make_from_contract, cls):
    denoiser, (x, t, guides) = make_from_contract(cls), draw(cls)
    x, t = x[:, :1], t[:, :1]
    expected = predict(denoiser, np.repeat(x, COUNT, 1), np.repeat(t, COUNT, 1), guides)
    np.testing.assert_allclose(predict(denoiser, x, t, guides), expected, rtol=1e-5, atol=1e-6)
