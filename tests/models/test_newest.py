"""The models that see the newest behaviors alone."""

import numpy as np
import pytest

from tfrec_diffusion import models

SEEN = 4
SMALL = {"diffurec": {"sampling_steps": 2}, "dreamrec": {"sampling_steps": 2}}


def create(name, schema, **kwargs):
    """Embeddings so large that what a model looks at shows."""
    arguments = {"embedding_stddev": 0.5, **SMALL.get(name, {})}
    return models.create(name, schema=schema, **arguments, **kwargs)


def replaced_before(features, newest):
    """Other behaviors where there are more than so many of the newest."""
    used = (features["history_item"] > 0).sum(axis=1, keepdims=True)
    older = np.arange(12) < used - newest
    return {
        name: np.where(older, np.where(value > 2, 2, 3), value) if "history" in name else value
        for name, value in features.items()
    }


@pytest.mark.parametrize("name", ["din", "can", "dien", "diffurec", "dreamrec"])
def test_max_length_behaviors_are_seen_and_no_older_ones(name, schema, make_requests):
    model = create(name, schema, max_length=SEEN)
    features = make_requests()
    scores = model(features)
    np.testing.assert_allclose(model(replaced_before(features, SEEN)), scores, rtol=1e-6)
    changed = np.abs(model(replaced_before(features, SEEN - 1)) - scores) > 1e-7
    used = (features["history_item"] > 0).sum(axis=1)
    np.testing.assert_array_equal(changed.any(axis=1), used >= SEEN)


@pytest.mark.parametrize("name", ["din", "can"])
def test_without_max_length_all_are_seen(name, schema, make_requests):
    features = make_requests()
    model = create(name, schema)
    changed = np.abs(model(replaced_before(features, 11)) - model(features)) > 1e-7
    used = (features["history_item"] > 0).sum(axis=1)
    assert (used == 12).any()
    np.testing.assert_array_equal(changed.any(axis=1), used == 12)


@pytest.mark.parametrize("name", ["din", "can", "dien", "diffurec", "dreamrec"])
def test_wrong_max_length(name, schema):
    with pytest.raises(ValueError, match="`max_length` must be a positive integer. Received: .*=0"):
        models.create(name, schema=schema, max_length=0)
