import keras
import numpy as np

from tfrec_diffusion.layers.auxiliary_loss import add_mean_loss


class Penalized(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.tracker = keras.metrics.Mean(name="penalty")

    def call(self, errors, real):
        add_mean_loss(self, errors, real, 0.5, self.tracker)
        return errors


def test_padded_rows_do_not_count():
    layer = Penalized()
    layer(np.array([[1.0, 3.0], [100.0, 100.0], [4.0, 6.0]]), np.array([True, False, True]))
    np.testing.assert_allclose(layer.losses, [0.5 * 3.5])
    assert layer.tracker.result() == 3.5


def test_without_a_real_row_it_is_zero():
    layer = Penalized()
    layer(np.ones((2, 3)), np.zeros(2, bool))
    np.testing.assert_array_equal(layer.losses, [0.0])


def test_low_precision_errors_are_averaged_in_float32():
    layer = Penalized()
    layer(keras.ops.cast(np.full((300, 7), 1.0), "bfloat16"), np.ones(300, bool))
    np.testing.assert_allclose(layer.losses, [0.5])
