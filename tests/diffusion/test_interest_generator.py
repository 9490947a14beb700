import functools

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

from tfrec_diffusion.diffusion import DiffusionGenerator, interest_generator
from tfrec_diffusion.layers.noise import fixed_normal

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
    "tcc": {"sampler": "tcc"},
    "tcc, from 400": {"sampler": "tcc", "start_step": 400},
}
each_loss = pytest.mark.parametrize("sampler", ["ddpm", "tcc"])


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


@pytest.mark.parametrize("arguments", [{"num_steps": 2}, {"num_steps": 1, "sampler": "tcc"}])
def test_xla_equals_eager(make, inputs, arguments):
    assert_xla_equals_eager(make(num_blocks=1, **arguments), *inputs, open_axes=2)


@each_loss
def test_what_the_loss_reaches(make, inputs, sampler):
    """All weights, and the interests and channels of real candidates alone."""
    generator, (*tensors, mask) = make(sampler=sampler), map(tf.convert_to_tensor, inputs)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        generator(*tensors, mask, training=True)
        loss = tf.add_n(generator.losses)
    by_inputs, by_weights = tape.gradient(loss, [tensors, generator.trainable_variables])
    for gradient in by_inputs:
        reached = (gradient.numpy() != 0).any(axis=-1)
        np.testing.assert_array_equal(reached, np.repeat(mask[..., None], CHANNELS, axis=-1))
    for weight, gradient in zip(generator.trainable_variables, by_weights, strict=True):
        assert (gradient.numpy() != 0).any(), weight.path


@pytest.mark.parametrize("normalize_interests", [False, True, "proportional"])
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


@each_loss
def test_inference_is_fixed_and_rows_are_independent(make, inputs, sampler):
    generator = make(sampler=sampler)
    assert_inference_is_fixed(generator, *inputs)
    assert generator.loss_tracker.result() == 0
    rows = [x.reshape(BATCH * CANDIDATES, 1, *x.shape[2:]) for x in inputs]
    assert_rows_are_independent(generator, *rows)
    of_requests = tf.reshape(generator(*inputs), rows[0].shape)
    np.testing.assert_allclose(of_requests, generator(*rows), rtol=1e-5, atol=1e-6)


def test_the_noise_of_inference_never_changes(make, inputs):
    """Or the scores of saved models would. Each interest has its own noise."""
    generator = make(start="uniform", normalize_interests=False)
    (expected,) = generated(generator, inputs, noise_of_inference(1))
    np.testing.assert_array_equal(generator(*inputs), expected)


def noise_of_inference(draws):
    rng = np.random.default_rng(2025)
    for _ in range(draws):
        t = rng.integers(1, 1001, (1, CHANNELS))
        yield t, tf.constant(rng.standard_normal((STEPS + 1, 1, CHANNELS, DIM), "float32"))


def generated(generator, inputs, draws):
    """What the generator makes of the inputs with each draw of a step and of noise."""
    interests, channels = (x.reshape(-1, CHANNELS, DIM) for x in inputs[:2])
    condition = generator.denoiser.condition(interests, channels)
    augmented = [generator.generate(interests, condition, *draw) for draw in draws]
    return [tf.reshape(x, inputs[0].shape) for x in augmented]


def test_the_mean_of_several_draws(make, inputs, spy):
    """At inference only. The first draw is that of a single one."""
    generator = make(start="uniform", normalize_interests=False, inference_draws=3)
    expected = np.mean(generated(generator, inputs, noise_of_inference(3)), axis=0)
    np.testing.assert_allclose(generator(*inputs), expected, rtol=1e-5, atol=1e-6)
    assert_inference_is_fixed(generator, *inputs)
    calls = spy(generator, "generate")
    generator(*inputs, training=True)
    assert len(calls) == 1


def test_no_draw_is_no_noise(make, inputs, spy):
    """At inference only."""
    generator = make(normalize_interests=False, inference_draws=0)
    ((t, noise),) = noise_of_inference(1)
    (expected,) = generated(generator, inputs, [(t, 0 * noise)])
    np.testing.assert_array_equal(generator(*inputs), expected)
    calls = spy(generator, "generate")
    generator(*inputs, training=True)
    assert (calls[0][3].numpy() != 0).all()


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


@pytest.mark.parametrize("training", [False, True])
def test_noise_in_proportion_to_the_interests(make, inputs, training):
    interests, *rest = inputs
    generator, plain = make(normalize_interests="proportional"), make(normalize_interests=False)
    for layer in (generator, plain):
        layer.seed_generator.state.assign([1, 2])
    scale = np.sqrt(np.mean(interests**2, axis=-1, keepdims=True))
    expected = scale * plain(interests / scale, *rest, training=training)
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


@each_loss
def test_a_batch_of_padding_costs_nothing(make, inputs, sampler):
    generator = make(sampler=sampler)
    generator(*inputs[:2], np.zeros_like(inputs[2]), training=True)
    assert all(loss == 0 for loss in generator.losses)


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


# === One evaluation in the place of many: sampler "tcc" ===


def make_tcc(make, num_steps=1, **arguments):
    return make(num_steps, sampler="tcc", **arguments)


def draw_earlier(generator):
    """Rows of interests and channels, t, t - delta and noise of eq. 8; one delta is t."""
    r, o, _, noise = draw()
    rng = np.random.default_rng(3)
    t = rng.integers(1, generator.start_step + 1, r.shape[:2], dtype=np.int32)
    earlier = rng.integers(0, t, dtype=np.int32)
    earlier[0, 0] = 0
    return r, o, t, earlier, noise[0]


def teacher_errors(generator, make, r, o, t, noise):
    """The teacher's f(x_t, t) - x_0, from a denoiser that has its weights as its own."""
    denoiser = make().denoiser
    for weight, average in zip(denoiser.weights, generator.teacher.averages, strict=True):
        weight.assign(average)
    return literal.x_0_errors(generator, denoiser, r, o, t, noise)


def teacher_values(generator):
    return [average.numpy() for average in generator.teacher.averages]


def test_the_number_of_evaluations_by_default():
    generator = DiffusionGenerator(sampler="tcc")
    assert (generator.num_steps, generator.start_step) == (1, 20)
    assert DiffusionGenerator().num_steps == 20


@pytest.mark.parametrize(("training", "evaluations"), [(False, 1), (True, 3)])
def test_the_denoiser_is_evaluated_once(make, inputs, spy, training, evaluations):
    """In training it is also evaluated for both terms of the loss."""
    generator = make_tcc(make)
    calls = spy(generator.denoiser, "call")
    generator(*inputs, training=training)
    assert len(calls) == evaluations


def test_one_evaluation_is_one_strided_step_of_ddim(make, inputs):
    ddim = make(1, sampler="ddim", spacing="strided", start_step=20)
    np.testing.assert_allclose(make_tcc(make)(*inputs), ddim(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", [{}, {"start_step": 400}, {"context_guidance": False}])
def test_errors_equal_equation_8(make, arguments):
    generator = make_tcc(make, **arguments)
    r, o, t, earlier, noise = draw_earlier(generator)
    condition = generator.denoiser.condition(r, o)
    errors = generator.convergence_errors(r, o, condition, t, earlier, noise)
    make_same = functools.partial(make, **arguments)
    of_teacher = teacher_errors(generator, make_same, r, o, earlier, noise)
    expected = literal.convergence_errors(generator, r, o, t, noise, of_teacher)
    for error, term in zip(errors, expected, strict=True):
        np.testing.assert_allclose(error, term, rtol=1e-4, atol=1e-5)
        assert (term > 0.01).all()
    np.testing.assert_allclose(errors[1][0, 0], errors[0][0, 0], rtol=1e-5)  # delta = t
    # The first term is eq. 18.
    np.testing.assert_allclose(
        errors[0], generator.denoising_error(r, condition, t, noise), rtol=1e-5
    )


@pytest.mark.parametrize("term", [0, 1], ids=["reconstruction", "trajectory"])
def test_gradients_of_equation_8_equal_differences(make, term):
    """By interests, channels and all weights, the teacher's error held where it is."""
    r, o, t, noise = draw(rows=2, c=2, dim=4)
    generator, noise = make_tcc(make, dim=4, start_step=400), noise[0]
    t, earlier = np.array([[400, 30], [5, 200]]), np.array([[100, 20], [0, 150]])
    r_variable, o_variable = tf.Variable(r), tf.Variable(o)
    variables = [r_variable, o_variable, *(w.value for w in generator.trainable_variables)]
    with tf.GradientTape() as tape:
        condition = generator.denoiser.condition(r_variable, o_variable)
        errors = generator.convergence_errors(r_variable, o_variable, condition, t, earlier, noise)
        loss = tf.reduce_sum(errors[term])
    of_teacher = teacher_errors(generator, functools.partial(make, dim=4), r, o, earlier, noise)

    def literal_loss():
        interests, channels = r_variable.numpy(), o_variable.numpy()
        terms = literal.convergence_errors(generator, interests, channels, t, noise, of_teacher)
        return np.sum(terms[term])

    assert_gradients_are_differences(variables, tape.gradient(loss, variables), literal_loss)


def test_losses_are_what_is_drawn_put_into_equation_8(make, inputs, spy):
    interests, channels, mask = inputs
    generator = make_tcc(make, weight=0.5, trajectory_weight=0.4, normalize_interests=False)
    calls = spy(generator, "convergence_errors")
    generator(*inputs, training=True)
    r, o = (x.reshape(-1, CHANNELS, DIM) for x in (interests, channels))
    t, earlier, noise = (tensor.numpy() for tensor in calls[0][3:])
    of_teacher = teacher_errors(generator, make, r, o, earlier, noise)
    terms = literal.convergence_errors(generator, r, o, t, noise, of_teacher)
    first, second = (term.reshape((*mask.shape, CHANNELS))[mask].mean() for term in terms)
    np.testing.assert_allclose(generator.losses, [0.5 * first, 0.2 * second], rtol=1e-4)
    trackers = generator.loss_tracker.result(), generator.trajectory_tracker.result()
    np.testing.assert_allclose(trackers, [first, second], rtol=1e-4)


def test_what_the_losses_draw(make, spy):
    """t uniform in 1..t_0, t - delta uniform in 0..t - 1, and noise of its own for sampling."""
    generator = make_tcc(make, start_step=4)
    calls, sampling = spy(generator, "convergence_errors"), spy(generator, "generate")
    rows = np.zeros((1000, 2, CHANNELS, DIM), "f")
    generator(rows, rows, np.ones((1000, 2), bool), training=True)
    t, earlier, noise = (tensor.numpy() for tensor in calls[0][3:])
    for step in range(1, 5):
        assert (t == step).mean() == pytest.approx(0.25, abs=0.03)
        values, counts = np.unique(earlier[t == step], return_counts=True)
        np.testing.assert_array_equal(values, range(step))
        np.testing.assert_allclose(counts / counts.sum(), 1 / step, atol=0.04)
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.var() == pytest.approx(1, abs=0.02)
    both = np.stack([noise, sampling[0][3].numpy()[0]]).reshape(2, -1)
    assert np.corrcoef(both)[0, 1] == pytest.approx(0, abs=0.02)


# === Its teacher ===


def test_the_teacher_starts_as_the_denoiser_and_follows_it(inputs):
    """By 1 - decay of the way in each step of training. At inference it stays."""
    generator = DiffusionGenerator(sampler="tcc", teacher_decay=0.75)
    generator.build((None, None, CHANNELS, DIM))
    start = generator.denoiser.get_weights()
    for average, value in zip(teacher_values(generator), start, strict=True):
        np.testing.assert_array_equal(average, value)
    for weight in generator.denoiser.weights:
        weight.assign_add(tf.ones(weight.shape))
    for moved in (0.25, 0.4375):
        generator(*inputs, training=True)
        generator(*inputs)
        for average, value in zip(teacher_values(generator), start, strict=True):
            np.testing.assert_allclose(average, value + moved, rtol=1e-5, atol=1e-6)


def test_the_teacher_is_not_trained(make, inputs):
    generator = make_tcc(make)
    generator.trainable = True  # as Keras sets it for all layers of a model
    averages = [average.value for average in generator.teacher.averages]
    with tf.GradientTape() as tape:
        outputs = generator(*inputs, training=True)
        total = tf.add_n(generator.losses) + tf.reduce_sum(outputs**2)
    assert tape.gradient(total, averages) == [None] * len(averages)
    trained = {id(weight) for weight in generator.trainable_variables}
    assert trained == {id(weight) for weight in generator.denoiser.weights}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_training_equals_eager(make, inputs, jit_compile, monkeypatch):
    """Losses, gradients, and the teacher that each step leaves."""
    # XLA would draw other numbers.
    monkeypatch.setattr(interest_generator, "randint", lambda shape, *_: tf.fill(shape, 20))
    monkeypatch.setattr(interest_generator, "uniform", lambda shape, _: tf.fill(shape, 0.3))
    monkeypatch.setattr(interest_generator, "normal", lambda shape, _: fixed_normal(shape))

    def train(compiled):
        keras.utils.set_random_seed(0)  # the teacher starts with the initial weights
        generator = make_tcc(make, num_blocks=1)

        def step(*inputs):
            with tf.GradientTape() as tape:
                outputs = generator(*inputs, training=True)
                losses = generator.losses
                total = tf.add_n(losses) + tf.reduce_sum(outputs**2)
            return losses, tape.gradient(total, generator.trainable_variables)

        step = tf.function(step, jit_compile=jit_compile) if compiled else step
        results = [tf.nest.flatten(step(*inputs)) for _ in range(2)]
        return [*results[0], *results[1], *generator.teacher.averages]

    for compiled, eager in zip(train(True), train(False), strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-3, atol=1e-3)


def test_the_teacher_of_a_replica(make, inputs):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        generator = make_tcc(make, teacher_decay=0.5)
    before = teacher_values(generator)
    strategy.run(tf.function(lambda *inputs: generator(*inputs, training=True)), inputs)
    weights = generator.denoiser.get_weights()
    for average, old, new in zip(teacher_values(generator), before, weights, strict=True):
        np.testing.assert_allclose(average, (old + new) / 2, rtol=1e-5, atol=1e-6)


def test_only_this_sampler_has_a_teacher():
    """Files of other models keep their weights, and layers behind it their initial ones."""
    behind = []
    for sampler in ("ddpm", "ddim", "tcc"):
        keras.utils.set_random_seed(0)
        generator, dense = DiffusionGenerator(sampler=sampler), keras.layers.Dense(3)
        generator.build((None, None, CHANNELS, DIM))
        dense.build((None, 4))
        behind.append(dense.kernel.numpy())
        expected = [weight.path for weight in generator.denoiser.weights]
        paths = [weight.path for weight in generator.weights]
        assert paths[: len(expected)] == expected
        assert len(paths) == len(expected) * (1 + (sampler == "tcc"))
    np.testing.assert_array_equal(behind[1:], behind[:1] * 2)


# === Configuration ===


@each_loss
def test_symbolic_call_and_keras_file(make, inputs, tmp_path, sampler):
    parts = [keras.Input((None, CHANNELS, DIM)), keras.Input((None, CHANNELS, DIM))]
    parts.append(keras.Input((None,), dtype="bool"))
    generator = make(sampler=sampler, name="generator")
    outputs = generator(*parts)
    assert outputs.shape == (None, None, CHANNELS, DIM)
    model = keras.Model(parts, outputs)
    generator(*inputs, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(list(inputs)), generator(*inputs))
    for saved, loaded in zip(generator.weights, again.get_layer("generator").weights, strict=True):
        np.testing.assert_array_equal(saved, loaded)


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
        ({"sampler": "sde"}, "`sampler` must be one of ['ddim', 'ddpm', 'tcc']. Received: samp"),
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
        (
            {"sampler": "tcc", "start": "gaussian"},
            """`start` must be "matched" with sampler="tcc". Received: start='gaussian'""",
        ),
        (
            {"sampler": "tcc", "num_steps": 21},
            '`start_step` must be an integer in [21, 1000] with sampler="tcc". Received: start_s',
        ),
        (
            {"normalize_interests": "unit"},
            '`normalize_interests` must be True, False or "proportional". Received: normalize_int',
        ),
        ({"inference_draws": -1}, "must be an integer of at least 0. Received: inference_draws=-1"),
        ({"inference_draws": 1.5}, "Received: inference_draws=1.5"),
        ({"weight": -1}, "`weight` must be >= 0. Received: weight=-1"),
        ({"trajectory_weight": -1}, "`trajectory_weight` must be >= 0. Received: trajectory_wei"),
        ({"teacher_decay": 1}, "`teacher_decay` must be in [0, 1). Received: teacher_decay=1"),
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
