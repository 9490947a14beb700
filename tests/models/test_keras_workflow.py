"""`compile`, `fit`, `evaluate` and `predict` of grouped requests, as users of Keras know them.

Three requests with three candidates, one and one. Their click probabilities and labels:

    0.9 clicked   0.6   0.2 clicked
    0.7 clicked
    0.4
"""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.models import RankingModel
from tfrec_diffusion.schema import Feature, Schema, Table

PROBABILITIES = [0.9, 0.6, 0.2, 0.7, 0.4]  # of items 2 to 6
FEATURES = {
    "item": np.array([[2, 3, 4], [5, 0, 0], [6, 0, 0]], "int32"),
    "history_item": np.zeros((3, 2), "int32"),
}
LABELS = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]], "float32")
WEIGHTS = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0]], "float32")

LOSSES = -np.log([0.9, 0.4, 0.2, 0.7, 0.6])
# Those predicted to be clicked are 0.9, 0.6 and 0.7. Of the six pairs of a click and a non-click,
# 0.9 and 0.7 win both of theirs, 0.2 loses both.
EXPECTED = {
    "accuracy": 3 / 5,
    "binary_accuracy": 3 / 5,
    "precision": 2 / 3,
    "recall": 2 / 3,
    "auc": 4 / 6,
    "binary_crossentropy": LOSSES.mean(),
    "mean_absolute_error": (0.1 + 0.6 + 0.8 + 0.3 + 0.4) / 5,
    "f1_score": 2 / 3,
    "loss": LOSSES.mean(),
}


def make_metrics():
    return [
        "accuracy",
        "binary_accuracy",
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
        keras.metrics.AUC(name="auc"),
        keras.metrics.BinaryCrossentropy(),
        "mean_absolute_error",
        keras.metrics.F1Score(threshold=0.5, name="f1_score"),
    ]


@pytest.fixture
def model():
    """Scores an item with the probability that its embedding is the logit of, padding with 0.5."""
    schema = Schema(
        name="tiny",
        features=[
            Feature("item", "candidate", "item"),
            Feature("history_item", "history", "item"),
        ],
        tables=[Table("item", "hash", "int64", rows=7, dim=1)],
        history_length=2,
    )
    model = RankingModel(schema, lambda r: [r.candidate], tower_units=(1,), activation="relu")
    logits = [math.log(p / (1 - p)) for p in PROBABILITIES]
    model.tables["item"].embeddings.assign(np.array([0, 0, *logits], "f")[:, None])
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign([[1.0]])
    first, last = (weight for weight in model.weights if weight.path.endswith("bias"))
    first.assign([10.0])  # beyond relu's bend
    last.assign([-10.0])
    return model


def batches(weights=WEIGHTS):
    """Two batches with different numbers of candidates, as of `RequestData`."""
    parts = (slice(0, 1), 3), (slice(1, 3), 1)

    def make():
        for rows, width in parts:
            features = {
                "item": FEATURES["item"][rows, :width],
                "history_item": FEATURES["history_item"][rows],
            }
            yield features, LABELS[rows, :width], weights[rows, :width]

    specs = (
        {name: tf.TensorSpec((None, None), tf.int32) for name in FEATURES},
        tf.TensorSpec((None, None)),
        tf.TensorSpec((None, None)),
    )
    return tf.data.Dataset.from_generator(make, output_signature=specs)


def padded(weights=WEIGHTS):
    """One batch of all three."""
    return tf.data.Dataset.from_tensors((FEATURES, LABELS, weights))


def check(result, expected):
    for name, value in expected.items():
        assert float(np.squeeze(result[name])) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize("make_data", [padded, batches])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_metrics_are_those_of_the_real_candidates(model, argument, make_data, jit_compile):
    model.compile(
        keras.optimizers.SGD(0.0), LogLoss(), jit_compile=jit_compile, **{argument: make_metrics()}
    )
    check(model.evaluate(make_data(), verbose=0, return_dict=True), EXPECTED)
    history = model.fit(make_data(), validation_data=make_data(), shuffle=False, verbose=0).history
    check(history, EXPECTED)
    check(history, {f"val_{name}": value for name, value in EXPECTED.items()})


@pytest.mark.parametrize("loss", ["log_loss", "binary_crossentropy"])
def test_padding_does_not_count_where_there_are_no_weights(model, loss):
    model.compile("sgd", LogLoss() if loss == "log_loss" else loss, metrics=["accuracy"])
    result = model.evaluate(FEATURES, LABELS, verbose=0, return_dict=True)
    check(result, {"loss": LOSSES.mean(), "accuracy": 3 / 5})


@pytest.mark.parametrize(
    "weights", [np.array([1, 2, 3], "f"), np.array([[1, 1, 1], [2, 9, 9], [3, 9, 9]], "f")]
)
def test_weights_may_be_of_requests_or_of_candidates(model, weights):
    model.compile(
        keras.optimizers.SGD(0.0), LogLoss(), metrics=["accuracy"], weighted_metrics=["acc"]
    )
    of_candidates = np.array([1, 1, 1, 2, 3])
    expected = {
        "loss": (LOSSES * of_candidates).sum() / 8,
        "acc": (1 + 2 + 3) / 8,
        "accuracy": 3 / 5,
    }
    how = {"x": FEATURES, "y": LABELS, "sample_weight": weights, "verbose": 0}
    check(model.evaluate(**how, return_dict=True), expected)
    check(model.fit(**how).history, expected)


@pytest.mark.parametrize("make_data", [padded, batches])
@pytest.mark.parametrize(
    ("loss", "divisor"),
    [(LogLoss(), 8), ("binary_crossentropy", 5)],
    ids=["of_requests", "of_candidates"],
)
def test_a_loss_is_the_same_however_candidates_are_batched(model, make_data, loss, divisor):
    """`LogLoss` divides by the sum of the weights, Keras's losses by the number of candidates."""
    model.compile(keras.optimizers.SGD(0.0), loss)
    data = make_data(WEIGHTS * [[1], [2], [3]])
    expected = (LOSSES * [1, 1, 1, 2, 3]).sum() / divisor
    assert model.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-5)
    check(model.fit(data, shuffle=False, verbose=0).history, {"loss": expected})


@pytest.mark.parametrize("with_weights", [True, False])
def test_class_weight_is_that_of_a_candidates_label(model, with_weights):
    model.compile(keras.optimizers.SGD(0.0), LogLoss(), weighted_metrics=["accuracy"])
    expected = {
        "loss": (LOSSES * [4, 1, 4, 4, 1]).sum() / 14,
        "accuracy": (4 + 4 + 1) / 14,
    }
    data = {"x": padded()} if with_weights else {"x": FEATURES, "y": LABELS}
    check(model.fit(**data, class_weight={1: 4.0}, verbose=0).history, expected)
    on_batch = {"x": FEATURES, "y": LABELS, "class_weight": {0: 1, 1: 4}, "return_dict": True}
    check(model.train_on_batch(**on_batch), expected)
    # They are those of one call.
    check(model.fit(**data, verbose=0).history, {"loss": LOSSES.mean(), "accuracy": 3 / 5})


def test_class_weight_moves_the_weights(model):
    """With ten times the weight of clicks, the bias goes up; its gradient is the mean of p - y."""
    model.compile(keras.optimizers.SGD(1.0), LogLoss())
    bias = model.get_layer("click.logit").bias
    model.fit(padded(), class_weight={0: 1, 1: 10}, verbose=0)
    gradient = (10 * (-0.1 - 0.8 - 0.3) + 0.6 + 0.4) / 32
    assert float(bias[0]) == pytest.approx(-10 - gradient, rel=1e-5)


@pytest.mark.parametrize("class_weight", [{2: 1.0}, {"click": 2.0}])
def test_other_classes_than_0_and_1_are_refused(model, class_weight):
    model.compile("sgd", LogLoss())
    with pytest.raises(ValueError, match="`class_weight` must have the keys 0 and 1. Received: cl"):
        model.fit(padded(), class_weight=class_weight, verbose=0)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_predict_has_nan_where_a_request_has_no_candidate(model, jit_compile, steps):
    model.compile(jit_compile=jit_compile, steps_per_execution=steps)
    nan = math.nan
    expected = np.array([[0.9, 0.6, 0.2], [0.7, nan, nan], [0.4, nan, nan]], "f")
    for data in (padded(), batches(), FEATURES):
        np.testing.assert_allclose(model.predict(data, verbose=0), expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict_on_batch(FEATURES), expected, rtol=1e-5)


def test_labels_of_single_candidates_may_have_one_axis(model):
    model.compile("sgd", LogLoss(), metrics=["accuracy"])
    features = {"item": FEATURES["item"][:, :1], "history_item": FEATURES["history_item"]}
    result = model.evaluate(features, LABELS[:, 0], verbose=0, return_dict=True)
    check(result, {"accuracy": 1.0, "loss": -np.log([0.9, 0.7, 0.6]).mean()})


def test_labels_of_another_shape_are_refused(model):
    model.compile("sgd", LogLoss())
    with pytest.raises(ValueError, match=r"labels must have the shape of the candidates"):
        model.fit(FEATURES, np.zeros((3, 2), "f"), verbose=0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("loss", "categorical_crossentropy"),
        ("metrics", ["categorical_accuracy"]),
        ("metrics", [keras.metrics.TopKCategoricalAccuracy(k=1)]),
        ("weighted_metrics", [keras.metrics.sparse_categorical_accuracy]),
    ],
    ids=["loss", "name", "metric", "function"],
)
def test_what_compares_classes_is_refused(model, argument, value):
    arguments = {"loss": LogLoss(), argument: value}
    with pytest.raises(ValueError, match=f"`{argument}` must be of two classes.*Received: "):
        model.compile("sgd", **arguments)


def test_what_compares_candidates_is_refused(model):
    class RankingMetric(keras.metrics.Mean):
        """As of keras-rs, whose metrics see the candidates of a request together."""

    class NDCG(RankingMetric):
        pass

    with pytest.raises(ValueError, match="`metrics` must look at each candidate by itself"):
        model.compile("sgd", LogLoss(), metrics=[NDCG()])


def test_a_loss_of_ones_own_sees_requests(model):
    """Such as one of keras-rs, which compares the candidates of a request."""

    class LessThanTheBest(keras.losses.Loss):
        def call(self, labels, probabilities):
            return tf.reduce_max(probabilities, axis=1, keepdims=True) - probabilities

    model.compile("sgd", LessThanTheBest(reduction="sum"))
    loss = model.evaluate(FEATURES, LABELS, verbose=0)
    assert loss == pytest.approx((0.9 - 0.6) + (0.9 - 0.2) + 0 + 0.1, rel=1e-4)  # padding has 0.5


def test_a_saved_model_is_compiled_when_it_is_loaded(schema, make_requests, tmp_path):
    from tfrec_diffusion import LazyAdam, models

    model = models.create("avg_pooling", schema=schema)
    model.compile(LazyAdam(0.01), "binary_crossentropy", metrics=["accuracy"])
    features = make_requests()
    labels = (features["item"] % 2).astype("f")
    model.fit(features, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.evaluate(features, labels, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(features, labels, verbose=0), expected, rtol=1e-6)
    assert loaded.optimizer.iterations == 1
