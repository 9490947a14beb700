"""Pieces of models, where no test of a model tells more."""

import types

import numpy as np

from tfrec_diffusion import models
from tfrec_diffusion.models.parts import with_generated_item


def test_a_generated_item_is_multiplied_with_the_target_at_unit_scale():
    target = np.random.default_rng(0).normal(3, 7, (2, 5, 6)).astype("f")
    item = np.random.default_rng(1).normal(size=(2, 6)).astype("f")
    request = types.SimpleNamespace(target=target, tower_inputs=lambda *interests: interests)
    alone, product = with_generated_item(request, item)
    np.testing.assert_array_equal(alone, item)
    mean, deviation = (f(target, axis=-1, keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(product, item[:, None] * (target - mean) / deviation, rtol=1e-4)


def test_din_sees_what_is_known_of_behaviors_where_it_is_told_to(schema, make_requests):
    features = make_requests()
    used = features["history_item"] > 0
    other = {**features, "history_gap": np.where(features["history_gap"] == 2, 3, 2) * used}
    for cross_features in ((), ("history_gap",), None):
        model = models.create(
            "din", schema=schema, cross_features=cross_features, embedding_stddev=0.3
        )
        moved = np.abs(model(other) - model(features)).max()
        assert (moved > 1e-6) == ("history_gap" in model.behavior_features)
        assert ("history_gap" in model.behavior_features) == (cross_features != ())
        copy = type(model).from_config(model.get_config())
        assert copy.behavior_features == model.behavior_features
