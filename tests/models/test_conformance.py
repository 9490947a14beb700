"""What holds for every registered model."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import SMALL, perturb

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

pytestmark = pytest.mark.parametrize("name", sorted(models.MODELS))

# Their noise in training is another one under XLA, from the same seed: epochs drift apart.
NOISY = {"dien", "diffumin", "diffurec", "dreamrec", "hierdiffuse"}


def create(name, schema, **kwargs):
    return models.create(name, schema=schema, **{**SMALL.get(name, {}), **kwargs})


def perturbed(name, schema, **kwargs):
    """A compiled model with weights and moving averages that are not the initial ones."""
    model = create(name, schema, **kwargs)
    perturb(model)
    model.compile(LazyAdam(0.02), LogLoss(), jit_compile=False)
    return model


def candidates(schema, features, selection):
    names = {feature.name for feature in schema.group("candidate")}
    return {
        name: value[:, selection] if name in names else value for name, value in features.items()
    }


@pytest.mark.slow
def test_fit_lowers_the_loss_with_xla_and_without(name, schema, make_requests):
    features = make_requests(batch=64, candidates=1)
    label = (features["item"] % 2).astype("f")

    def open_shape(x):
        """As the input pipeline's."""
        return tf.raw_ops.PlaceholderWithDefault(input=x, shape=[None] * len(x.shape))

    data = tf.data.Dataset.from_tensor_slices((features, label)).batch(32)
    data = data.map(lambda *parts: keras.tree.map_structure(open_shape, parts))
    losses = {}
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = create(name, schema=schema)
        model.compile(
            LazyAdam(0.02),
            LogLoss(),
            weighted_metrics=[keras.metrics.AUC(name="auc")],
            jit_compile=jit_compile,
        )
        history = model.fit(data, epochs=4, shuffle=False, verbose=0)
        losses[jit_compile] = history.history["loss"]
        assert losses[jit_compile][-1] < losses[jit_compile][0]
        assert history.history["auc"][-1] > 0.6
        np.testing.assert_allclose(
            model.predict_on_batch(features), model(features), rtol=1e-4, atol=1e-5
        )
    compared = slice(1) if name in NOISY else slice(None)
    rtol = 0.2 if name in NOISY else 1e-3
    np.testing.assert_allclose(losses[True][compared], losses[False][compared], rtol=rtol)


def test_padding_changes_nothing(name, schema, make_requests):
    features = make_requests(length=8)
    model = perturbed(name, schema)
    padded = {
        feature.name: np.pad(features[feature.name], ((0, 0), (0, 4)))
        if feature.group in ("history", "behavior")
        else features[feature.name]
        for feature in schema.features
    }
    np.testing.assert_allclose(model(features), model(padded), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_padded_candidates_count_for_nothing(name, schema, make_requests):
    features = make_requests(candidates=5)
    real = np.arange(5) < np.random.default_rng(0).integers(1, 6, (16, 1))
    features = {
        f.name: features[f.name] * real if f.group == "candidate" else features[f.name]
        for f in schema.features
    }
    weights = []
    for junk in (0.0, 1.0):
        keras.utils.set_random_seed(0)
        model = create(name, schema=schema)
        model.compile(LazyAdam(0.02), LogLoss(), jit_compile=False)
        label = np.where(real, features["item"] % 2, junk)
        model.fit(features, label, sample_weight=real.astype("f"), verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_hundred_candidates_equal_one_at_a_time(name, schema, make_requests):
    features = make_requests(batch=4, candidates=100)
    model = perturbed(name, schema)
    together = model(features)
    alone = [model(candidates(schema, features, slice(i, i + 1))) for i in range(100)]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), rtol=1e-5, atol=1e-6)


def test_requests_do_not_see_each_other(name, schema, make_requests):
    # As many behaviors as heads: of one request alone, `ops.add` may take either for a bias.
    features = make_requests(length=4)
    model = perturbed(name, schema)
    alone = model({key: value[3:4] for key, value in features.items()})
    np.testing.assert_allclose(model(features)[3:4], alone, rtol=1e-5, atol=1e-6)


def test_an_empty_history_is_finite(name, schema, make_requests):
    features = make_requests()
    model = perturbed(name, schema)
    of_behaviors = schema.group("history", "behavior")
    nothing = {f.name: features[f.name] * (f not in of_behaviors) for f in schema.features}
    no_length = make_requests(length=0)
    assert np.isfinite(model(nothing)).all()
    np.testing.assert_allclose(
        model({**nothing, **{k: v for k, v in no_length.items() if k.startswith("history")}}),
        model(nothing),
        rtol=1e-5,
    )
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(nothing, training=True))
    for gradient in tape.gradient(loss, model.trainable_weights):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_no_candidates_and_no_requests_have_no_scores(name, schema, make_requests):
    model = create(name, schema)
    for size in ((4, 0), (0, 3)):
        assert model(make_requests(*size)).shape == size


def test_keras_round_trip(name, schema, make_requests, tmp_path):
    features = make_requests()
    model = perturbed(name, schema, embedding_dim=6, dropout=0.1)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.get_config() == model.get_config()
    assert loaded.schema == schema
    np.testing.assert_array_equal(loaded(features), model(features))
    assert loaded.optimizer.learning_rate == model.optimizer.learning_rate


def test_mixed_precision_scores_nearly_the_same(name, schema, make_requests):
    features = make_requests()
    model = perturbed(name, schema)
    mixed = create(name, schema=schema, dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    scores = mixed(features)
    assert scores.dtype == "float32"
    np.testing.assert_allclose(scores, model(features), atol=0.03)
    mixed.compile(LazyAdam(), LogLoss(), jit_compile=False)
    mixed.fit(features, (features["item"] % 2).astype("f"), verbose=0)
    dtypes = {weight.dtype for weight in mixed.weights}
    assert dtypes - {"int32"} == {"float32"}  # a count of steps is no float


def test_wrong_arguments_are_refused(name, schema):
    with pytest.raises(ValueError, match="`units` must be positive"):
        create(name, schema=schema, tower_units=())
    with pytest.raises(ValueError, match="`activation` must be"):
        create(name, schema=schema, activation="tanh")
    with pytest.raises(ValueError, match="`dropout` must be in"):
        create(name, schema=schema, dropout="high")
    with pytest.raises(ValueError, match="`dim` must be a positive integer"):
        create(name, schema=schema, embedding_dim="wide")
    with pytest.raises(ValueError, match="`stddev` must be a number"):
        create(name, schema=schema, embedding_stddev=-1)


def test_a_feature_may_have_any_name(name, schema):
    features = [
        dataclasses.replace(feature, name=new)
        for feature, new in zip(schema.features, ("tower", "logit", "attention"), strict=False)
    ]
    create(name, schema=dataclasses.replace(schema, features=(*features, *schema.features[3:])))
