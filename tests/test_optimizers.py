import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.optimizers import LazyAdam, Schedule


def slices(indices, seed):
    values = np.random.default_rng(seed).normal(size=(len(indices), 3)).astype("f")
    return tf.IndexedSlices(values, tf.constant(indices), tf.constant([4, 3]))


def run(optimizer, steps, as_dense):
    variable = keras.Variable(np.ones((4, 3), "f"))
    optimizer.build([variable])
    for step, indices in enumerate(steps):
        gradient = slices(indices, seed=step)
        gradient = tf.convert_to_tensor(gradient) if as_dense else gradient
        optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy()


def test_equals_adam_when_every_row_is_touched():
    steps = [[0, 1, 2, 3], [3, 3, 2, 1, 0, 0], [1, 0, 3, 2]]
    lazy = run(LazyAdam(0.1), steps, as_dense=False)
    adam = run(keras.optimizers.Adam(0.1), steps, as_dense=True)
    np.testing.assert_allclose(lazy, adam, rtol=1e-5)


def test_other_rows_do_not_move():
    variable = keras.Variable(np.ones((4, 3), "f"))
    optimizer = LazyAdam(0.1)
    optimizer.build([variable])
    optimizer.apply_gradients([(slices([2, 2], seed=0), variable)])
    after_one = variable.numpy()
    optimizer.apply_gradients([(slices([0], seed=1), variable)])
    moved = np.any(variable.numpy() != after_one, axis=1)
    assert moved.tolist() == [True, False, False, False]
    assert (after_one[[0, 1, 3]] == 1).all() and (after_one[2] != 1).all()


def test_rows_move_as_adam_moves_them_alone():
    """Hand-computed: the first step of Adam is learning_rate * sign(gradient)."""
    variable = keras.Variable(np.zeros((4, 1), "f"))
    optimizer = LazyAdam(0.5)
    optimizer.build([variable])
    gradient = tf.IndexedSlices(tf.constant([[2.0], [-3.0], [2.0]]), tf.constant([1, 3, 1]), (4, 1))
    optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(variable, [[0], [-0.5], [0], [0.5]], rtol=1e-5)


@pytest.mark.parametrize("as_dense", [False, True])
def test_moments_of_another_optimizer_go_on(as_dense):
    """Five steps of one are three of one and two of another with its moments."""
    steps = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [0, 1, 2, 3], [3, 0, 1, 2]]
    expected = run(LazyAdam(0.1), steps, as_dense)

    variable = keras.Variable(np.ones((4, 3), "f"))
    first = LazyAdam(0.1)
    second = LazyAdam.from_config(LazyAdam(0.1, steps_before=3).get_config())
    for optimizer in (first, second):
        optimizer.build([variable])
    for step, indices in enumerate(steps):
        if step == 3:
            for ours, theirs in zip(second.variables[2:], first.variables[2:], strict=True):
                ours.assign(theirs)
        gradient = slices(indices, seed=step)
        gradient = tf.convert_to_tensor(gradient) if as_dense else gradient
        (first if step < 3 else second).apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(variable, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1]),
        ("cosine", [0.1, 0.2, 0.3, 0.4, 0.4 * (2 + 2**0.5) / 4, 0.2, 0.4 * (2 - 2**0.5) / 4]),
    ],
)
def test_a_schedule_rises_and_falls(kind, expected):
    schedule = Schedule.from_config(Schedule(0.4, kind, steps=8, warmup_steps=4).get_config())
    rates = [float(schedule(tf.constant(step))) for step in (0, 1, 2, 4, 5, 6, 7)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert float(schedule(8)) == pytest.approx(0.4 if kind == "constant" else 0)


def test_a_row_of_a_table_decays_when_it_is_looked_up():
    """By 0.1 * 0.5 of itself, beside Adam's step of 0.1."""
    variable = keras.Variable(np.full((4, 1), 2.0, "f"))
    optimizer = LazyAdam(0.1, table_decay=0.5)
    optimizer.build([variable])
    gradient = tf.IndexedSlices(tf.constant([[7.0]]), tf.constant([1]), (4, 1))
    optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(variable, [[2], [2 - 0.1 - 0.1], [2], [2]], rtol=1e-5)


def test_tables_may_have_a_learning_rate_of_their_own():
    """The first step of Adam is the learning rate, whatever the gradient."""
    table, kernel = keras.Variable(np.zeros((4, 1), "f")), keras.Variable([0.0])
    optimizer = LazyAdam.from_config(LazyAdam(0.1, table_factor=3.0).get_config())
    optimizer.build([table, kernel])
    lookups = tf.IndexedSlices(tf.constant([[7.0]]), tf.constant([1]), (4, 1))
    optimizer.apply_gradients([(lookups, table), (tf.constant([7.0]), kernel)])
    np.testing.assert_allclose(table, [[0], [-0.3], [0], [0]], rtol=1e-5)
    np.testing.assert_allclose(kernel, [-0.1], rtol=1e-5)
    with pytest.raises(ValueError, match="`table_factor` must be above 0. Received: .*=0"):
        LazyAdam(table_factor=0)


def test_dense_gradients_are_adams():
    gradient = tf.constant([[1.0, -2.0], [0.0, 3.0]])
    results = []
    for optimizer in (LazyAdam(0.1), keras.optimizers.Adam(0.1)):
        variable = keras.Variable(np.ones((2, 2), "f"))
        optimizer.build([variable])
        optimizer.apply_gradients([(gradient, variable)])
        results.append(variable.numpy())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("clipping", "of_row", "of_kernel"),
    [({}, 3, 4), ({"clipnorm": 2.0}, 2, 2), ({"global_clipnorm": 2.5}, 1.5, 2)],
)
def test_norms_are_of_summed_lookups(monkeypatch, clipping, of_row, of_kernel):
    """Row 1's two lookups add up to 3: its table has norm 3, with the kernel's 4 it is 5."""
    table, kernel = keras.Variable(np.zeros((4, 1), "f")), keras.Variable([0.0])
    optimizer = LazyAdam(**clipping)
    optimizer.build([table, kernel])
    seen = []
    monkeypatch.setattr(optimizer, "update_step", lambda gradient, *_: seen.append(gradient))
    lookups = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([1, 1]), (4, 1))
    optimizer.apply_gradients([(lookups, table), (tf.constant([4.0]), kernel)])
    of_table, dense = seen
    assert isinstance(of_table, tf.IndexedSlices)
    assert of_table.indices.numpy().tolist() == [1]
    np.testing.assert_allclose(of_table.values, [[of_row]], rtol=1e-6)
    np.testing.assert_allclose(dense, [of_kernel], rtol=1e-6)


@pytest.mark.parametrize("clipping", [{"clipnorm": 2.0}, {"global_clipnorm": 2.0}])
def test_clips_as_adam_clips_dense_gradients(clipping):
    """Of three steps the second is too small to be clipped; a weight without gradient stays."""
    results = []
    for optimizer, form in (
        (LazyAdam(0.1, **clipping), tf.identity),
        (keras.optimizers.Adam(0.1, **clipping), tf.convert_to_tensor),
    ):
        weights = [keras.Variable(np.ones((4, 3), "f")) for _ in range(3)]
        optimizer.build(weights)
        for step, scale in enumerate((10.0, 0.1, 3.0)):
            table = tf.math.scalar_mul(scale, slices([0, 1, 1, 2, 3, 1], seed=step))
            kernel = tf.math.scalar_mul(scale, slices([0, 1, 2, 3], seed=step + 3))
            gradients = [form(table), tf.convert_to_tensor(kernel), None]
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                optimizer.apply_gradients(zip(gradients, weights, strict=True))
        results.append([weight.numpy() for weight in weights])
    np.testing.assert_allclose(*results, rtol=1e-6)
    assert (results[0][2] == 1).all()


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"clipvalue": 1.0}, {"use_ema": True}])
def test_what_would_touch_whole_tables_is_refused(option):
    with pytest.raises(ValueError, match=f"Received: {option}"):
        LazyAdam(**option)


def test_config_round_trip():
    optimizer = LazyAdam(0.02, beta_1=0.8, clipnorm=1.0)
    copy = LazyAdam.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
