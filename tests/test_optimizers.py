import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.optimizers import LazyAdam


def slices(indices, seed):
    values = np.random.default_rng(seed).normal(size=(len(indices), 3)).astype("f")
    return tf.IndexedSlices(values, tf.constant(indices), (4, 3))


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


def test_dense_gradients_are_adams():
    gradient = tf.constant([[1.0, -2.0], [0.0, 3.0]])
    results = []
    for optimizer in (LazyAdam(0.1), keras.optimizers.Adam(0.1)):
        variable = keras.Variable(np.ones((2, 2), "f"))
        optimizer.build([variable])
        optimizer.apply_gradients([(gradient, variable)])
        results.append(variable.numpy())
    np.testing.assert_array_equal(*results)


def test_clipnorm_stays_sparse():
    lazy = run(LazyAdam(0.1, clipnorm=0.5), [[1, 1, 2]], as_dense=False)
    assert (lazy[[0, 3]] == 1).all() and (lazy[[1, 2]] != 1).all()


@pytest.mark.parametrize(
    "option", [{"weight_decay": 0.1}, {"global_clipnorm": 1.0}, {"use_ema": True}]
)
def test_what_would_touch_whole_tables_is_refused(option):
    with pytest.raises(ValueError, match=f"Received: {option}"):
        LazyAdam(**option)


def test_config_round_trip():
    optimizer = LazyAdam(0.02, beta_1=0.8, clipnorm=1.0)
    copy = LazyAdam.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
