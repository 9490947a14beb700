import numpy as np
import pytest

from tfrec_diffusion.layers.product import TargetProduct


def test_product_of_the_mapped_interest_and_each_candidate():
    rng = np.random.default_rng(0)
    interest, target = rng.normal(size=(4, 5)).astype("f"), rng.normal(size=(4, 3, 6)).astype("f")
    layer = TargetProduct()
    outputs = layer(interest, target).numpy()
    mapped = interest @ layer.kernel.numpy()
    for request, candidate in np.ndindex(4, 3):
        expected = mapped[request] * target[request, candidate]
        np.testing.assert_allclose(outputs[request, candidate], expected, rtol=1e-5)


def hidden(layer, interest, mean, deviation):
    x = (interest - mean) / deviation
    for dense in layer.dense:
        x = np.maximum(x @ dense.kernel.numpy() + dense.bias.numpy(), 0)
    return x @ layer.kernel.numpy()


def test_hidden_layers_see_what_tells_users_apart():
    """Means over long histories: all nearly alike."""
    rng = np.random.default_rng(0)
    interest = (0.3 + 1e-3 * rng.normal(size=(64, 5))).astype("f")
    target = rng.normal(size=(64, 3, 6)).astype("f")
    layer = TargetProduct((8, 4))
    layer.build(interest.shape, target.shape)
    mean, deviation = interest.mean(axis=0), interest.std(axis=0)
    expected = hidden(layer, interest, mean, deviation)[:, None] * target
    assert np.ptp(expected, axis=0).max() > 0.5
    outputs = layer(interest, target, training=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3)

    # At inference it does not matter who else is in the batch.
    for _ in range(100):
        layer(interest, target, training=True)
    alone = layer(interest[:1], target[:1])
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-2, atol=1e-2)


def test_widths_are_positive():
    with pytest.raises(ValueError, match="`units` must be a positive integer. Received: units=0"):
        TargetProduct((8, 0))
