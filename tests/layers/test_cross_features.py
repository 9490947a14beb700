import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.cross_features import BehaviorFeatureEmbedding, CrossBias
from tfrec_diffusion.optimizers import LazyAdam

ROWS = {"gap": 4, "like": 3}


def build(layer_class, **kwargs):
    """With large weights, so that a wrong one is seen."""
    layer = layer_class(ROWS, stddev=1.0, **kwargs)
    layer.build()
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if "embeddings" not in weight.path:
            weight.assign(rng.normal(size=weight.shape))
    return layer


def numpy_embedding(layer, features):
    tables = [layer.tables[name].embeddings.numpy() for name in ROWS]
    shape = np.shape(features["gap"])
    outputs = np.zeros((*shape, layer.dim * len(ROWS)))
    for index in np.ndindex(shape):
        rows = [table[features[name][index]] for name, table in zip(ROWS, tables, strict=True)]
        outputs[index] = np.concatenate(rows)
    return outputs


def numpy_bias(layer, features):
    """Eq. 5: a sum over features of a number times a head's weight."""
    kernel, beta = layer.feature_kernel.numpy(), layer.head_kernel.numpy()
    shape = np.shape(features["gap"])
    outputs = np.zeros((*shape, layer.num_heads))
    for index in np.ndindex(shape):
        for f, name in enumerate(ROWS):
            row = layer.embedding.tables[name].embeddings.numpy()[features[name][index]]
            outputs[index] += row @ kernel[f] * beta[f]
    return outputs


def reference(layer, features):
    return (numpy_bias if isinstance(layer, CrossBias) else numpy_embedding)(layer, features)


@pytest.fixture(params=[BehaviorFeatureEmbedding, CrossBias])
def layer(request):
    return build(request.param)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    real = np.arange(9) < np.array([9, 0, 2, 5])[:, None]
    return {n: rng.integers(1, rows, (4, 9), dtype=np.int32) * real for n, rows in ROWS.items()}


def test_features_stand_side_by_side_in_the_order_of_rows():
    layer = BehaviorFeatureEmbedding(ROWS, dim=2)
    layer.build()
    layer.tables["gap"].embeddings.assign([[0, 0], [1, 2], [3, 4], [5, 6]])
    layer.tables["like"].embeddings.assign([[0, 0], [70, 80], [90, 100]])
    outputs = layer({"like": np.array([[2, 1, 0]]), "gap": np.array([[1, 3, 0]])})
    np.testing.assert_array_equal(outputs, [[[1, 2, 90, 100], [5, 6, 70, 80], [0, 0, 0, 0]]])


def test_cross_bias_by_hand():
    layer = CrossBias(ROWS, num_heads=3, dim=2)
    layer.build()
    layer.embedding.tables["gap"].embeddings.assign([[0, 0], [1, 2], [3, 4], [5, 6]])
    layer.embedding.tables["like"].embeddings.assign([[0, 0], [7, 8], [9, 10]])
    layer.feature_kernel.assign([[1, 10], [0, 1]])
    layer.head_kernel.assign([[1, 0, 2], [0, 1, -1]])
    outputs = layer({"gap": np.array([[1, 3, 0, 2]]), "like": np.array([[2, 1, 0, 0]])})
    # Numbers: (21, 10), (65, 8), (0, 0), (43, 0).
    expected = [[[21, 10, 32], [65, 8, 122], [0, 0, 0], [43, 0, 86]]]
    np.testing.assert_array_equal(outputs, expected)


def test_behaviors_of_each_candidate(layer, features):
    """(batch, candidates, k), as what a search retrieved."""
    own = {name: np.stack([x[:, :5], x[:, 3:8]], axis=1) for name, x in features.items()}
    expected = reference(layer, own)
    outputs = layer(own)
    assert outputs.shape == (4, 2, 5, *expected.shape[3:])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    shared = layer(features)
    np.testing.assert_allclose(outputs[:, 0], shared[:, :5], rtol=1e-6, atol=1e-6)
    assert (shared.numpy()[features["gap"] == 0] == 0).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_open_shapes_change_nothing(layer, features, jit_compile):
    signature = [dict.fromkeys(ROWS, tf.TensorSpec([None, None], tf.int32))]
    traced = tf.function(layer, input_signature=signature, jit_compile=jit_compile)
    for requests, length in ((4, 9), (1, 4), (2, 0), (0, 9)):
        part = {name: x[:requests, :length] for name, x in features.items()}
        np.testing.assert_allclose(traced(part), reference(layer, part), rtol=1e-5, atol=1e-5)


def test_padding_stays_zero_when_trained(layer, features):
    optimizer = LazyAdam(0.1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(features) ** 2)
    gradients = tape.gradient(loss, layer.trainable_variables)
    dense = [g for g in gradients if not isinstance(g, tf.IndexedSlices)]
    assert len(gradients) - len(dense) == len(ROWS)
    for gradient in gradients:
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        assert np.isfinite(values).all() and np.any(values)
    optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
    assert (layer(features).numpy()[features["gap"] == 0] == 0).all()


def test_only_padding_has_finite_gradients(layer, features):
    padding = {name: np.zeros_like(x) for name, x in features.items()}
    with tf.GradientTape() as tape:
        outputs = layer(padding)
        loss = tf.reduce_sum((outputs - 1) ** 2)
    assert (outputs.numpy() == 0).all()
    for gradient in tape.gradient(loss, layer.trainable_variables):
        assert not np.any(tf.convert_to_tensor(gradient))


@pytest.mark.parametrize("layer_class", [BehaviorFeatureEmbedding, CrossBias])
def test_initial_embeddings_are_of_stddev(layer_class):
    layer = layer_class({"gap": 2000}, dim=8, stddev=0.05)
    layer.build()
    embedding = getattr(layer, "embedding", layer)
    table = embedding.tables["gap"].embeddings.numpy()
    assert table.shape == (2000, 8) and (table[0] == 0).all()
    np.testing.assert_allclose(table[1:].std(), 0.05, rtol=0.05)


@pytest.mark.parametrize("layer_class", [BehaviorFeatureEmbedding, CrossBias])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(layer_class, features, dtype):
    layer = build(layer_class, dtype=f"mixed_{dtype}")
    outputs = layer(features)
    assert outputs.dtype == dtype
    assert all(weight.dtype == "float32" for weight in layer.weights)
    expected = reference(layer, features)
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=0.02, atol=0.1)


def test_a_saved_model_is_the_same(features, tmp_path):
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in reversed(ROWS)}
    known, bias = BehaviorFeatureEmbedding(ROWS, dim=5)(inputs), CrossBias(ROWS, 3)(inputs)
    assert (known.shape, bias.shape) == ((None, None, 10), (None, None, 3))
    model = keras.Model(inputs, [known, bias])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again(features), model(features), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a)


@pytest.mark.parametrize(
    ("layer_class", "config"),
    [
        (BehaviorFeatureEmbedding, {"dim": 5, "stddev": 0.2}),
        (CrossBias, {"num_heads": 3, "dim": 5, "stddev": 0.2}),
    ],
)
def test_config(layer_class, config):
    layer = layer_class(ROWS, **config, dtype="mixed_bfloat16")
    again = layer_class.from_config(layer.get_config())
    assert list(again.rows.items()) == list(ROWS.items())
    assert {name: getattr(again, name) for name in config} == config
    assert again.compute_dtype == "bfloat16"


@pytest.mark.parametrize("layer_class", [BehaviorFeatureEmbedding, CrossBias])
def test_wrong_stddev(layer_class):
    with pytest.raises(ValueError, match="`stddev` must be a number >= 0. Received: stddev=-1"):
        layer_class(ROWS, stddev=-1)
