"""The models that see the newest behaviors alone."""

import numpy as np
import pytest

from tfrec_diffusion import models

SEEN = 4
SMALL = {"diffurec": {"sampling_steps": 2}, "dreamrec": {"sampling_steps": 2}}


@pytest.mark.parametrize("name", ["din", "can", "dien", "diffurec", "dreamrec"])
def test_behaviors_older_than_max_length_change_nothing(name, schema, make_requests):
    arguments = {**SMALL.get(name, {}), "embedding_stddev": 0.5}
    model = models.create(name, schema=schema, max_length=SEEN, **arguments)
    features = make_requests()
    used = (features["history_item"] > 0).sum(axis=1, keepdims=True)
    seen = np.arange(12) >= used - SEEN
    of_behaviors = {f.name for f in schema.group("history", "behavior")}
    other = {
        key: np.where(seen, value, np.where(value > 2, 2, 3)) if key in of_behaviors else value
        for key, value in features.items()
    }
    np.testing.assert_allclose(model(other), model(features), rtol=1e-6)
    every = models.create(name, schema=schema, max_length=12, **arguments)
    differ = (np.abs(every(other) - every(features)) > 1e-7).any(axis=1)
    np.testing.assert_array_equal(differ, used[:, 0] > SEEN)


@pytest.mark.parametrize("name", ["din", "can"])
def test_without_max_length_all_are_seen(name, schema, make_requests):
    features = make_requests()
    every, longest = (
        models.create(name, schema=schema, max_length=max_length) for max_length in (None, 12)
    )
    longest.set_weights(every.get_weights())
    np.testing.assert_allclose(longest(features), every(features), rtol=1e-5)


@pytest.mark.parametrize("name", ["din", "can", "dien", "diffurec", "dreamrec"])
def test_wrong_max_length(name, schema):
    with pytest.raises(ValueError, match="must be a positive integer"):
        models.create(name, schema=schema, max_length=0)
