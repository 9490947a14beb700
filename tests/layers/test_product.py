import numpy as np

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
