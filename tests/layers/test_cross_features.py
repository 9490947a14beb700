import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.cross_features import (
    AddBehaviorFeatures,
    BehaviorFeatureEmbedding,
    CrossBias,
    LogSize,
)
from tfrec_diffusion.optimizers import LazyAdam

ROWS = {"gap": 4, "like": 3}
DIM, HEADS = 8, 4


@pytest.fixture
def embedding():
    """With large weights, so that a wrong one is seen."""
    layer = BehaviorFeatureEmbedding(ROWS, DIM, stddev=1.0)
    layer.build()
    return layer


@pytest.fixture
def bias():
    layer = CrossBias(len(ROWS), HEADS)
    layer.build((None, None, len(ROWS) * DIM))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    return layer


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    real = np.arange(9) < np.array([9, 0, 2, 5])[:, None]
    return {n: rng.integers(1, rows, (4, 9), dtype=np.int32) * real for n, rows in ROWS.items()}


def numpy_embedding(layer, features):
    tables = [layer.tables[name].embeddings.numpy() for name in ROWS]
    shape = np.shape(features["gap"])
    outputs = np.zeros((*shape, DIM * len(ROWS)))
    for index in np.ndindex(shape):
        rows = [table[features[name][index]] for name, table in zip(ROWS, tables, strict=True)]
        outputs[index] = np.concatenate(rows)
    return outputs


def numpy_bias(layer, embedded):
    """Eq. 5: a sum over features of a number times a head's weight."""
    kernel, beta = layer.feature_kernel.numpy(), layer.head_kernel.numpy()
    outputs = np.zeros((*embedded.shape[:-1], HEADS))
    for index in np.ndindex(embedded.shape[:-1]):
        for f in range(len(ROWS)):
            outputs[index] += embedded[index][f * DIM : (f + 1) * DIM] @ kernel[f] * beta[f]
    return outputs


# === Cross features ===


def test_features_stand_side_by_side_in_the_order_of_rows():
    layer = BehaviorFeatureEmbedding(ROWS, dim=2)
    layer.build()
    layer.tables["gap"].embeddings.assign([[0, 0], [1, 2], [3, 4], [5, 6]])
    layer.tables["like"].embeddings.assign([[0, 0], [70, 80], [90, 100]])
    outputs = layer({"like": np.array([[2, 1, 0]]), "gap": np.array([[1, 3, 0]])})
    np.testing.assert_array_equal(outputs, [[[1, 2, 90, 100], [5, 6, 70, 80], [0, 0, 0, 0]]])


def test_cross_bias_by_hand():
    layer = CrossBias(num_features=2, num_heads=3)
    layer.build((None, None, 4))
    layer.feature_kernel.assign([[1, 10], [0, 1]])
    layer.head_kernel.assign([[1, 0, 2], [0, 1, -1]])
    outputs = layer(np.array([[[1, 2, 9, 10], [5, 6, 7, 8], [0, 0, 0, 0], [3, 4, 0, 0]]], "f"))
    # Numbers: (21, 10), (65, 8), (0, 0), (43, 0).
    expected = [[[21, 10, 32], [65, 8, 122], [0, 0, 0], [43, 0, 86]]]
    np.testing.assert_array_equal(outputs, expected)


def test_behaviors_of_each_candidate(embedding, bias, features):
    """(batch, candidates, k), as what a search retrieved."""
    own = {name: np.stack([x[:, :5], x[:, 3:8]], axis=1) for name, x in features.items()}
    embedded = embedding(own)
    expected = numpy_embedding(embedding, own)
    assert embedded.shape == (4, 2, 5, DIM * len(ROWS))
    np.testing.assert_array_equal(embedded, expected)
    np.testing.assert_allclose(bias(embedded), numpy_bias(bias, expected), rtol=1e-4, atol=1e-5)
    assert (bias(embedded).numpy()[own["gap"] == 0] == 0).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_open_shapes_change_nothing(embedding, bias, features, jit_compile):
    signature = [dict.fromkeys(ROWS, tf.TensorSpec([None, None], tf.int32))]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def traced(features):
        embedded = embedding(features)
        return embedded, bias(embedded)

    for requests, length in ((4, 9), (1, 4), (2, 0), (0, 9)):
        part = {name: x[:requests, :length] for name, x in features.items()}
        embedded, biases = traced(part)
        expected = numpy_embedding(embedding, part)
        np.testing.assert_array_equal(embedded, expected)
        np.testing.assert_allclose(biases, numpy_bias(bias, expected), rtol=1e-4, atol=1e-5)


def test_padding_stays_zero_when_trained(embedding, bias, features):
    weights = [*embedding.trainable_variables, *bias.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(bias(embedding(features)) ** 2)
    gradients = tape.gradient(loss, weights)
    sparse = [gradient for gradient in gradients if isinstance(gradient, tf.IndexedSlices)]
    assert len(sparse) == len(ROWS)
    for gradient in gradients:
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        assert np.isfinite(values).all() and np.any(values)
    LazyAdam(0.1).apply_gradients(zip(gradients, weights, strict=True))
    assert (embedding(features).numpy()[features["gap"] == 0] == 0).all()


def test_only_padding_has_no_gradient(embedding, bias, features):
    padding = {name: np.zeros_like(x) for name, x in features.items()}
    with tf.GradientTape() as tape:
        embedded = embedding(padding)
        loss = tf.reduce_sum((embedded - 1) ** 2) + tf.reduce_sum((bias(embedded) - 1) ** 2)
    assert (embedded.numpy() == 0).all()
    weights = [*embedding.trainable_variables, *bias.trainable_variables]
    for gradient in tape.gradient(loss, weights):
        assert not np.any(tf.convert_to_tensor(gradient))


def test_initial_embeddings_are_of_stddev():
    layer = BehaviorFeatureEmbedding({"gap": 2000}, dim=8, stddev=0.05)
    layer.build()
    table = layer.tables["gap"].embeddings.numpy()
    assert table.shape == (2000, 8) and (table[0] == 0).all()
    np.testing.assert_allclose(table[1:].std(), 0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(embedding, bias, features, dtype):
    low_embedding = BehaviorFeatureEmbedding(ROWS, DIM, dtype=f"mixed_{dtype}")
    low_bias = CrossBias(len(ROWS), HEADS, dtype=f"mixed_{dtype}")
    low_bias(low_embedding(features))
    for low, layer in ((low_embedding, embedding), (low_bias, bias)):
        low.set_weights(layer.get_weights())
        assert all(weight.dtype == "float32" for weight in low.weights)
    embedded = low_embedding(features)
    biases = low_bias(embedded)
    assert embedded.dtype == biases.dtype == dtype
    expected = numpy_embedding(embedding, features)
    np.testing.assert_allclose(tf.cast(embedded, "float32"), expected, rtol=0.01)
    expected = numpy_bias(bias, expected)
    np.testing.assert_allclose(tf.cast(biases, "float32"), expected, rtol=0.02, atol=0.1)


# === Sizes of clusters ===


@pytest.mark.parametrize("jit_compile", [False, True])
def test_log_size_by_hand(jit_compile):
    """Rows: padding, missing, then sizes of 1, 2, 3, and 4 or more."""
    layer = LogSize((2.0, 3.0, 4.0), dtype="mixed_float16")
    signature = [tf.TensorSpec([None, None], tf.int32)]
    traced = tf.function(layer, input_signature=signature, jit_compile=jit_compile)
    rows = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    expected = np.log([[[1], [1], [1]], [[2], [3], [4]]])
    assert traced(rows).dtype == "float32"
    np.testing.assert_allclose(traced(rows), expected, rtol=1e-6)
    np.testing.assert_allclose(layer(rows[:, None]), expected[:, None], rtol=1e-6)
    assert traced(rows[:, :0]).shape == (2, 0, 1)


def test_a_cluster_of_any_size_may_count_as_one():
    assert (LogSize(())(np.array([0, 1, 2])).numpy() == 0).all()


@pytest.mark.parametrize("wrong", [(1.0, 2.0), (2.0, 4.0), (3.0, 2.0), (30.0,)])
def test_wrong_boundaries(wrong):
    with pytest.raises(
        ValueError, match=r"`boundaries` of sizes must be 2, 3, .. Received: \("
    ) as e:
        LogSize(wrong)
    assert str(e.value).endswith(str(wrong))


# === Saving and arguments ===


def test_a_saved_model_is_the_same(features, tmp_path):
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in reversed(ROWS)}
    known = BehaviorFeatureEmbedding(ROWS, dim=5)(inputs)
    bias, size = CrossBias(len(ROWS), 3)(known), LogSize((2.0, 3.0))(inputs["gap"])
    assert (known.shape, bias.shape) == ((None, None, 10), (None, None, 3))
    assert (size.shape, size.dtype) == ((None, None, 1), "float32")
    model = keras.Model(inputs, [known, bias, size])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again(features), model(features), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`stddev` must be a number >= 0. Received: stddev=-1"):
        BehaviorFeatureEmbedding(ROWS, stddev=-1)
    with pytest.raises(
        ValueError, match="`num_features` must be a positive integer. Received: .*=0"
    ):
        CrossBias(0)
    with pytest.raises(ValueError, match="`num_heads` must be a positive integer. Received: .*=0"):
        CrossBias(2, num_heads=0)


# === Added to the behaviors ===


def test_features_are_added_to_behaviors_by_a_linear_map(embedding, features):
    embedded = embedding(features)
    history = np.random.default_rng(2).normal(size=(4, 9, 6)).astype("f")
    layer = AddBehaviorFeatures()
    outputs = layer(history, embedded)
    expected = history + np.asarray(embedded) @ layer.kernel.numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    padding = features["gap"] == 0
    np.testing.assert_array_equal(np.asarray(outputs)[padding], history[padding])
