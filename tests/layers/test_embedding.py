import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers import embedding
from tfrec_diffusion.layers.embedding import MeanOfValues, NumberEmbedding, TableEmbedding
from tfrec_diffusion.optimizers import LazyAdam


@pytest.fixture
def make(monkeypatch):
    """A layer built as if under a strategy with so many parameter servers."""

    def make(servers, rows=8, dim=3):
        monkeypatch.setattr(embedding, "_parameter_servers", lambda: servers)
        monkeypatch.setattr(embedding, "_SPREAD_FROM_BYTES", 8 * 3 * 4)
        layer = TableEmbedding(rows, dim)
        layer.build()
        return layer

    return make


@pytest.mark.parametrize("servers", [0, 3])
def test_padding_row_is_zero_and_stays_zero(make, servers):
    layer = make(servers)
    indices = tf.constant([[0, 2], [4, 0]])
    assert (layer.parts[0].numpy()[0] == 0).all()
    optimizer = LazyAdam(0.1)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(indices) - 1.0))
        gradients = tape.gradient(loss, layer.trainable_weights)
        assert all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
        optimizer.apply_gradients(zip(gradients, layer.trainable_weights, strict=True))
    assert (layer.parts[0].numpy()[0] == 0).all()
    assert (layer(indices).numpy()[0, 0] == 0).all()
    assert (layer(indices).numpy()[0, 1] > 0.2).all()


def test_parts_have_every_kth_row_each_with_values_of_its_own(make):
    layer = make(servers=3)
    assert [part.shape for part in layer.parts] == [(3, 3), (3, 3), (2, 3)]
    drawn = np.concatenate([part.numpy() for part in layer.parts])
    assert len(np.unique(drawn)) == 7 * 3 + 1, "all rows differ, row 0 is zero"
    with pytest.raises(AttributeError, match="has 3 `parts`"):
        _ = layer.embeddings


def test_small_tables_stay_whole(make):
    layer = make(servers=3, rows=7)
    assert [weight.name for weight in layer.weights] == ["embeddings"]
    assert layer.embeddings is layer.parts[0]


@pytest.mark.parametrize(("servers", "parts"), [(0, 1), (1, 3), (2, 4), (3, 3), (4, 4)])
def test_no_part_is_too_large_to_be_sent(make, monkeypatch, servers, parts):
    monkeypatch.setattr(embedding, "_PART_BYTES", 3 * 3 * 4)
    assert len(make(servers).parts) == parts


def test_only_parameter_servers_have_tables_spread(monkeypatch):
    monkeypatch.setattr(embedding, "_SPREAD_FROM_BYTES", 0)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        layer = TableEmbedding(8, 3)
        layer.build()
    assert layer.embeddings.shape == (8, 3)


def test_parts_look_up_and_have_gradients_as_the_table(make):
    table = np.arange(1.0, 25).reshape(8, 3).astype("f")
    table[0] = 0
    layer = make(servers=3)
    layer.load_own_variables({"0": table})
    indices = np.array([[3, 7, 3], [0, 1, 6]])
    factors = np.arange(18.0).reshape(2, 3, 3).astype("f")
    with tf.GradientTape() as tape:
        embedded = layer(indices)
        loss = tf.reduce_sum(embedded * factors)
    np.testing.assert_array_equal(embedded, table[indices])

    expected = np.zeros_like(table)
    np.add.at(expected, indices, factors)
    expected[0] = 0
    for part, gradient in enumerate(tape.gradient(loss, layer.parts)):
        assert set(gradient.indices.numpy()) == {i // 3 for i in indices.flat if i % 3 == part}
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient), expected[part::3])


@pytest.mark.parametrize(("before", "after"), [(3, 0), (3, 2), (0, 3)])
def test_files_hold_the_table_in_order_of_rows(make, tmp_path, before, after):
    indices = np.arange(8)
    path = tmp_path / "model.weights.h5"

    def model(servers):
        return keras.Sequential([keras.Input((8,), dtype="int32"), make(servers)])

    saved, loaded = model(before), model(after)
    saved.save_weights(path)
    loaded.load_weights(path)
    np.testing.assert_array_equal(loaded.layers[0](indices), saved.layers[0](indices))

    store = {}
    saved.layers[0].save_own_variables(store)
    assert store.keys() == {"0"} and store["0"].shape == (8, 3)
    np.testing.assert_array_equal(store["0"], saved.layers[0](indices))


def test_files_of_other_tables_are_refused(make):
    with pytest.raises(ValueError, match="shape"):
        make(servers=3).load_own_variables({"0": np.zeros((9, 3), "f")})


class TestCompressed:
    """Tables in fewer bytes, for inference."""

    @pytest.fixture
    def table(self):
        layer = TableEmbedding(6, 4, stddev=1.0)
        layer.build()
        rows = layer.embeddings.numpy()
        rows[3] *= 1000
        rows[4] = 0
        layer.embeddings.assign(rows)
        return layer, rows

    def test_int8_is_right_to_half_a_step_of_its_row(self, table):
        layer, rows = table
        layer.compress("int8")
        found = layer(np.arange(6)).numpy()
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        assert (np.abs(found - rows) <= step / 2 * 1.001).all()
        assert np.abs(found - rows).max() > 0 and not found[0].any() and not found[4].any()
        assert [weight.dtype for weight in layer.weights] == ["float32", "int8"]
        assert layer.trainable_weights == []

    def test_bfloat16_has_eight_bits(self, table):
        layer, rows = table
        layer.compress("bfloat16")
        found = layer(np.arange(6)).numpy()
        np.testing.assert_allclose(found, rows, rtol=2**-8)
        assert found.dtype == "float32" and (found != rows).any()
        assert [weight.dtype for weight in layer.weights] == ["bfloat16"]

    def test_once_and_to_what_there_is(self, table):
        layer, _ = table
        with pytest.raises(ValueError, match="one of .*'int8'.*Received: 'int4'"):
            layer.compress("int4")
        layer.compress("int8")
        with pytest.raises(ValueError, match="must be one table of float32"):
            layer.compress("int8")


class TestNumbers:
    def test_a_number_is_standardized_and_mapped(self):
        layer = NumberEmbedding(2, mean=3.0, deviation=2.0)
        x = np.array([[3.0, 5.0], [-1.0, np.nan]], "f")
        embedded = layer(x).numpy()
        (kernel,), bias, missing = (w.numpy() for w in layer.weights)
        expected = [[bias, kernel + bias], [-2 * kernel + bias, missing]]
        np.testing.assert_allclose(embedded, expected, rtol=1e-6)
        assert not np.allclose(missing, bias)

    def test_a_vector_lacks_as_a_whole(self):
        layer = NumberEmbedding(2, width=3, deviation=0.5)
        x = np.array([[[1, 2, 3], [1, np.nan, 3]]], "f")
        embedded = layer(x).numpy()
        kernel, bias, missing = (w.numpy() for w in layer.weights)
        expected = [[2 * x[0, 0] @ kernel + bias, missing]]
        np.testing.assert_allclose(embedded, expected, rtol=1e-5)

    def test_wild_numbers_count_as_ten_deviations(self):
        layer = NumberEmbedding(2, deviation=2.0)
        wild, ten = layer(np.array([-1e30, -20], "f")).numpy()
        np.testing.assert_array_equal(wild, ten)

    def test_what_is_missing_sends_no_gradient_to_the_map(self):
        layer = NumberEmbedding(2)
        x = tf.constant([np.nan, np.nan])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        kernel, bias, missing = tape.gradient(loss, layer.trainable_weights)
        assert not kernel.numpy().any() and not bias.numpy().any()
        np.testing.assert_array_equal(missing, [2, 2])


def test_mean_of_values_leaves_padding_out():
    embedded = np.array([[[1, 2], [3, 6], [0, 0]], [[0, 0]] * 3], "f")
    rows = np.array([[4, 7, 0], [0, 0, 0]])
    np.testing.assert_allclose(MeanOfValues()(embedded, rows), [[2, 4], [0, 0]])
