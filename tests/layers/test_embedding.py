import numpy as np
import tensorflow as tf

from tfrec_diffusion.layers.embedding import RequestEmbedding, TableEmbedding
from tfrec_diffusion.optimizers import LazyAdam


def test_padding_row_is_zero_and_stays_zero():
    layer = TableEmbedding(rows=5, dim=3)
    indices = tf.constant([[0, 2], [4, 0]])
    layer.build()
    assert (layer.embeddings.numpy()[0] == 0).all()
    optimizer = LazyAdam(0.1)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(indices) - 1.0))
        gradient = tape.gradient(loss, layer.trainable_weights)
        assert isinstance(gradient[0], tf.IndexedSlices)
        optimizer.apply_gradients(zip(gradient, layer.trainable_weights, strict=True))
    assert (layer.embeddings.numpy()[0] == 0).all()
    assert (layer(indices).numpy()[0, 0] == 0).all()
    assert (layer.embeddings.numpy()[2] > 0).all()


def test_groups_are_concatenated_and_tables_are_tied(schema, make_requests):
    features = make_requests(batch=2, candidates=3, length=4)
    layer = RequestEmbedding(schema)
    outputs = layer(features)
    tables = {name: table.embeddings.numpy() for name, table in layer.tables.items()}

    def look_up(*pairs):
        return np.concatenate([tables[table][features[name]] for name, table in pairs], axis=-1)

    np.testing.assert_array_equal(outputs["request"], look_up(("user", "user"), ("hour", "hour")))
    np.testing.assert_array_equal(
        outputs["candidate"],
        look_up(("item", "item"), ("category", "category"), ("price", "price")),
    )
    np.testing.assert_array_equal(
        outputs["history"],
        look_up(
            ("history_item", "item"), ("history_category", "category"), ("history_hour", "hour")
        ),
    )
    hour = np.repeat(look_up(("hour", "hour"))[:, None], 3, axis=1)
    target = np.concatenate([look_up(("item", "item"), ("category", "category")), hour], axis=-1)
    np.testing.assert_array_equal(outputs["target"], target)
    np.testing.assert_array_equal(outputs["history_mask"], features["history_item"] != 0)


def test_one_table_per_schema_table_but_those_of_behaviors_alone(schema, make_requests):
    layer = RequestEmbedding(schema)
    layer(make_requests())
    *embedded, gap, size = schema.tables
    assert (gap.name, size.name) == ("gap", "size")
    assert [w.shape for w in layer.trainable_weights] == [(t.rows, t.dim) for t in embedded]
