import keras
import literal_item_generators as literal
import numpy as np
import pytest
import tensorflow as tf
from differences import assert_gradients_are_differences
from inference import (
    assert_inference_is_fixed,
    assert_rows_are_independent,
    assert_xla_equals_eager,
)
from literal_fusion import f_theta

from tfrec_diffusion.diffusion import OracleGenerator, TargetReconstructor, item_generators
from tfrec_diffusion.layers.normalization import unit_scale

LENGTH, DIM, STEPS = 4, 6, 3
COUNTS = np.array([4, 2, 0, 1, 3])  # real behaviors of each row, on the right
ITEMS = np.array([[2, 3, 4, 5], [2, 3, 4, 7], [0, 0, 0, 0], [9, 9, 9, 3], [9, 4, 6, 5]])
BOTH = pytest.mark.parametrize("cls", [OracleGenerator, TargetReconstructor])


@pytest.fixture
def make(randomize):
    def make(cls, num_steps=STEPS, **arguments):
        generator = cls(num_steps, length=LENGTH, **arguments)
        generator.build((None, None, DIM))
        return randomize(generator)

    return make


@pytest.fixture
def behaviors():
    """Padding is not zero."""
    return np.random.default_rng(0).normal(size=(len(COUNTS), LENGTH, DIM)).astype("f")


@pytest.fixture
def draws(monkeypatch):
    """What is drawn in training, by kind and shape; the same whenever it is asked for."""
    drawn, rng = {}, np.random.default_rng(3)

    def keep(kind, make):
        def draw(shape, *arguments):
            key = kind, *map(int, shape)
            return drawn.setdefault(key, make(tuple(shape), *arguments[:-1]))

        monkeypatch.setattr(item_generators, kind, draw)

    keep("normal", lambda shape: rng.normal(size=shape).astype("f"))
    keep("uniform", lambda shape: rng.uniform(size=shape).astype("f"))
    keep("randint", lambda shape, low, high: rng.integers(low, high, shape, dtype="int32"))
    return drawn


def arguments_of(generator, behaviors, counts=COUNTS, items=ITEMS):
    """What a call takes: the items are for `TargetReconstructor` alone."""
    length = behaviors.shape[1]
    real = np.arange(length) >= length - np.minimum(counts, length)[:, None]
    rest = (items[:, -length:],) if isinstance(generator, TargetReconstructor) else ()
    return behaviors, real, *rest


def rows_of(behaviors):
    """Each row's behaviors, without padding."""
    return [
        row[-count:] if count else row[:0] for row, count in zip(behaviors, COUNTS, strict=True)
    ]


def fixed_noise(generator):
    """(steps + 1, d) at inference."""
    return generator.chain_noise(tf.zeros((1, DIM)), training=False).numpy()[:, 0]


# === Both phases, as printed ===


def test_oracle_generates_as_the_literal_algorithm(make, behaviors):
    for num_blocks, guidance_weight in ((1, 2.0), (2, 0.0)):
        generator = make(OracleGenerator, guidance_weight=guidance_weight, num_blocks=num_blocks)
        outputs = generator(*arguments_of(generator, behaviors))
        for row, output in zip(rows_of(behaviors), outputs, strict=True):
            expected = literal.oracle(generator, row, fixed_noise(generator))
            np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-3)


def test_target_is_reconstructed_as_by_the_literal_algorithm(make, behaviors):
    for num_blocks, delta in ((1, 0.001), (2, 0.5)):
        generator = make(TargetReconstructor, uncertainty=delta, num_blocks=num_blocks)
        outputs = generator(*arguments_of(generator, behaviors))
        for row, output in zip(rows_of(behaviors), outputs, strict=True):
            if len(row):
                expected = literal.target(generator, row, delta, fixed_noise(generator))
                np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)


def test_oracle_in_training(make, behaviors, draws):
    """Noise of its own for each row, in the loss and in the chain."""
    generator = make(OracleGenerator, weight=0.5, condition_dropout=0.4)
    outputs = generator(*arguments_of(generator, behaviors), training=True)
    rows, batch = rows_of(behaviors), len(behaviors)
    t, epsilon = draws["randint", batch], draws["normal", batch, DIM]
    kept = draws["uniform", batch] >= 0.4
    assert kept[:2].any() and not kept.all()
    errors = [
        literal.oracle_error(generator, row, t[i], epsilon[i], kept[i])
        for i, row in enumerate(rows)
        if len(row)  # without behaviors there is nothing to generate
    ]
    np.testing.assert_allclose(generator.losses, [0.5 * np.mean(errors)], rtol=1e-4)
    np.testing.assert_allclose(generator.loss_tracker.result(), np.mean(errors), rtol=1e-4)
    noise = draws["normal", STEPS + 1, batch, DIM]
    for i, row in enumerate(rows):
        expected = literal.oracle(generator, row, noise[:, i])
        np.testing.assert_allclose(outputs[i], expected, rtol=1e-3, atol=1e-3)


def test_target_reconstructor_in_training(make, behaviors, draws):
    """Rows 0 and 4 go on with the same item, 5: no negatives of each other."""
    generator = make(TargetReconstructor, weight=0.5, uncertainty=0.3)
    outputs = generator(*arguments_of(generator, behaviors), training=True)
    rows, batch = rows_of(behaviors), len(behaviors)
    t, epsilon = draws["randint", batch], draws["normal", batch, DIM]

    def lambdas(length, newest):
        drawn = 0.3 * (1 + draws["normal", batch, length, DIM])
        return [drawn[i, length - newest[i] :] for i in range(batch)]

    of_past = lambdas(LENGTH - 1, np.maximum(COUNTS - 1, 0))
    errors = literal.target_errors(generator, rows, ITEMS[:, -1], of_past, t, epsilon)
    errors = [error for error in errors if error is not None]
    assert len(errors) == 3
    np.testing.assert_allclose(generator.losses, [0.5 * np.mean(errors)], rtol=1e-4)
    np.testing.assert_allclose(generator.loss_tracker.result(), np.mean(errors), rtol=1e-4)
    noise = draws["normal", STEPS + 1, batch, DIM]
    of_all = lambdas(LENGTH, COUNTS)
    for i, row in enumerate(rows):
        if len(row):
            expected = literal.target(generator, row, of_all[i], noise[:, i])
            np.testing.assert_allclose(outputs[i], expected, rtol=1e-3, atol=1e-4)


@BOTH
def test_xla_equals_eager(make, behaviors, cls):
    generator = make(cls, num_steps=2)
    assert_xla_equals_eager(generator, *arguments_of(generator, behaviors), open_axes=2)


# === What depends on what ===


def test_guidance_exaggerates_the_condition(make):
    """One step from T leaves (1 + w) f(x_T, T, c) - w f(x_T, T)."""
    generator = make(OracleGenerator, num_steps=1)
    c, x = np.random.default_rng(1).normal(size=(2, 2, DIM)).astype("f")
    for w in (-1.0, 0.0, 2.0):
        noise = np.stack([x, np.full_like(x, 50)])  # the last step adds none
        generated = generator.generate(c, np.full((2, 1), 1 + w, "f"), noise)
        for row in range(2):
            guided = f_theta(generator.denoiser, x[row], 1000, c[row])
            unguided = f_theta(generator.denoiser, x[row], 1000, generator.no_condition.numpy())
            np.testing.assert_allclose(
                generated[row], (1 + w) * guided - w * unguided, rtol=1e-4, atol=1e-4
            )


def test_the_guidance_weight_matters_to_those_with_a_history(make, behaviors):
    weak, strong = (make(OracleGenerator, guidance_weight=w) for w in (0.0, 5.0))
    inputs = arguments_of(weak, behaviors)
    differ = np.abs(weak(*inputs) - strong(*inputs)).max(axis=1) > 1e-3
    np.testing.assert_array_equal(differ, COUNTS > 0)


@BOTH
def test_the_newest_behavior_is_generated_from_those_before_it(make, behaviors, cls, monkeypatch):
    """Nothing of the newest reaches its own condition, in training."""
    generator = make(cls)
    calls = []
    monkeypatch.setattr(generator, "_add_loss", lambda *arguments: calls.append(arguments))
    changed = behaviors.copy()
    changed[:, -1] += 3 * np.arange(DIM)
    for inputs in (behaviors, changed):
        generator(*arguments_of(generator, inputs), training=True)
    if cls is OracleGenerator:
        (newest, _, condition), (other_newest, _, other_condition) = calls
    else:
        (newest, condition), (other_newest, other_condition) = (
            (tokens[:, -1], tokens[:, :-1]) for tokens, *_ in calls
        )
    np.testing.assert_array_equal(condition, other_condition)
    assert np.abs(newest - other_newest).min(axis=1).max() > 0


def test_the_oracles_loss_moves_the_past_alone(make, behaviors):
    """What is to be generated has no gradient, or it would collapse to please the loss."""
    inputs = [tf.convert_to_tensor(x) for x in arguments_of(OracleGenerator, behaviors)]
    for dropout, reached in ((0.0, True), (1 - 1e-7, False)):
        generator = make(OracleGenerator, condition_dropout=dropout)
        with tf.GradientTape() as tape:
            tape.watch(inputs[0])
            generator(*inputs, training=True)
            (loss,) = generator.losses
        gradient = tape.gradient(loss, inputs[0], unconnected_gradients="zero")
        moved = (gradient.numpy() != 0).any(axis=-1)
        before_the_newest = inputs[1].numpy() & (np.arange(LENGTH) < LENGTH - 1)
        np.testing.assert_array_equal(moved, before_the_newest & reached)


def test_the_oracles_condition(make, behaviors):
    """The last state of the encoder, at the newest position; that of none without behaviors."""
    generator = make(OracleGenerator)
    _, real = arguments_of(generator, behaviors)
    condition = generator.condition(unit_scale(behaviors), real)
    for row, c in zip(rows_of(behaviors), condition, strict=True):
        np.testing.assert_allclose(c, literal.condition(generator, row), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(condition[2], generator.no_condition)


def test_the_oracles_loss_moves_the_newest_position(make, behaviors):
    """The past stands where the whole history does in ranking: up to 3 behaviors, at the end."""
    generator = make(OracleGenerator, condition_dropout=0.0)
    positions = generator.encoder.positions.value
    with tf.GradientTape() as tape:
        generator(*arguments_of(generator, behaviors), training=True)
        (loss,) = generator.losses
    moved = (tf.convert_to_tensor(tape.gradient(loss, positions)).numpy() != 0).any(axis=1)
    np.testing.assert_array_equal(moved, [False, True, True, True])


@BOTH
def test_a_row_without_history_does_not_depend_on_anything(make, behaviors, cls):
    """Embedded padding is 0; how long it is depends on the other histories of the batch."""
    generator = make(cls)
    inputs = arguments_of(generator, np.where(COUNTS[:, None, None] > 0, behaviors, 0))
    (expected,) = generator(*inputs).numpy()[COUNTS == 0]
    for length in (LENGTH, 2, 1, 0):
        outputs = generator(*arguments_of(generator, 0 * behaviors[:, :length], 0 * COUNTS))
        for output in outputs:
            np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@BOTH
def test_inference_is_fixed_and_rows_are_independent(make, behaviors, cls):
    generator = make(cls)
    inputs = arguments_of(generator, behaviors)
    assert_inference_is_fixed(generator, *inputs)
    assert_rows_are_independent(generator, *inputs)
    outputs = generator(*inputs)
    for row, count in enumerate(COUNTS):
        if count:  # without padding
            alone = generator(*(x[row : row + 1, LENGTH - count :] for x in inputs))
            np.testing.assert_allclose(alone[0], outputs[row], rtol=1e-3, atol=1e-3)


@BOTH
def test_padding_and_the_scale_of_embeddings_change_nothing(make, behaviors, cls):
    generator = make(cls)
    arguments = arguments_of(generator, behaviors)
    real = arguments[1]
    outputs = generator(*arguments).numpy()[COUNTS > 0]
    junk = np.where(real[..., None], 5 + 30 * behaviors, np.float32(2) - behaviors)
    other = generator(junk, *arguments[1:]).numpy()[COUNTS > 0]
    np.testing.assert_allclose(other, outputs, rtol=1e-3, atol=1e-3)


@BOTH
def test_training_draws_anew(make, behaviors, cls):
    generator = make(cls)
    inputs = arguments_of(generator, behaviors)
    first, second = (generator(*inputs, training=True) for _ in range(2))
    assert np.abs(first - second).max(axis=1).min() > 0
    losses = []
    for _ in range(2):
        generator(*inputs, training=True)
        losses.extend(map(float, generator.losses))
    assert losses[0] != losses[1]


# === Losses ===


@BOTH
def test_a_loss_in_training_only(make, behaviors, cls):
    for weight, training, count in ((0.1, True, 1), (0.1, False, 0), (0.1, None, 0), (0, True, 0)):
        generator = make(cls, weight=weight)
        generator(*arguments_of(generator, behaviors), training=training)
        assert len(generator.losses) == count


def test_the_oracle_needs_something_to_generate(make, behaviors):
    generator = make(OracleGenerator)
    generator(*arguments_of(generator, behaviors, 0 * COUNTS), training=True)
    np.testing.assert_array_equal(generator.losses, [0.0])


def test_target_reconstructor_needs_a_past_and_negatives(make, behaviors):
    generator = make(TargetReconstructor)

    def loss(counts, items):
        inputs = arguments_of(generator, behaviors, counts, items)
        generator(*inputs, training=True)
        return float(generator.losses[0])

    assert loss(COUNTS, ITEMS) > 0
    assert loss(np.minimum(COUNTS, 1), ITEMS) == 0  # no past
    assert loss(COUNTS, np.full_like(ITEMS, 5)) == 0  # all the same item
    assert loss(np.array([4, 0, 0, 0, 0]), ITEMS) == 0  # nobody else
    assert loss(np.array([4, 0, 0, 1, 0]), ITEMS) > 0  # a next item without a past is a negative


# === Gradients ===


@BOTH
def test_generated_items_move_the_generator_through_the_last_evaluation(
    make, behaviors, cls, monkeypatch
):
    """Gradients are differences of the literal last step, from where the others have led."""
    generator = make(cls)
    inputs = arguments_of(generator, behaviors[:1], COUNTS[:1], ITEMS[:1])
    probe = np.random.default_rng(2).normal(size=DIM)
    weights = [generator.encoder.positions, generator.encoder.blocks[0].feed_forward.kernel]
    if cls is OracleGenerator:
        weights += [generator.denoiser.x_0.kernel, generator.no_condition]
    variables = [weight.value for weight in weights]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(generator(*inputs)[0] * probe.astype("f"))
    gradients = tape.gradient(loss, variables)
    gradients = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]

    def generate():
        noise = fixed_noise(generator)
        if cls is OracleGenerator:
            return literal.oracle(generator, behaviors[0], noise)
        return literal.target(generator, behaviors[0], generator.uncertainty, noise)

    states, denoise = [], literal.denoise

    def record(alpha_bar, num_steps, predict, noise):
        def predict_and_record(x, t):
            states.append((x, t))
            return predict(x, t)

        return denoise(alpha_bar, num_steps, predict_and_record, noise)

    monkeypatch.setattr(literal, "denoise", record)
    generate()
    last_state = states[-1]  # the last step leaves nothing but the prediction
    monkeypatch.setattr(literal, "denoise", lambda _, __, predict, ___: predict(*last_state))
    assert_gradients_are_differences(
        variables, gradients, literal_loss=lambda: np.sum(generate() * probe)
    )


# === Learning ===


@pytest.mark.slow
@BOTH
def test_it_learns_what_comes_next(cls):
    """Eight items follow each other in a cycle: the generated one is nearest to the next."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 8)).astype("f")
    generator = cls(8, length=4, weight=1.0)
    generator.build((None, None, 8))
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(generator.trainable_weights)

    def draw(batch=64):
        items = (rng.integers(0, 8, (batch, 1)) + np.arange(5)) % 8
        inputs = arguments_of(
            generator, table[items[:, :4]], rng.integers(2, 5, batch), items[:, :4]
        )
        return inputs, items[:, 4]

    @tf.function(reduce_retracing=True)
    def step(*inputs):
        with tf.GradientTape() as tape:
            generator(*inputs, training=True)
            (loss,) = generator.losses
        gradients = tape.gradient(loss, generator.trainable_weights)
        optimizer.apply_gradients(
            (gradient, weight)
            for gradient, weight in zip(gradients, generator.trainable_weights, strict=True)
            if gradient is not None
        )
        return loss

    losses = [float(step(*draw()[0])) for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])
    inputs, following = draw(200)
    products = generator(*inputs) @ tf.transpose(unit_scale(table))
    found = np.mean(np.argmax(products, axis=1) == following)
    assert found > 0.95


# === Arguments ===


@BOTH
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_steps": 0}, "`num_steps` must be a positive integer. Received: num_steps=0"),
        ({"num_steps": 2000}, "`num_steps` must be at most .* Received: num_steps=2000"),
        ({"weight": -1}, "`weight` must be >= 0. Received: weight=-1"),
        ({"num_heads": 0}, "`num_heads` must be a positive integer. Received: num_heads=0"),
        ({"num_blocks": 0}, "`num_blocks` must be a positive integer. Received: num_blocks=0"),
        ({"length": 1}, "`length` must be .* Received: length=1$"),
    ],
    ids=str,
)
def test_wrong_arguments(cls, wrong, message):
    with pytest.raises(ValueError, match=message):
        cls(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance_weight": -1}, "`guidance_weight` must be >= 0. Received: guidance_weight=-1"),
        ({"condition_dropout": 1}, r"`condition_dropout` must be in \[0, 1\). Received: .*=1"),
    ],
)
def test_wrong_arguments_of_the_oracle(wrong, message):
    with pytest.raises(ValueError, match=message):
        OracleGenerator(**wrong)


def test_wrong_uncertainty():
    with pytest.raises(ValueError, match="`uncertainty` must be >= 0. Received: uncertainty=-1"):
        TargetReconstructor(uncertainty=-1)


@BOTH
def test_heads_that_do_not_divide_the_width(cls):
    with pytest.raises(ValueError, match="`num_heads` must divide .* num_heads=4, width 6"):
        cls(num_heads=4).build((None, None, 6))
