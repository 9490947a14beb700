"""Pieces of models, where no test of a model tells more."""

import types

import numpy as np

from tfrec_diffusion.models.parts import with_generated_item


def test_a_generated_item_is_multiplied_with_the_target_at_unit_scale():
    target = np.random.default_rng(0).normal(3, 7, (2, 5, 6)).astype("f")
    item = np.random.default_rng(1).normal(size=(2, 6)).astype("f")
    request = types.SimpleNamespace(target=target, tower_inputs=lambda *interests: interests)
    alone, product = with_generated_item(request, item)
    np.testing.assert_array_equal(alone, item)
    mean, deviation = (f(target, axis=-1, keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(product, item[:, None] * (target - mean) / deviation, rtol=1e-4)
