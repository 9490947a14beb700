import keras
import literal_fusion
import numpy as np
import pytest
import tensorflow as tf
from differences import assert_gradients_are_differences
from inference import (
    assert_inference_is_fixed,
    assert_rows_are_independent,
    assert_xla_equals_eager,
)

from tfrec_diffusion.diffusion import DiffusionFusion, MLPDenoiser, TransformerDenoiser

ROWS, CONDITIONS, DIM = 4, 2, 6
SAMPLERS = {
    "tcc": {},
    "tcc, 3 evaluations": {"num_steps": 3},
    "tcc, from 400": {"start_step": 400},
    "ddim": {"sampler": "ddim", "num_steps": 3},
    "ddim, 1 evaluation": {"sampler": "ddim"},
    "ddpm": {"sampler": "ddpm", "num_steps": 3},
    "ddpm, from 400": {"sampler": "ddpm", "num_steps": 5, "start_step": 400},
    "transformer": {"backbone": "transformer", "num_steps": 3},
}
each_state = pytest.mark.parametrize("trajectory_state", ["same_noise", "ddim"])


@pytest.fixture
def make(randomize):
    def make(backbone="mlp", **arguments):
        backbone = {"mlp": MLPDenoiser((7, 5)), "transformer": TransformerDenoiser(1)}[backbone]
        fusion = DiffusionFusion(backbone, **arguments)
        fusion.build((None, DIM))
        return randomize(fusion)

    return make


def draw(rows=ROWS, conditions=CONDITIONS, num_steps=3):
    """Interest, conditions, weights (row 0 knows no condition, row 1 one), noise."""
    rng = np.random.default_rng(0)
    interest, y = rng.normal(size=(rows, DIM)), rng.normal(size=(rows, conditions, DIM))
    weights = rng.uniform(0.1, 0.9, (rows, conditions))
    weights[0], weights[1:2, 1:] = 0, 0
    noise = rng.normal(size=(num_steps + 1, rows, DIM))
    return [x.astype("f") for x in (interest, y, weights, noise)]


def draw_steps():
    """x_0, conditions, t, delta and noise of eq. 8; row 0 goes back to t = 0, row 1 stays."""
    interest, y, _, noise = draw()
    t = np.array([700, 30, 1000, 2], "int32")
    return interest, y, t, np.array([700, 0, 450, 1], "int32"), noise[0]


def literal_errors(fusion, x_0, y, t, span, noise):
    reached = literal_fusion.states(fusion, x_0, y, t, span, noise)
    return literal_fusion.errors(fusion, x_0, y, t, span, *reached)


def train(fusion, rows=ROWS, real=None, **kwargs):
    interest, y, weights, _ = draw(rows, **kwargs)
    fusion(interest, y, weights, np.ones(rows, bool) if real is None else real, training=True)


# === Equation 1 ===


@pytest.mark.parametrize("name", SAMPLERS)
def test_fuses_as_the_literal_loop(make, name):
    fusion = make(**SAMPLERS[name])
    inputs = draw(num_steps=fusion.num_steps)
    expected = literal_fusion.fuse(fusion, *inputs)
    np.testing.assert_allclose(fusion.denoise(*inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditions", [0, 1, 3])
def test_any_number_of_conditions(make, conditions):
    fusion, inputs = make(num_steps=3), draw(conditions=conditions)
    expected = literal_fusion.fuse(fusion, *inputs)
    np.testing.assert_allclose(fusion.denoise(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_what_an_absent_condition_says_does_not_matter(make):
    """All are absent in row 0: its prediction is the unconditional one."""
    fusion, (interest, y, weights, noise) = make(), draw()
    fused = fusion.denoise(interest, y, weights, noise)
    other = np.where(weights[..., None] > 0, y, 7).astype("f")
    np.testing.assert_allclose(fusion.denoise(interest, other, weights, noise), fused, rtol=1e-5)
    unguided = fusion.denoise(interest, y[:, :0], weights[:, :0], noise)
    np.testing.assert_allclose(unguided[0], fused[0], rtol=1e-5)
    assert (np.abs(unguided - fused)[1:].max(axis=-1) > 1e-3).all()


def test_another_chain_over_the_same_denoiser(make):
    tcc, ddpm = make(), make(sampler="ddpm", num_steps=3)
    inputs = draw()
    fused = tcc.denoise(*inputs, chain=tcc.make_chain("ddpm", 3))
    np.testing.assert_allclose(fused, ddpm.denoise(*inputs), rtol=1e-6)


def test_gradients_through_all_steps_equal_differences(make):
    """By interest, conditions, weights of the guidance, and all of the layer's weights."""
    fusion = make(sampler="ddim", num_steps=3, start_step=300)
    *inputs, noise = draw(rows=3)
    probe = np.random.default_rng(1).normal(size=(3, DIM))
    inputs = [tf.Variable(x) for x in inputs]
    variables = [*inputs, *(weight.value for weight in fusion.trainable_variables)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fusion.denoise(*inputs, noise) * probe.astype("f"))

    def literal_loss():
        return np.sum(literal_fusion.fuse(fusion, *(x.numpy() for x in inputs), noise) * probe)

    assert_gradients_are_differences(variables, tape.gradient(loss, variables), literal_loss)


# === Equation 8 ===


@pytest.mark.parametrize("backbone", ["mlp", "transformer"])
@each_state
def test_errors_equal_the_literal_ones(make, trajectory_state, backbone):
    fusion = make(backbone, trajectory_state=trajectory_state)
    inputs = draw_steps()
    expected = literal_errors(fusion, *inputs)
    for error, literal in zip(fusion.convergence_errors(*inputs), expected, strict=True):
        np.testing.assert_allclose(error, literal, rtol=1e-4, atol=1e-6)
        assert (error.numpy()[[0, 2, 3]] > 1e-6).all()
    trajectory = fusion.convergence_errors(*inputs)[1]
    np.testing.assert_allclose(trajectory[1], [0, 0], atol=1e-12)  # delta = 0


@each_state
@pytest.mark.parametrize("term", [0, 1], ids=["reconstruction", "trajectory"])
def test_gradients_of_both_losses_equal_differences(make, trajectory_state, term):
    """By conditions and all weights of the denoiser, both states held where they are."""
    fusion = make(trajectory_state=trajectory_state)
    x_0, y, t, span, noise = draw_steps()
    y = tf.Variable(y)
    variables = [y, *(weight.value for weight in fusion.denoiser.trainable_variables)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fusion.convergence_errors(x_0, y, t, span, noise)[term])
    if term:  # a constant added to every prediction changes no difference of two
        variables = variables[:-1]
    reached = literal_fusion.states(fusion, x_0, y.numpy(), t, span, noise)

    def literal_loss():
        return literal_fusion.errors(fusion, x_0, y.numpy(), t, span, *reached)[term].sum()

    assert_gradients_are_differences(variables, tape.gradient(loss, variables), literal_loss)


@each_state
def test_what_the_loss_reaches(make, trajectory_state):
    """Not x_0, lest the encoder collapse to please it; row 0 has no condition to be reached."""
    fusion = make(trajectory_state=trajectory_state, condition_dropout=0.0)
    tensors = [tf.convert_to_tensor(x) for x in draw()[:3]]
    interest, y, weights = tensors
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        fusion(*tensors, np.ones(ROWS, bool), training=True)
        loss = tf.add_n(fusion.losses)
    sources = [interest, weights, y, *fusion.trainable_variables]
    by_interest, by_weights, by_y, *by_layer = tape.gradient(loss, sources)
    assert by_interest is None and by_weights is None
    np.testing.assert_array_equal((by_y.numpy() != 0).any(axis=-1), weights > 0)
    for weight, gradient in zip(fusion.trainable_variables, by_layer, strict=True):
        assert (gradient.numpy() != 0).any(), weight.path


def test_the_loss_is_what_is_drawn_put_into_equation_8(make, spy):
    """0.5 (reconstruction + lambda trajectory), averaged over conditions and real rows."""
    fusion = make(weight=0.5, curriculum_steps=8)
    calls = spy(fusion, "convergence_errors")
    real = np.array([True, False, True, True])
    fusion.steps_done.assign(2)
    train(fusion, real=real)
    reconstruction, trajectory = literal_errors(fusion, *(x.numpy() for x in calls[0]))
    expected = [reconstruction[real].mean(), trajectory[real].mean()]
    np.testing.assert_allclose(fusion.losses, [0.5 * expected[0], 0.4 * expected[1]], rtol=1e-4)
    trackers = [tracker.result() for tracker in fusion.loss_trackers]
    np.testing.assert_allclose(trackers, expected, rtol=1e-4)


def test_terms_that_are_off_cost_nothing(make):
    for off, term in (("reconstruction", 0), ("trajectory", 1)):
        fusion = make(**{off: False})
        train(fusion)
        assert fusion.losses[term] == 0 and fusion.losses[1 - term] > 0
    fusion = make(weight=0)
    train(fusion)
    assert fusion.losses == []


def test_a_batch_of_padding_costs_nothing(make):
    fusion = make()
    train(fusion, real=np.zeros(ROWS, bool))
    assert fusion.losses == [0, 0]


# === Curriculum ===


def test_curriculum_by_hand(make):
    fusion = make()
    table = [  # progress, least and largest delta, lambda
        (0.0, 1, 100, 1.0),
        (0.05, 1, 100, 0.96),
        (0.1, 100, 100, 0.92),
        (0.55, 100, 300, 0.56),
        (1.0, 100, 500, 0.2),
    ]
    for progress, low, high, weight in table:
        progress = tf.constant(progress)
        np.testing.assert_allclose(fusion.span_bounds(progress), [low, high], rtol=1e-5)
        assert float(fusion.trajectory_weight(progress)) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("done", "low", "high"), [(0, 1, 100), (99, 1, 100), (550, 100, 300), (9999, 100, 500)]
)
def test_spans_that_are_drawn(make, spy, done, low, high):
    """Uniform between the bounds, but never further back than t = 0; t uniform in 1..T."""
    fusion = make(curriculum_steps=1000)
    fusion.steps_done.assign(done)
    calls = spy(fusion, "convergence_errors")
    train(fusion, rows=20_000)
    _, _, t, span, noise = (x.numpy() for x in calls[0])
    assert t.min() == 1 and t.max() == 1000
    assert t.mean() == pytest.approx(500.5, abs=10)
    assert (span >= 1).all() and (t - span >= 0).all()
    free = span[t >= 500]
    assert low <= free.min() <= low + 2 and high - 2 <= free.max() <= high
    assert free.mean() == pytest.approx((low + high) / 2, rel=0.03)
    np.testing.assert_array_equal(span[t < low], t[t < low])
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.var() == pytest.approx(1, abs=0.02)


def test_a_step_of_training_advances_the_curriculum_once(make):
    fusion = make(curriculum_steps=4)
    for done in range(1, 7):
        train(fusion)
        fusion(*draw()[:3], np.ones(ROWS, bool))  # inference does not
        assert fusion.steps_done == done
        assert float(fusion.progress()) == min(done / 4, 1)


# === Condition dropout ===


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_dropped_and_absent_conditions_train_the_unconditional_prediction(make, spy, rate):
    fusion = make(condition_dropout=rate)
    calls = spy(fusion, "convergence_errors")
    train(fusion, rows=5000)
    _, y, weights, _ = draw(rows=5000)
    seen = calls[0][1].numpy()
    none = (seen == fusion.no_condition.numpy()).all(axis=-1)
    np.testing.assert_array_equal(seen[~none], y[~none])
    assert none[weights == 0].all()
    dropped = none[2:]  # where both are present
    assert dropped.mean(axis=0) == pytest.approx([rate, rate], abs=0.03)
    assert dropped.all(axis=1).mean() == pytest.approx(rate**2, abs=0.03)


def test_without_conditions_the_unconditional_prediction_is_trained(make, spy):
    fusion = make()
    calls = spy(fusion, "convergence_errors")
    train(fusion, conditions=0)
    expected = np.broadcast_to(fusion.no_condition.numpy(), (ROWS, 1, DIM))
    np.testing.assert_array_equal(calls[0][1], expected)
    assert all(loss > 0 for loss in fusion.losses)


# === Noise ===


def test_inference_is_fixed_and_rows_are_independent(make):
    fusion, inputs = make(num_steps=3), [*draw()[:3], np.ones(ROWS, bool)]
    assert_inference_is_fixed(fusion, *inputs)
    assert_rows_are_independent(fusion, *inputs)
    # Other numbers would change the scores of saved models.
    noise = np.random.default_rng(2025).standard_normal((4, 1, DIM), "float32")
    np.testing.assert_array_equal(fusion(*inputs), fusion.denoise(*inputs[:3], noise))


def test_noise_in_training_is_new_for_each_call_step_and_row(make, spy):
    fusion = make(num_steps=3)
    calls = spy(fusion, "denoise")
    train(fusion)
    train(fusion)
    noises = np.array([noise for *_, noise in calls]).reshape(2 * 4 * ROWS, DIM)
    assert len(np.unique(noises, axis=0)) == 2 * 4 * ROWS


# === Compiled, saved ===


def test_xla_equals_eager(make):
    inputs = [*draw()[:3], np.ones(ROWS, bool)]
    assert_xla_equals_eager(make(num_steps=2), *inputs, open_axes=1)


def test_a_keras_file_keeps_the_curriculum(make, tmp_path):
    parts = [keras.Input((DIM,)), keras.Input((CONDITIONS, DIM)), keras.Input((CONDITIONS,))]
    parts.append(keras.Input((), dtype="bool"))
    fusion = make(sampler="ddim", num_steps=3, name="fusion")
    model = keras.Model(parts, fusion(*parts))
    train(fusion)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_layer("fusion").steps_done == 1
    inputs = [*draw()[:3], np.ones(ROWS, bool)]
    np.testing.assert_array_equal(again(inputs), fusion(*inputs))


# === Arguments ===


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sampler": "sde"},
            "`sampler` must be one of ['ddim', 'ddpm', 'tcc']. Received: sampler=",
        ),
        (
            {"trajectory_state": "x"},
            "`trajectory_state` must be one of ['ddim', 'same_noise']. Received:",
        ),
        ({"condition_dropout": 1}, "`condition_dropout` must be in [0, 1). Received: "),
        ({"weight": -1}, "`weight` must be >= 0. Received: weight=-1"),
        ({"curriculum_steps": 0}, "`curriculum_steps` must be a positive integer. Received: curr"),
        ({"num_steps": 0}, "integers, 1 <= num_steps <= start_step <= 1000. Received: 0, None"),
        ({"num_steps": 2.0}, "Received: 2.0, None"),
        ({"num_steps": 3, "start_step": 2}, "Received: 3, 2"),
        ({"start_step": 11, "num_train_steps": 10}, "<= start_step <= 10. Received: 1, 11"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        DiffusionFusion(MLPDenoiser(), **arguments)
    assert message in str(error.value)
