"""Features of several values, numbers and vectors: every model takes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import SMALL

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam


@pytest.fixture(scope="module", params=sorted(set(models.MODELS) - {"twin_v2"}))
def model(request, rich_schema):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    arguments = {"embedding_stddev": 0.5, "embedding_dim": 4, **SMALL.get(request.param, {})}
    return models.create(request.param, schema=rich_schema, **arguments)


def test_scores_change_with_each_of_them(model, make_rich_requests):
    features = make_rich_requests()
    scores = model(features).numpy()
    assert scores.shape == (16, 3) and np.isfinite(scores).all()
    for name in ("likes", "age", "mood", "tags", "price", "image"):
        changed = {**features, name: features[name][::-1]}
        assert np.abs(model(changed).numpy() - scores).max() > 1e-5, name


def test_padding_changes_nothing(model, make_rich_requests):
    features = make_rich_requests(length=10)
    longer = {
        name: np.pad(x, [(0, 0), (0, 2), *[(0, 0)] * (x.ndim - 2)], constant_values=constant)
        if name.startswith("history")
        else x
        for name, x in features.items()
        for constant in [0 if x.dtype == "int32" or name == "history_item" else 7.0]
    }
    np.testing.assert_allclose(model(longer), model(features), rtol=1e-4, atol=1e-5)


def test_trains(model, make_rich_requests):
    features = make_rich_requests(batch=32)
    labels = np.random.default_rng(0).integers(0, 2, (32, 3)).astype("f")
    model.compile(LazyAdam(), LogLoss(), jit_compile=False)
    before = {w.path: w.numpy() for w in model.trainable_weights if "table." in w.path}
    history = model.fit(
        tf.data.Dataset.from_tensors((features, labels, np.ones_like(labels))), verbose=0
    )
    assert np.isfinite(history.history["loss"]).all()
    for weight in model.trainable_weights:
        if weight.path in before:
            assert np.abs(weight.numpy() - before[weight.path]).max() > 0, weight.path
