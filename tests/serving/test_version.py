import dataclasses
import json
import pathlib
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import SMALL, perturb, write_vocabularies
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tfrec_diffusion import models
from tfrec_diffusion.files import lock
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving.example_requests import as_examples, example_requests
from tfrec_diffusion.serving.lookup import RequestLookup
from tfrec_diffusion.serving.served_model import ServedModel, correct
from tfrec_diffusion.serving.version import with_dtype, write_version

PACKAGE = pathlib.Path(models.__file__).parent


@pytest.fixture
def model_dir(tmp_path):
    write_vocabularies(tmp_path)
    return tmp_path


METRICS = {"test": {"auc": 0.7}}


# test_program.py has all models, in a program without Python.
@pytest.fixture(scope="module", params=["din", "hierdiffuse", "sdim"])
def written(request, schema, tmp_path_factory):
    """A model and the version of it that is written."""
    directory = tmp_path_factory.mktemp(request.param)
    write_vocabularies(directory)
    keras.utils.set_random_seed(0)
    model = models.create(request.param, schema=schema, **SMALL.get(request.param, {}))
    return model, write_version(model, directory, directory / "export", METRICS)


@pytest.fixture(scope="module")
def served(written):
    """A model and the signatures of its version."""
    model, version = written
    return model, tf.saved_model.load(str(version)).signatures


@pytest.fixture
def raw():
    """Three requests: an ordinary one; a new user's with an empty history; one with padding."""
    return {
        "user": np.array(["ann", "bob", ""]),
        "hour": np.array([0, 23, -1]),
        "item": np.array([[100, 137, 5], [101, 101, 101], [110, -1, -1]]),
        "category": np.array([["category 0", "x", ""]] * 3),
        "price": np.array([[0.5, 1.5, np.nan]] * 3, "f"),
        "history_item": np.array([[100, 7, 120], [-1, -1, -1], [111, -1, -1]]),
        "history_category": np.array(
            [["category 7", "x", "category 1"], ["", "", ""], ["x", "", ""]]
        ),
        "history_hour": np.array([[1, 2, 3], [-1, -1, -1], [0, -1, -1]]),
        "history_gap": np.array([[np.nan, 29.5, 30], [np.nan] * 3, [np.nan] * 3], "f"),
        "history_size": np.array([[1, 2, 3], [np.nan] * 3, [7, np.nan, np.nan]], "f"),
    }


# The same requests as row numbers, worked out by hand; the user's row is a hash.
ROWS = {
    "hour": [2, 25, 0],
    "item": [[2, 39, 1], [3, 3, 3], [12, 0, 0]],
    "category": [[2, 1, 0]] * 3,
    "price": [[2, 3, 0]] * 3,
    "history_item": [[2, 1, 22], [0, 0, 0], [13, 0, 0]],
    "history_category": [[9, 1, 3], [0, 0, 0], [1, 0, 0]],
    "history_hour": [[3, 4, 5], [0, 0, 0], [2, 0, 0]],
    "history_gap": [[0, 2, 3], [0, 0, 0], [0, 0, 0]],
    "history_size": [[2, 3, 4], [0, 0, 0], [4, 0, 0]],
}


def expected_scores(model, raw):
    user = 2 + tf.strings.to_hash_bucket_fast(raw["user"], 48)
    rows = {name: tf.constant(value) for name, value in ROWS.items()}
    rows["user"] = tf.where(raw["user"] == "", 0, tf.cast(user, tf.int32))
    return model(rows).numpy() * (np.array(ROWS["item"]) != 0)


def take(signature, values):
    """Calls a signature with those of the values that it takes."""
    taken = signature.structured_input_signature[1]
    return signature(**{name: tf.constant(values[name]) for name in taken})


def call(signature, values):
    return take(signature, values)["click_probability"]


def as_example(raw, i):
    """Request i as a `tf.train.Example`; a history's padding is left out."""
    example = tf.train.Example()
    behaviors = int((raw["history_item"][i] != -1).sum())
    for name, values in raw.items():
        values = np.atleast_1d(values[i])
        values = values[:behaviors] if name.startswith("history") else values
        entry = example.features.feature[name]
        if values.dtype.kind == "U":
            entry.bytes_list.value.extend(value.encode() for value in values)
        elif values.dtype.kind == "f":
            entry.float_list.value.extend(values)
        else:
            entry.int64_list.value.extend(values)
    return example.SerializeToString()


def test_raw_values_give_the_models_scores(served, raw):
    model, signatures = served
    scores = call(signatures["serving_default"], raw)
    np.testing.assert_allclose(scores, expected_scores(model, raw), rtol=1e-5, atol=1e-7)


def test_examples_give_the_models_scores(served, raw):
    model, signatures = served
    scores = signatures["examples"](examples=tf.constant([as_example(raw, i) for i in range(3)]))
    np.testing.assert_allclose(
        scores["click_probability"], expected_scores(model, raw), rtol=1e-5, atol=1e-7
    )
    nothing = signatures["examples"](examples=tf.constant([b""]))["click_probability"]
    assert nothing.shape == (1, 0)


def test_the_state_of_a_user_scores_other_candidates_later(served, raw):
    model, signatures = served
    if not model.has_user_state:
        assert set(signatures) == {"serving_default", "examples"}
        return
    state = take(signatures["user_state"], raw)
    for later in (raw, {**raw, "hour": raw["hour"][::-1].copy(), "item": raw["item"] + 1}):
        scores = call(signatures["score"], {**later, **state})
        expected = call(signatures["serving_default"], later)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(tf.errors.InvalidArgumentError, match="as many requests as `item`"):
        call(signatures["score"], {**raw, **{name: x[:1] for name, x in state.items()}})
    other = {**state, "state_version": state["state_version"] + 1}
    with pytest.raises(tf.errors.InvalidArgumentError, match="the state is of another version"):
        call(signatures["score"], {**raw, **other})


def test_a_state_is_of_a_model_not_of_its_export(model_dir, schema, raw):
    model = models.create("diffurec", schema=schema, sampling_steps=2)
    of_user = ("user", "history_item", "history_category", "history_hour")
    raw = {name: raw[name] for name in of_user}
    once, again = (ServedModel(model, model_dir).user_state(raw) for _ in range(2))
    assert once["state_version"].dtype == tf.int64
    assert once["state_version"].numpy().tolist() == again["state_version"].numpy().tolist()
    table = model.tables["item"].embeddings
    table.assign(table + 1)
    trained_on = ServedModel(model, model_dir).user_state(raw)
    assert (trained_on["state_version"] != once["state_version"]).numpy().all()


def test_lists_of_an_example_that_differ_in_length_are_an_error(served, raw):
    """Padding the shorter one would give scores, of other candidates."""
    _, signatures = served
    example = tf.train.Example.FromString(as_example(raw, 0))
    for name, key in (("price", "item"), ("history_hour", "history_item")):
        wrong = tf.train.Example.FromString(example.SerializeToString())
        feature = wrong.features.feature[name]
        (feature.float_list if name == "price" else feature.int64_list).value.pop()
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=f"`{name}` must be as long as `{key}`"
        ):
            signatures["examples"](examples=tf.constant([wrong.SerializeToString()]))
        del wrong.features.feature[name]
        signatures["examples"](examples=tf.constant([wrong.SerializeToString()]))


@pytest.mark.parametrize(
    ("name", "other", "wrong"),
    [
        ("category", "the shape of `item`", lambda x: x[:, :1]),
        ("price", "the shape of `item`", lambda x: x[:1]),
        ("history_hour", "the shape of `history_item`", lambda x: x[:, :2]),
        ("hour", "as many requests of `user`", lambda x: x[:1]),
    ],
)
def test_what_would_broadcast_is_an_error(served, raw, name, other, wrong):
    _, signatures = served
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` must have {other}"):
        call(signatures["serving_default"], {**raw, name: wrong(raw[name])})


def test_a_model_gets_what_is_known_of_each_behavior(model_dir, schema, raw):
    """One whose log-odds are the sum of the rows of the gaps."""

    class SumOfGaps(RankingModel):
        def __init__(self, schema, **kwargs):
            def tower_inputs(request):
                rows = keras.ops.cast(request.features["history_gap"], "float32")
                sums = keras.ops.sum(rows, axis=-1)[:, None, None]
                return [sums + keras.ops.zeros_like(request.candidate[..., :1])]

            super().__init__(schema, tower_inputs, **kwargs)

    model = SumOfGaps(schema, tower_units=(1,), activation="relu")
    for name in ("click.tower", "click.logit"):
        model.get_layer(name).set_weights([np.ones((1, 1)), np.zeros(1)])
    model.behavior_features = ("history_gap",)
    served = tf.saved_model.load(
        str(write_version(model, model_dir, model_dir / "export"))
    ).signatures

    def first(scores):
        return scores.numpy()[:, 0].tolist()

    def of_examples(examples):
        return served["examples"](examples=tf.constant(examples))["click_probability"]

    gaps, nothing = pytest.approx(1 / (1 + np.exp(-5))), 0.5
    assert first(call(served["serving_default"], raw)) == [gaps, nothing, nothing]
    silent = {name: value for name, value in raw.items() if name != "history_gap"}
    examples = [as_example(raw, 0), as_example(silent, 0), as_example(raw, 1)]
    assert first(of_examples(examples)) == [gaps, nothing, nothing]
    assert first(of_examples(examples[1:])) == [nothing, nothing]


def test_what_a_model_does_not_use_of_behaviors_is_no_input(served):
    model, signatures = served
    inputs = signatures["serving_default"].structured_input_signature[1]
    for name in ("history_gap", "history_size"):
        assert (name in inputs) == (name in model.behavior_features)
    assert "history_item" in inputs


def test_a_version_describes_itself(written, schema):
    model, version = written
    described = json.loads((version / "describe.json").read_text())
    assert (described["model"], described["data_set"]) == (type(model).__name__, "small")
    assert described["arguments"]["tower_units"] == list(model.tower_units)
    assert described["metrics"] == METRICS
    assert described["history_length"] == 12
    assert described["tables"]["item"] == {"kind": "vocabulary", "rows": 40, "dim": 8}
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True
    ).stdout.strip()
    assert (described["git_revision"] or "").removesuffix("-dirty") == revision
    signatures = described["signatures"]
    inputs = signatures["serving_default"]["inputs"]
    unused = {"history_size", "history_gap"} - {*model.behavior_features}
    assert set(inputs) == {f.name for f in schema.features} - unused
    assert inputs["price"] == {
        "dtype": "float32",
        "shape": [None, None],
        "group": "candidate",
        "table": "price",
        "missing": "NaN",
    }
    assert inputs["user"]["shape"] == [None] and inputs["user"]["missing"] == ""
    assert (described["candidate_key"], described["history_key"]) == ("item", "history_item")
    assert ("size" in described["tables"]) == ("history_size" in model.behavior_features)
    used = [f.name for f in Schema.load(version).group("behavior")]
    assert used == list(model.behavior_features)
    score = {"dtype": "float32", "shape": [None, None]}
    if model.has_user_state:
        state = signatures["user_state"]["outputs"]
        assert state.items() <= signatures["score"]["inputs"].items()
        assert signatures["score"]["outputs"] == {"click_probability": score}
    else:
        assert set(signatures) == {"serving_default", "examples"}


def test_a_version_has_requests_that_warm_all_signatures_up(written, served):
    (model, version), (_, signatures) = written, served
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    answered = []
    for record in tf.data.TFRecordDataset(str(file)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        name = request.model_spec.signature_name
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        if "history_item" in inputs:
            assert inputs["history_item"].shape == (1, 12)
            assert set(inputs["history_item"][0]) <= set(range(100, 138))
        outputs = take(signatures[name], inputs)
        scores = outputs.get("click_probability")
        answered.append((name, None if scores is None else scores.shape[1]))
    assert [candidates for name, candidates in answered if name == "examples"] == [1, 100]
    every = {(name, 100) for name in signatures if name != "user_state"}
    assert every <= {*answered}
    assert (("user_state", None) in answered) == model.has_user_state


def test_both_signatures_are_corrected_for_sampled_negatives(model_dir, schema, raw):
    """By a model that knows nothing: 1/2 of the data with a tenth of the negatives is 1/11."""
    model = models.create("avg_pooling", schema=dataclasses.replace(schema, negative_rate=0.1))
    logit = model.get_layer("click.logit")
    logit.set_weights([np.zeros_like(weight) for weight in logit.get_weights()])
    eleventh = pytest.approx(1 / 11)
    for corrected, probability in ((False, 0.5), (True, eleventh)):
        version = write_version(
            model, model_dir, model_dir / "export", correct_negative_sampling=corrected
        )
        served = tf.saved_model.load(str(version)).signatures
        examples = tf.constant([as_example(raw, i) for i in range(3)])
        of_examples = served["examples"](examples=examples)["click_probability"]
        for scores in (call(served["serving_default"], raw), of_examples):
            assert scores.dtype == tf.float32
            assert scores.numpy().tolist() == [*[[probability] * 3] * 2, [probability, 0, 0]]


def test_a_model_of_all_negatives_is_not_corrected(model_dir, schema):
    model = models.create("avg_pooling", schema=schema)
    with pytest.raises(ValueError, match=r"Received: negative_rate=1\.0 \(data set 'small'\)"):
        write_version(model, model_dir, model_dir / "export", correct_negative_sampling=True)
    assert not (model_dir / "export").exists()


@pytest.mark.parametrize(
    ("rate", "kept", "all_negatives"),
    [
        (0.1, [0, 1 / 2, 10 / 11, 1], [0, 1 / 11, 1 / 2, 1]),
        (0.25, [0, 1 / 2, 4 / 5, 1], [0, 1 / 5, 1 / 2, 1]),
        (1.0, [0, 0.3, 1], [0, 0.3, 1]),
        (1e-6, [0, 1e-30, 1e-6, 1], [0, 1e-36, 1e-12, 1]),
    ],
)
def test_probabilities_among_all_negatives(rate, kept, all_negatives):
    corrected = correct(tf.constant(kept, tf.float32), rate).numpy()
    assert corrected.dtype == np.float32
    np.testing.assert_allclose(corrected, np.array(all_negatives, "f"), rtol=2e-6)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.9])
def test_a_correction_changes_no_rank(rate):
    """Not even of floats next to each other."""
    for low in (1e-3, 0.1, 0.45, 0.99):
        bits = np.float32(low).view(np.int32) + np.arange(100_000, dtype=np.int32)
        assert np.all(np.diff(correct(tf.constant(bits.view(np.float32)), rate)) >= 0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_click_rate_of_sampled_data_corrected_is_the_true_one(rate):
    rng = np.random.default_rng(0)
    for true_rate in (0.02, 0.1, 0.5):
        clicks = rng.random(400_000) < true_rate
        kept = clicks | (rng.random(clicks.size) < rate)
        of_kept = tf.constant(clicks[kept].mean(), tf.float32)
        assert of_kept > 1.2 * true_rate
        assert correct(of_kept, rate).numpy() == pytest.approx(true_rate, rel=0.05)


def test_two_exports_at_once_are_not_mixed(model_dir, schema):
    export_dir = model_dir / "export"
    export_dir.mkdir()
    with (
        lock(export_dir, "exporting to"),
        pytest.raises(BlockingIOError, match="another process is exporting to .*export"),
    ):
        write_version(models.create("avg_pooling", schema=schema), model_dir, export_dir)
    assert list(export_dir.iterdir()) == []


def test_versions_count_up_and_a_half_written_one_is_not_taken_for_whole(model_dir, schema):
    model = models.create("avg_pooling", schema=schema)
    export_dir = model_dir / "export"
    (export_dir / "incomplete.1" / "assets").mkdir(parents=True)
    versions = [write_version(model, model_dir, export_dir).name for _ in range(2)]
    assert versions == ["1", "2"]
    assert sorted(path.name for path in export_dir.iterdir()) == ["1", "2"]


def test_nothing_is_compiled_anew_for_each_number_of_candidates(model_dir, schema, make_requests):
    """XLA of training must not get into the graph: it would take seconds at each new shape."""
    model = models.create("avg_pooling", schema=schema, tower_units=8)
    model.compile(LazyAdam(), LogLoss(), jit_compile=True)
    features = make_requests()
    model.fit(features, (features["item"] % 2).astype("f"), verbose=0)
    version = write_version(model, model_dir, model_dir / "export")
    proto = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    for function in proto.meta_graphs[0].graph_def.library.function:
        assert not function.attr["_XlaMustCompile"].b


def test_a_wrong_request_gets_tensorflows_own_error(served, raw):
    served = served[1]["serving_default"]
    request = {name: tf.constant(raw[name]) for name in served.structured_input_signature[1]}
    with pytest.raises(TypeError, match="item"):
        served(**{name: value for name, value in request.items() if name != "item"})
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected to be a int64 tensor"):
        served(**{**request, "item": tf.constant([["a", "b", "c"]] * 3)})


def test_a_model_is_served_in_mixed_precision(model_dir, schema, raw):
    model = models.create("din", schema=schema)
    mixed = with_dtype(model, "mixed_bfloat16")
    version = write_version(mixed, model_dir, model_dir / "export")
    described = json.loads((version / "describe.json").read_text())
    assert described["arguments"]["dtype"] == "mixed_bfloat16"
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    scores, expected = call(served, raw), expected_scores(model, raw)
    assert 0 < np.abs(scores - expected).max() < 0.01


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.003), ("int8", 0.01)])
@pytest.mark.parametrize("name", ["can", "hierdiffuse"])
def test_compressed_tables_are_served(name, dtype, tolerance, model_dir, schema, raw, tmp_path):
    """By all signatures, in smaller files."""
    model = models.create(name, schema=schema, embedding_dim=16, **SMALL.get(name, {}))
    perturb(model)
    expected = expected_scores(model, raw)
    sizes = []
    for _ in range(2):
        version = write_version(model, model_dir, tmp_path)
        (variables,) = version.glob("variables/*.data*")
        sizes.append(variables.stat().st_size)
        if len(sizes) == 1:
            model.compress_tables(dtype)
    assert sizes[1] < sizes[0]
    assert json.loads((version / "describe.json").read_text())["table_dtype"] == dtype
    signatures = tf.saved_model.load(str(version)).signatures
    scores = call(signatures["serving_default"], raw)
    assert 0 < np.abs(scores - expected).max() < tolerance
    if "user_state" in signatures:
        takes = signatures["user_state"].structured_input_signature[1]
        state = signatures["user_state"](**{k: x for k, x in as_tensors(raw).items() if k in takes})
        others = {k: x for k, x in as_tensors(raw).items() if k not in takes}
        found = signatures["score"](**state, **others)["click_probability"]
        np.testing.assert_allclose(found, scores, rtol=1e-5)


class TestRichFeatures:
    """Features of several values, numbers and vectors, as clients send them."""

    @pytest.fixture(scope="class", params=["diffumin", "hierdiffuse"])
    def rich(self, request, rich_schema, tmp_path_factory):
        directory = tmp_path_factory.mktemp(f"rich_{request.param}")
        keras.utils.set_random_seed(0)
        arguments = {"embedding_stddev": 0.5, "embedding_dim": 4, **SMALL[request.param]}
        model = models.create(request.param, schema=rich_schema, **arguments)
        perturb(model)
        version = write_version(model, directory, directory / "export", METRICS)
        schema = dataclasses.replace(rich_schema, directory=str(directory))
        raw = example_requests(schema, batch=3, candidates=4, length=6)
        raw["history_item"][1, 4:] = -1
        raw["history_item"][2] = -1
        raw["price"][0, 1] = np.nan
        raw["tags"][0, 0] = ["t", ""]
        return model, RequestLookup(schema)(raw), tf.saved_model.load(str(version)).signatures, raw

    def test_scores_are_those_of_the_model(self, rich):
        model, rows, signatures, raw = rich
        expected = model(rows).numpy()
        assert len(np.unique(expected)) == expected.size
        found = signatures["serving_default"](**as_tensors(raw))["click_probability"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_fewer_values_than_training_saw(self, rich):
        _, _, signatures, raw = rich
        fewer = {**raw, "tags": np.full_like(raw["tags"], "")}
        fewer["tags"][..., 0] = raw["tags"][..., 1]
        expected = signatures["serving_default"](**as_tensors(fewer))["click_probability"]
        one = signatures["serving_default"](**as_tensors({**fewer, "tags": fewer["tags"][..., :1]}))
        np.testing.assert_allclose(one["click_probability"], expected, rtol=1e-6)

    def test_examples(self, rich):
        _, _, signatures, raw = rich
        expected = signatures["serving_default"](**as_tensors(raw))["click_probability"]
        examples = as_examples(raw)
        found = signatures["examples"](examples=tf.constant(examples))["click_probability"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_examples_with_fewer_values(self, rich):
        """Each example has as many for each candidate as it needs, or none."""
        _, _, signatures, raw = rich
        raw = {**raw, "tags": raw["tags"].copy(), "history_tags": raw["history_tags"].copy()}
        raw["tags"][:2, :, 1] = ""
        raw["tags"][2] = ""
        raw["history_tags"][1] = ""
        expected = signatures["serving_default"](**as_tensors(raw))["click_probability"]
        examples = [tf.train.Example.FromString(example) for example in as_examples(raw)]
        for i in (0, 1):
            del examples[i].features.feature["tags"].bytes_list.value[1::2]
        del examples[2].features.feature["tags"]
        del examples[1].features.feature["history_tags"]
        serialized = [example.SerializeToString() for example in examples]
        found = signatures["examples"](examples=tf.constant(serialized))["click_probability"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        examples[0].features.feature["tags"].bytes_list.value.append(b"t")
        message = "`tags` must have equally many values for each of `item`"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures["examples"](examples=tf.constant([examples[0].SerializeToString()]))

    def test_examples_with_a_part_of_a_vector_are_refused(self, rich):
        _, _, signatures, raw = rich
        example = tf.train.Example.FromString(as_examples(raw)[0])
        del example.features.feature["image"].float_list.value[-1]
        message = "`image` must have 5 values for each of `item`, or be absent"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures["examples"](examples=tf.constant([example.SerializeToString()]))

    def test_user_state(self, rich):
        _, _, signatures, raw = rich
        if "user_state" not in signatures:
            return
        expected = signatures["serving_default"](**as_tensors(raw))["click_probability"]
        takes = signatures["user_state"].structured_input_signature[1]
        state = signatures["user_state"](**as_tensors({name: raw[name] for name in takes}))
        others = {name: x for name, x in as_tensors(raw).items() if name not in takes}
        found = signatures["score"](**state, **others)["click_probability"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def as_tensors(raw):
    return {
        name: tf.constant(x.tolist(), tf.string) if x.dtype == object else tf.constant(x)
        for name, x in raw.items()
    }
