"""A trained model meets the next day's log: measured on it, and trained on with it."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from commands import run
from days import SPEC, arguments, prepared, write_day
from small_models import SMALL, perturb, write_vocabularies
from small_specs import changed

from tfrec_diffusion import models
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.layers import embedding
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.names import MODELS
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.row_maps import row_maps, unknown_values
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.training.run_directory import RunDirectory
from tfrec_diffusion.training.warm_start import WarmStart


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Directories of the logs of two days; half of the second one's items are new."""
    directory = tmp_path_factory.mktemp("days")
    for name, first_item in (("monday", 0), ("tuesday", 5)):
        write_day(directory / name, first_item)
    return directory


@pytest.fixture(scope="module")
def monday(days, tmp_path_factory):
    """The run of Monday's model."""
    directory = tmp_path_factory.mktemp("monday")
    code, _, stderr = run(*arguments(days / "monday", directory))
    assert code == 0, stderr
    return RunDirectory(directory)


def item_rows(model, directory, of_variables=None):
    """Embedding of each item, of what is missing and of what is unknown, or a moment of each."""
    with open(directory / "vocabularies" / "item.txt") as file:
        items = ["missing", "unknown", *file.read().split()]
    table = model.tables["item"].embeddings
    if of_variables is not None:
        (table,) = (
            moment
            for variable, moment in zip(model.trainable_variables, of_variables, strict=True)
            if variable is table
        )
    return dict(zip(items, table.numpy(), strict=True))


def test_rows_are_those_that_training_knew(days, monday):
    data = RequestData(prepared(days, "tuesday"), read_as=monday.schema)
    plain = RequestData(prepared(days, "tuesday"))
    known = item_rows(monday.load_model(), monday.path)
    read, of_tuesday = (
        next(one.batches("train", 500).as_numpy_iterator())[0] for one in (data, plain)
    )
    vocabulary = plain.schema.vocabulary_path(plain.schema.table("item"))
    with open(vocabulary) as file:
        items = [None, None, *file.read().split()]
    rows = list(known)
    for feature in ("item", "history_item"):
        for ours, theirs in zip(read[feature].ravel(), of_tuesday[feature].ravel(), strict=True):
            item = items[theirs]
            expected = rows.index(item) if item in known else min(theirs, 1)
            assert ours == expected
    np.testing.assert_array_equal(read["user"], of_tuesday["user"])
    np.testing.assert_array_equal(read["price"], of_tuesday["price"])
    assert unknown_values(data.row_maps) == "values that training has not seen: item 5 of 10"


def test_evaluate_on_the_next_day(days, monday):
    """On a day with other vocabularies as on its own, whose rows it was trained with."""
    code, stdout, stderr = run(
        "evaluate", f"--model_dir={monday.path}", f"--data_dir={days / 'tuesday'}", "--split=train"
    )
    assert code == 0, stderr
    assert "values that training has not seen: item 5 of 10" in stderr
    assert "train: auc" in stdout
    code, _, stderr = run(
        "evaluate", f"--model_dir={monday.path}", f"--data_dir={days / 'tuesday'}",
        "--split=train", "--write_predictions",
    )  # fmt: skip
    assert (
        code == 2
        and f"keeps predictions of the data that it was trained on, in {days / 'monday'}" in stderr
    )
    code, stdout, stderr = run("evaluate", f"--model_dir={monday.path}")
    assert code == 0 and "not seen" not in stderr
    assert f"auc {monday.metrics['splits']['test']['auc']:.4f}" in stdout


@pytest.fixture(scope="module")
def tuesday(days, monday, tmp_path_factory):
    """A run that has started with Monday's weights and learned nothing since."""
    directory = tmp_path_factory.mktemp("tuesday")
    code, stdout, stderr = run(
        *arguments(days / "tuesday", directory, "--learning_rate=0"), f"--warm_start={monday.path}"
    )
    assert code == 0, stderr
    assert f"starts with the weights of {monday.path}; new values: item 5" in stdout
    return RunDirectory(directory)


def test_known_values_keep_their_embeddings(monday, tuesday):
    before, after = (item_rows(one.load_model(), one.path) for one in (monday, tuesday))
    kept = before.keys() & after.keys()
    assert len(kept) == 2 + 5
    for item in kept:
        np.testing.assert_array_equal(after[item], before[item])
    # New ones have their own, initial rows.
    new = np.array([row for item, row in after.items() if item not in kept])
    assert len(np.unique(new, axis=0)) == 5 and 0 < np.abs(new).max() < 0.1


def test_old_requests_have_the_same_scores(days, monday):
    """To the bit, before any step."""
    trained = monday.load_model()
    schema = RequestData(prepared(days, "tuesday")).schema
    grown = type(trained).from_config({**trained.get_config(), "schema": schema.get_config()})
    WarmStart(monday.path, schema).apply(grown)
    monday_data = prepared(days, "monday")
    features, expected = (
        next(data.batches("test", 100).as_numpy_iterator())[0]
        for data in (RequestData(monday_data, read_as=schema), RequestData(monday_data))
    )
    # Items that Tuesday's log does not have are left out on both sides.
    known = features["history_item"] != 1
    expected, features = (
        {**rows, "history_item": rows["history_item"] * known} for rows in (expected, features)
    )
    known = features["item"][:, 0] > 1
    assert 0 < known.sum() < len(known)
    scores, of_monday = (
        model({name: x[known] for name, x in rows.items()}).numpy()
        for model, rows in ((grown, features), (trained, expected))
    )
    np.testing.assert_array_equal(scores, of_monday)


@pytest.fixture
def grown(schema, tmp_path):
    """`grown(name)`: a trained model, its run's directory, and the schema of other data, with more
    items, and with the categories in another order and one more of them."""
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        directory.mkdir()
        write_vocabularies(directory)
    (new / "vocabularies" / "item.txt").write_text("".join(f"{i}\n" for i in range(100, 141)))
    categories = "".join(f"category {i}\n" for i in range(8, -1, -1))
    (new / "vocabularies" / "category.txt").write_text(categories)
    rows = {"item": 43, "category": 11}
    tables = [dataclasses.replace(t, rows=rows.get(t.name, t.rows)) for t in schema.tables]
    schema = dataclasses.replace(schema, directory=str(old))
    schema.save(old)

    def make(name):
        model = models.create(name, schema=schema, embedding_stddev=0.5, **SMALL.get(name, {}))
        perturb(model)
        RunDirectory(old).save_model(model)
        return model, old, dataclasses.replace(schema, directory=str(new), tables=tables)

    return make


def like(model, schema):
    return type(model).from_config({**model.get_config(), "schema": schema.get_config()})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_starts_with_the_same_scores(name, grown, make_requests):
    trained, run_directory, schema = grown(name)
    model = like(trained, schema)
    WarmStart(run_directory, schema).apply(model)
    requests = make_requests()
    maps = row_maps(RunDirectory(run_directory).schema, schema)
    moved = {
        feature.name: maps[feature.table][requests[feature.name]]
        if feature.table in maps
        else requests[feature.name]
        for feature in schema.features
    }
    assert (moved["category"] != requests["category"]).any()
    np.testing.assert_array_equal(model(moved), trained(requests))


def test_tables_that_parameter_servers_share_start_warm(grown, monkeypatch):
    trained, run_directory, schema = grown("avg_pooling")
    start = WarmStart(run_directory, schema)
    whole = like(trained, schema)
    monkeypatch.setattr(embedding, "_parameter_servers", lambda: 3)
    monkeypatch.setattr(embedding, "_SPREAD_FROM_BYTES", 0)
    spread = like(trained, schema)
    for model in (whole, spread):
        start.apply(model)
    assert len(spread.tables["item"].parts) == 3
    known = row_maps(schema, RunDirectory(run_directory).schema)["item"] != 1
    tables = [{}, {}]
    for model, store in zip((whole, spread), tables, strict=True):
        model.tables["item"].save_own_variables(store)
    # The rows of new values are drawn anew.
    np.testing.assert_array_equal(*(np.asarray(store["0"])[known] for store in tables))


def test_replicas_start_warm(days, monday, tuesday, tmp_path):
    code, _, stderr = run(
        *arguments(days / "tuesday", tmp_path, "--learning_rate=0", "--strategy=mirrored"),
        f"--warm_start={monday.path}",
        "--warm_start_optimizer",
    )
    assert code == 0, stderr
    found, expected = (
        item_rows(one.load_model(), one.path) for one in (RunDirectory(tmp_path), tuesday)
    )
    for item, row in expected.items():
        np.testing.assert_array_equal(found[item], row)


def test_the_optimizer_starts_with_the_moments(days, monday, tmp_path):
    """With a learning rate of 0 and the same gradients, they only decay."""
    flags = ("--epochs=1", f"--warm_start={monday.path}", "--warm_start_optimizer", "--seed=1")
    code, _, stderr = run(*arguments(days / "monday", tmp_path, *flags))
    assert code == 0, stderr
    assert RunDirectory(tmp_path).flags["optimizer steps before"] == monday.metrics["steps"]

    schema = RequestData(prepared(days, "tuesday")).schema
    trained = keras.models.load_model(monday.model_file)
    grown = type(trained).from_config({**trained.get_config(), "schema": schema.get_config()})
    grown.compile(LazyAdam(), LogLoss())
    start = WarmStart(monday.path, schema)
    start.apply(grown)
    start.apply_optimizer(grown)
    before, after = (
        item_rows(model, directory, model.optimizer._momentums)
        for model, directory in ((trained, monday.path), (grown, prepared(days, "tuesday")))
    )
    kept = before.keys() & after.keys()
    assert all((before[item] == after[item]).all() for item in kept)
    assert any(before[item].any() for item in kept)
    assert not any(after[item].any() for item in after.keys() - kept)


def test_other_arguments_of_the_model_are_refused(days, monday, tmp_path):
    code, _, stderr = run(
        *arguments(days / "tuesday", tmp_path / "run", "--set=channels=3"),
        f"--warm_start={monday.path}",
    )
    assert code == 2
    assert f"like that of {monday.path}. Received: channels=3 (was 2)" in stderr
    assert not (tmp_path / "run").exists()


def test_other_means_are_refused(monday, tmp_path):
    write_day(tmp_path / "raw", 0, prices=(1, 7))
    code, _, stderr = run(
        *arguments(tmp_path / "raw", tmp_path / "run"), f"--warm_start={monday.path}"
    )
    assert code == 2
    assert "table 'price' must have the mean and deviation" in stderr and "--like=" in stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables__price": {"kind": "boundaries", "boundaries": [1]}}, "differ in table 'price'"),
        ({"tables__user__buckets": 8}, "differ in table 'user'"),
        ({"features__item__column": "user"}, None),
        ({"features__cost": {"group": "context", "column": "price", "table": "price"}},
         "differ in feature 'cost'"),
    ],
)  # fmt: skip
def test_data_that_mean_something_else_are_refused(days, tmp_path, changes, message):
    raw_dir = days / "monday"
    (tmp_path / "shop.json").write_text(json.dumps(changed(SPEC, **changes)))
    other = prepare("logs", raw_dir=raw_dir, data_dir=tmp_path, spec=tmp_path / "shop.json")
    schemas = Schema.load(other), Schema.load(prepared(days, "monday"))
    if message is None:  # only values differ
        assert row_maps(*schemas)
        return
    with pytest.raises(ValueError, match=f"was trained on other data.*{message}"):
        row_maps(*schemas)
