"""What all models share: the registry, requests, and `RankingModel`."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.models import RankingModel
from tfrec_diffusion.schema import Feature


def test_an_unknown_model_lists_those_there_are(schema):
    with pytest.raises(
        ValueError,
        match=r"one of \['avg_pooling', 'can', 'dien', .*'twin', 'twin_v2'\]. Received: 'dinn'",
    ):
        models.create("dinn", schema=schema)


def test_a_request_is_embedded_by_groups_and_tied_tables(schema, make_requests):
    seen = []

    def tower_inputs(request):
        seen.append(request)
        return request.tower_inputs()

    model = RankingModel(schema, tower_inputs)
    features = make_requests(batch=2, candidates=3, length=4)
    features["item"][0, 2] = 0  # padding
    names = ("user", "context", "candidate", "candidate_other", "target", "history")
    names += ("candidate_mask", "history_mask")
    request = keras.Model(model.input, {name: getattr(seen[0], name) for name in names})(features)
    tables = {name: table.embeddings.numpy() for name, table in model.tables.items()}

    def look_up(*pairs):
        return np.concatenate([tables[table][features[name]] for name, table in pairs], axis=-1)

    candidate = (("item", "item"), ("category", "category"))
    np.testing.assert_array_equal(request["user"], look_up(("user", "user")))
    np.testing.assert_array_equal(request["context"], look_up(("hour", "hour")))
    np.testing.assert_array_equal(request["candidate"], look_up(*candidate, ("price", "price")))
    np.testing.assert_array_equal(request["candidate_other"], look_up(("price", "price")))
    np.testing.assert_array_equal(
        request["history"],
        look_up(
            ("history_item", "item"), ("history_category", "category"), ("history_hour", "hour")
        ),
    )
    hour = np.repeat(look_up(("hour", "hour"))[:, None], 3, axis=1)
    target = np.concatenate([look_up(*candidate), hour], axis=-1)
    np.testing.assert_array_equal(request["target"], target)
    np.testing.assert_array_equal(request["candidate_mask"], features["item"] != 0)
    np.testing.assert_array_equal(request["history_mask"], features["history_item"] != 0)


def test_a_context_feature_may_be_compared_with_several_of_the_history(schema, make_requests):
    features = [*schema.features, Feature("history_time", "history", "hour")]
    schema = dataclasses.replace(schema, features=features)
    requests = make_requests()
    requests["history_time"] = requests["history_hour"]
    model = models.create("din", schema=schema)
    assert np.isfinite(model(requests)).all()


def test_one_table_per_schema_table_but_those_of_behaviors_alone(schema):
    model = models.create("avg_pooling", schema=schema)
    *embedded, gap, size = schema.tables
    assert (gap.name, size.name) == ("gap", "size")
    shapes = [table.embeddings.shape for table in model.tables.values()]
    assert shapes == [(table.rows, table.dim) for table in embedded]


# === Steps ===


def by_numpy(x):
    """The same tensor, by way of Python, which XLA cannot compile."""
    return tf.ensure_shape(tf.numpy_function(np.copy, [x], x.dtype), x.shape)


class OnHost(keras.layers.Layer):
    def call(self, x):
        return x * by_numpy(tf.ones_like(x))

    def compute_output_shape(self, shape):
        return shape


class SGDOnHost(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, by_numpy(learning_rate))


def train(schema, features, layer, optimizer, **how):
    """A model that passes the candidates through a layer, after a step."""
    model = RankingModel(schema, lambda request: request.tower_inputs(layer(request.candidate)))
    model.compile(optimizer, LogLoss(), **how)
    model.train_on_batch(features, (features["item"] % 2).astype("f"))
    return model


def test_xla_compiles_both_passes_and_not_the_optimizer(schema, make_requests):
    features = make_requests()
    compiled = train(schema, features, keras.layers.Identity(), SGDOnHost(0.1), jit_compile=True)
    assert compiled.optimizer.iterations == 1
    plain = train(schema, features, OnHost(), SGDOnHost(0.1), jit_compile=False)
    plain.inference_function(features)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        train(schema, features, OnHost(), keras.optimizers.SGD(0.1), jit_compile=True)
    model = RankingModel(schema, lambda request: request.tower_inputs(OnHost()(request.candidate)))
    model.compile(jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        model.inference_function(features)
    model.compile(loss=LogLoss(), jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        model.evaluate(features, (features["item"] % 2).astype("f"), verbose=0)


def test_run_eagerly_runs_eagerly(schema, make_requests):
    seen = []

    class Watched(keras.layers.Layer):
        def call(self, x):
            seen.append(tf.executing_eagerly())
            return x

    train(schema, make_requests(), Watched(), keras.optimizers.SGD(0.1), run_eagerly=True)
    assert seen[-1]


def test_the_loss_of_an_epoch_is_the_mean_over_real_candidates(schema, make_requests):
    features = make_requests(batch=4, candidates=4)
    label = (features["item"] % 2).astype("f")
    real = (np.arange(4) < [[4], [4], [1], [1]]).astype("f")
    model = models.create("avg_pooling", schema=schema, activation="relu", embedding_stddev=0.5)
    model.compile(keras.optimizers.SGD(0.0), LogLoss(), run_eagerly=True)
    data = tf.data.Dataset.from_tensor_slices((features, label, real)).batch(2)
    (loss,) = model.fit(data, shuffle=False, verbose=0).history["loss"]
    scores = model(features).numpy()
    errors = -np.log(np.where(label == 1, scores, 1 - scores))
    assert loss == pytest.approx((errors * real).sum() / real.sum(), rel=1e-5)


# === Arguments ===


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("avg_pooling", {"tower_units": ()}, "`units` must be positive"),
        ("avg_pooling", {"activation": "tanh"}, "`activation` must be"),
        ("avg_pooling", {"dropout": "high"}, "`dropout` must be in"),
        ("avg_pooling", {"embedding_dim": "wide"}, "`dim` must be a positive integer"),
        ("avg_pooling", {"embedding_stddev": -1}, "`stddev` must be a number"),
        # Arguments that a model takes for layers of its own as well.
        ("din", {"activation": "tanh"}, "`activation` must be"),
        ("twin", {"embedding_stddev": -1}, "`stddev` must be a number"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(name, wrong, message, schema):
    with pytest.raises(ValueError, match=message):
        models.create(name, schema=schema, **wrong)


def test_a_feature_may_have_any_name(schema):
    """Layers of models have a dot in their names: see `test_conformance.py`."""
    features = [
        dataclasses.replace(feature, name=new)
        for feature, new in zip(schema.features, ("tower", "logit", "attention"), strict=False)
    ]
    renamed = dataclasses.replace(schema, features=(*features, *schema.features[3:]))
    models.create("din", schema=renamed)
