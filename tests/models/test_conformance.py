"""What holds for every registered model.

Each model is built once, and all of its tests run before the next one is built.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import SMALL, perturb

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam


def create(name, schema, **kwargs):
    """Embeddings so large that what a model looks at shows in its scores."""
    arguments = {"embedding_dim": 6, "embedding_stddev": 0.5, **SMALL.get(name, {})}
    return models.create(name, schema=schema, **arguments, **kwargs)


def values(model):
    """Weights, moving averages and seeds, each with its value."""
    return [(variable, variable.numpy()) for variable in model.variables]


def assign(values):
    for variable, value in values:
        variable.assign(value)


@pytest.fixture(scope="module", params=sorted(models.MODELS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model_and_initial(name, schema):
    keras.backend.clear_session()  # the model before this one is let go
    keras.utils.set_random_seed(0)
    model = create(name, schema)
    initial = values(model)
    perturb(model)
    return model, initial


@pytest.fixture
def model(model_and_initial):
    """With weights and moving averages that are not the initial ones: no bias is 0."""
    return model_and_initial[0]


@pytest.fixture
def restart(model_and_initial):
    """Gives the model its initial weights and seeds; the test's end takes them back."""
    model, initial = model_and_initial
    before = values(model)
    yield lambda: assign(initial)
    assign(before)


def test_no_feature_can_have_the_name_of_a_layer(model):
    own = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    assert own and all("." in layer.name for layer in own)


# === Inference ===


def test_scores_differ(model, make_requests):
    """Else no other test would tell anything."""
    scores = model(make_requests()).numpy()
    assert len(np.unique(scores)) == scores.size
    assert scores.std() > 0.01 and scores.min() > 1e-4 and scores.max() < 0.99


def test_padding_changes_nothing(model, schema, make_requests):
    features = make_requests(length=8)
    padded = {
        feature.name: np.pad(features[feature.name], ((0, 0), (0, 4)))
        if feature.group in ("history", "behavior")
        else features[feature.name]
        for feature in schema.features
    }
    np.testing.assert_allclose(model(features), model(padded), rtol=1e-5, atol=1e-6)


def test_requests_do_not_see_each_other(model, make_requests):
    # As many behaviors as heads: of one request alone, `ops.add` may take either for a bias.
    features = make_requests(length=4)
    alone = model({key: value[3:4] for key, value in features.items()})
    np.testing.assert_allclose(model(features)[3:4], alone, rtol=1e-5, atol=1e-6)


def test_a_hundred_candidates_equal_one_at_a_time(model, schema, make_requests):
    """Requests do not see each other: a hundred of one candidate are as many calls."""
    features = make_requests(batch=4, candidates=100)
    alone = {
        f.name: features[f.name].reshape(400, 1)
        if f.group == "candidate"
        else np.repeat(features[f.name], 100, axis=0)
        for f in schema.features
    }
    expected = np.reshape(model(alone), (4, 100))
    np.testing.assert_allclose(model(features), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_history_is_finite(model, schema, make_requests):
    features = make_requests()
    of_behaviors = schema.group("history", "behavior")
    nothing = {f.name: features[f.name] * (f not in of_behaviors) for f in schema.features}
    scores = model(nothing)
    assert np.isfinite(scores).all()
    no_length = {f.name: nothing[f.name][:, :0] for f in of_behaviors}
    np.testing.assert_allclose(model({**nothing, **no_length}), scores, rtol=1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(nothing, training=True))
    for gradient in tape.gradient(loss, model.trainable_weights):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_no_candidates_and_no_requests_have_no_scores(model, make_requests):
    for size in ((4, 0), (0, 3)):
        assert model(make_requests(*size)).shape == size


def test_what_serving_asks_for_is_what_counts(model, schema, make_requests):
    """A model's `behavior_features`, and they alone, change its scores."""
    features = make_requests(candidates=1)
    used = features["history_item"] > 0
    # Of the candidate's category, so that a search by it finds some.
    features["history_category"] = features["category"] * used
    scores = model(features)
    for feature in schema.group("behavior"):
        rows = schema.table(feature.table).rows
        other = np.random.default_rng(1).integers(2, rows, used.shape, "int32") * used
        changed = np.abs(model({**features, feature.name: other}) - scores).max() > 0
        assert changed == (feature.name in model.behavior_features)


def test_mixed_precision_scores_nearly_the_same(name, model, schema, make_requests):
    features = make_requests()
    mixed = create(name, schema, dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    scores, expected = mixed(features), model(features).numpy()
    assert scores.dtype == "float32"
    # On average: rounding may send one behavior of DiffuMIN to another channel.
    assert np.abs(scores - expected).mean() < 0.05 * expected.std()
    policy = keras.saving.deserialize_keras_object(mixed.get_config()["dtype"])
    assert policy.name == "mixed_bfloat16"
    mixed.compile(keras.optimizers.SGD(0.1), LogLoss(), run_eagerly=True)
    mixed.train_on_batch(features, (features["item"] % 2).astype("f"))
    dtypes = {weight.dtype for weight in mixed.weights}
    assert dtypes - {"int32"} == {"float32"}  # a count of steps is no float


def test_keras_round_trip(model, schema, make_requests, tmp_path):
    features = make_requests()
    model.compile(LazyAdam(0.02), LogLoss(), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.get_config() == model.get_config()
    assert loaded.schema == schema
    np.testing.assert_array_equal(loaded(features), model(features))
    assert loaded.optimizer.learning_rate == model.optimizer.learning_rate


# === Training ===


@pytest.fixture
def constant_noise(monkeypatch):
    """The same for every candidate, however many there are."""

    def uniform(shape, seed, low=0, high=1, dtype=tf.float32, alg=None):
        middle = (low + high) // 2 if dtype == tf.int32 else (low + high) / 2
        return tf.fill(shape, tf.cast(middle, dtype))

    monkeypatch.setattr(tf.random, "stateless_uniform", uniform)
    monkeypatch.setattr(tf.random, "stateless_normal", lambda shape, seed, alg: tf.ones(shape))


def test_padded_candidates_count_for_nothing(model, restart, constant_noise, schema, make_requests):
    features = make_requests(candidates=3)
    label = (features["item"] % 2).astype("f")
    real = np.ones_like(label)
    of_candidates = {f.name for f in schema.group("candidate")}
    weights = []
    for padding in (0, 2):
        around = ((0, 0), (0, padding))
        restart()
        model.compile(keras.optimizers.SGD(0.1), LogLoss(), run_eagerly=True)
        model.train_on_batch(
            {k: np.pad(v, around) if k in of_candidates else v for k, v in features.items()},
            np.pad(label, around, constant_values=1),
            sample_weight=np.pad(real, around),
        )
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
