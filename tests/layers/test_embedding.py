import tensorflow as tf

from tfrec_diffusion.layers.embedding import TableEmbedding
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
