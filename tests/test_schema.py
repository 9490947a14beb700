import dataclasses
import json

import pytest
import tensorflow as tf

from tfrec_diffusion.schema import Feature, Schema, Table


def test_json_round_trip(schema, tmp_path):
    schema.save(tmp_path)
    loaded = Schema.load(tmp_path)
    assert loaded == schema
    assert loaded.table("item").tiers == (9,)
    assert loaded.vocabulary_path(loaded.table("item")) == str(
        tmp_path / "vocabularies" / "item.txt"
    )


def test_the_negative_rate_is_saved_and_was_1_before_there_was_one(schema, tmp_path):
    sampled = dataclasses.replace(schema, negative_rate=0.1)
    sampled.save(tmp_path)
    assert Schema.load(tmp_path) == sampled != schema
    config = sampled.get_config()
    assert config.pop("negative_rate") == 0.1
    (tmp_path / "schema.json").write_text(json.dumps(config))
    assert Schema.load(tmp_path) == schema and schema.negative_rate == 1.0


def test_everything_is_derived_from_the_features(schema):
    inputs = schema.keras_inputs()
    signature = schema.serving_signature()
    assert list(inputs) == list(signature) == [f.name for f in schema.features]
    assert inputs["user"].shape == (None,) and inputs["history_item"].shape == (None, None)
    assert inputs["history_gap"].shape == (None, None) and inputs["history_gap"].dtype == "int32"
    assert signature["user"].dtype == tf.string and signature["item"].dtype == tf.int64
    assert signature["price"].dtype == signature["history_gap"].dtype == tf.float32
    assert set(schema.record_spec()) == {*inputs, "label", "group_id"}
    assert schema.record_spec()["history_gap"] == schema.record_spec()["history_item"]
    assert set(schema.serving_spec()) == set(inputs)  # labels are never asked for at serving
    assert schema.serving_spec()["history_gap"] == tf.io.RaggedFeature(tf.float32)


def test_what_is_known_of_behaviors_alone_is_not_embedded(schema):
    known = schema.group("behavior")
    assert [f.name for f in known] == ["history_gap", "history_size"]
    assert schema.embedded_features == tuple(f for f in schema.features if f not in known)


def test_history_features_are_tied_to_what_they_are_compared_with(schema):
    targets = [schema.target_of(f).name for f in schema.group("history")]
    assert targets == ["item", "category", "hour"]


def test_with_dim_changes_every_table(schema):
    assert {table.dim for table in schema.with_dim(16).tables} == {16}
    assert schema.with_dim(None) == schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history_length": 0}, "`history_length` must be positive. Received: 0"),
        ({"negative_rate": 0}, r"`negative_rate` must be in \(0, 1\]. Received: 0"),
        ({"negative_rate": 10}, r"`negative_rate` must be in \(0, 1\]. Received: 10"),
        ({"negative_rate": float("nan")}, r"Received: nan"),
        ({"features": [Feature("item", "candidate", "item")]}, "at least one history feature"),
        ({"features": [Feature("item", "candidate", "shop")]}, "names the table 'shop'"),
        (
            {"features": [Feature("i", "candidate", "item"), Feature("h", "history", "user")]},
            "which no candidate or context feature shares",
        ),
        ({"tables": [Table("item", "hash", "int64", 5)] * 2}, "unique names"),
        (
            {
                "features": [
                    Feature("i", "candidate", "item"),
                    Feature("h", "history", "item"),
                    Feature("c", "user", "category"),
                    Feature("b", "behavior", "category"),
                ]
            },
            "behavior feature 'b' must have a table of its own. Received: 'category'",
        ),
    ],
)
def test_wrong_schemas_are_refused(schema, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(schema, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("item", "lookup", "int64", 5), "`kind` must be one of"),
        (("item", "hash", "float32", 5), "`dtype` of a hash table must be one of"),
        (("item", "hash", "int64", 1), "`rows` must be in"),
        (("item", "hash", "int64", 2**31), "`rows` must be in"),
        (("item", "hash", "int64", 5, 0), "`dim` must be a positive integer"),
        (("item", "hash", "int64", 5, "8"), "`dim` must be a positive integer"),
    ],
)
def test_wrong_tables_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Table(*arguments)


@pytest.mark.parametrize(
    ("kind", "tiers", "message"),
    [
        (
            "hash",
            (3,),
            r"`tiers` are for a vocabulary. Received: \(3,\) \(table 'item', kind 'hash'",
        ),
        ("vocabulary", (4, 3), r"`tiers` must be rows from 2 on, none below the one before it"),
        ("vocabulary", (1,), r"Received: \(1,\) \(table 'item'\)"),
    ],
)
def test_wrong_tiers_are_refused(kind, tiers, message):
    with pytest.raises(ValueError, match=message):
        Table("item", kind, "int64", 5, tiers=tiers)


def test_one_value_may_fill_two_tiers():
    assert Table("item", "vocabulary", "int64", 5, tiers=[3, 3]).tiers == (3, 3)


def test_wrong_features_are_refused():
    with pytest.raises(ValueError, match="`group` must be one of"):
        Feature("item", "target", "item")
    with pytest.raises(ValueError, match="reserved name"):
        Feature("label", "candidate", "item")


@pytest.mark.parametrize("name", ["a/b", "a.b", "", "é"])
def test_names_are_fit_for_files_and_layers(name):
    with pytest.raises(ValueError, match="`name` must be of letters"):
        Feature(name, "candidate", "item")
    with pytest.raises(ValueError, match="`name` must be of letters"):
        Table(name, "hash", "int64", 5)


def test_digest_tells_rows_of_another_meaning(schema, tmp_path):
    (tmp_path / "vocabularies").mkdir()
    for name in ("hour", "item", "category"):
        (tmp_path / "vocabularies" / f"{name}.txt").write_text("1\n2\n")
    schema = dataclasses.replace(schema, directory=str(tmp_path))
    digest = schema.digest()
    assert dataclasses.replace(schema, history_length=3, negative_rate=0.1).digest() == digest
    item = dataclasses.replace(schema.table("item"), tiers=(10,))
    tables = [item if table.name == "item" else table for table in schema.tables]
    assert dataclasses.replace(schema, tables=tables).digest() != digest
    (tmp_path / "vocabularies" / "item.txt").write_text("2\n1\n")
    assert schema.digest() != digest


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"schema\.json is missing: expected a directory"):
        Schema.load(tmp_path)
    (tmp_path / "schema.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(ValueError, match=r"schema\.json is not a schema"):
        Schema.load(tmp_path)
