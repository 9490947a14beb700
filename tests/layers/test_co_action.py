import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.co_action import CoAction

ROWS = 20
LENGTHS = np.array([6, 0, 2, 1])


@pytest.fixture
def inputs():
    """Rows of behaviors and candidates; behaviors beyond the mask are not 0."""
    rng = np.random.default_rng(0)
    behaviors = rng.integers(1, ROWS, (4, 6), dtype=np.int32)
    targets = rng.integers(1, ROWS, (4, 3), dtype=np.int32)
    return behaviors, targets, np.arange(6) < LENGTHS[:, None]


def build(**kwargs):
    layer = CoAction(ROWS, **{"stddev": 0.7, **kwargs})
    layer.build()
    return layer


def literal(layer, behaviors, targets, mask):
    """One row, candidate, behavior and power at a time."""
    mlps, vectors = (
        table.embeddings.numpy().astype("float64")
        for table in (layer.mlp_table, layer.vector_table)
    )
    pooled = np.zeros((*targets.shape, sum(layer.units)))
    for b, n in np.ndindex(targets.shape):
        for behavior in behaviors[b][mask[b]]:
            for order in range(1, layer.orders + 1):
                x, left, outputs = vectors[behavior] ** order, mlps[targets[b, n]], []
                for width in layer.units:
                    kernel, left = left[: len(x) * width], left[len(x) * width :]
                    bias, left = left[:width], left[width:]
                    x = np.tanh(x @ kernel.reshape(len(x), width) + bias)
                    outputs.extend(x)
                assert not len(left)
                pooled[b, n] += outputs
    return pooled


@pytest.mark.parametrize(
    "arguments",
    [
        {"units": (8, 4), "dim": 8, "orders": 3},
        {"units": (3,), "dim": 2, "orders": 1},
        {"units": (2, 5, 3), "dim": 4, "orders": 2},
    ],
    ids=str,
)
def test_equals_the_literal_loop(arguments, inputs):
    layer = build(**arguments)
    outputs = layer(*inputs)
    np.testing.assert_allclose(outputs, literal(layer, *inputs), rtol=1e-4, atol=1e-5)
    assert (outputs[1].numpy() == 0).all()  # no behaviors


def test_by_hand():
    layer = build(units=(1, 1), dim=1, orders=2)
    layer.vector_table.embeddings.assign(np.full((ROWS, 1), 0.5))
    layer.mlp_table.embeddings.assign(np.tile([2.0, 1.0, 3.0, -1.0], (ROWS, 1)))
    first = np.tanh([2 * 0.5 + 1, 2 * 0.25 + 1])  # of the powers 0.5 and 0.25
    second = np.tanh(3 * first - 1)
    outputs = layer(np.array([[5, 6]]), np.array([[7]]), np.array([[True, True]]))
    expected = [[[2 * first.sum(), 2 * second.sum()]]]  # two behaviors
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


def test_padding_changes_nothing(inputs):
    behaviors, targets, mask = inputs
    layer = build()
    outputs = layer(*inputs)
    other = np.where(mask, behaviors, ROWS - 1)
    np.testing.assert_array_equal(layer(other, targets, mask), outputs)
    np.testing.assert_allclose(
        layer(behaviors[2:3, :2], targets[2:3, 1:2], mask[2:3, :2]), outputs[2:3, 1:2], rtol=1e-5
    )


def test_a_padded_candidate_has_no_co_action(inputs):
    behaviors, targets, mask = inputs
    outputs = build()(behaviors, np.zeros_like(targets), mask)
    np.testing.assert_array_equal(outputs, np.zeros(outputs.shape))


def test_what_two_values_say_is_learned_in_tables_of_their_own(inputs):
    """A behavior moves its vector, a candidate its MLP; real values alone are moved."""
    behaviors, targets, mask = inputs
    layer = build()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(*inputs) ** 2)
    of_mlps, of_vectors = (
        np.abs(tf.convert_to_tensor(gradient)).max(axis=1) > 0
        for gradient in tape.gradient(
            loss, [layer.mlp_table.embeddings, layer.vector_table.embeddings]
        )
    )
    assert {*np.flatnonzero(of_vectors)} == {*behaviors[mask]}
    assert {*np.flatnonzero(of_mlps)} == {*targets[LENGTHS > 0].ravel()}
    assert layer.mlp_table.embeddings.shape == (ROWS, 8 * 8 + 8 + 8 * 4 + 4)
    assert layer.vector_table.embeddings.shape == (ROWS, 8)
    assert len(layer.trainable_weights) == 2


@pytest.mark.parametrize(
    ("jit_compile", "shapes"), [(False, ((6, 3), (2, 1), (0, 2))), (True, ((6, 3), (0, 2)))]
)
def test_open_shapes(inputs, shapes, jit_compile):
    layer = build()
    rows = tf.TensorSpec([None, None], tf.int32)

    @tf.function(
        input_signature=[rows, rows, tf.TensorSpec([None, None], tf.bool)], jit_compile=jit_compile
    )
    def run(*inputs):
        with tf.GradientTape() as tape:
            outputs = layer(*inputs)
            loss = tf.reduce_sum(outputs**2)
        gradients = tape.gradient(loss, layer.trainable_weights)
        return outputs, [tf.convert_to_tensor(gradient) for gradient in gradients]

    behaviors, targets, mask = inputs
    for length, candidates in shapes:
        cut = behaviors[:, :length], targets[:, :candidates], mask[:, :length]
        outputs, gradients = run(*cut)
        np.testing.assert_allclose(outputs, literal(layer, *cut), rtol=1e-4, atol=1e-5)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_symbolic_shape():
    behaviors, targets = keras.Input((None,), dtype="int32"), keras.Input((9,), dtype="int32")
    outputs = CoAction(ROWS, units=(5, 2))(behaviors, targets, keras.Input((None,), dtype="bool"))
    assert outputs.shape == (None, 9, 7)


def test_a_copy_with_the_same_weights_is_the_same(inputs):
    layer = build(units=(5, 2))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(*inputs), layer(*inputs))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"dim": 0}, "`dim` must be a positive integer. Received: dim=0"),
        ({"orders": 1.5}, "`orders` must be a positive integer. Received: orders=1.5"),
        ({"units": ()}, r"`units` must be positive widths. Received: units=\(\)"),
        ({"units": (8, 0)}, r"`units` must be positive widths. Received: units=\(8, 0\)"),
        ({"stddev": -1}, "`stddev` must be a number >= 0. Received: stddev=-1"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        CoAction(ROWS, **wrong)
