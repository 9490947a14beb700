"""The graph's lookup and the preparation's encoding are the same function."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.datasets.vocabularies import (
    Boundaries,
    HashBuckets,
    Numbers,
    Vocabulary,
)
from tfrec_diffusion.schema import Feature, Schema, Table
from tfrec_diffusion.serving.lookup import RequestLookup

IDS = np.array([7, 0, 12345678901, 8, -1, -7])
TEXTS = np.array(["a\tb", "", " a", "漢字", "never seen", "x,y"], object)
NUMBERS = np.array([1.0, 0.999, 2.5, np.nan, -np.inf, 1e30], np.float32)


def lookup(vocabulary, directory, history_length=6):
    vocabulary.save(directory)
    features = [Feature("x", "candidate", "x"), Feature("history_x", "history", "x")]
    schema = Schema("s", features, [vocabulary.table()], history_length, str(directory))
    return RequestLookup(schema)


@pytest.mark.parametrize(
    ("vocabulary", "values", "rows"),
    [
        (Vocabulary("x", "int64", [7, 12345678901, 0]), IDS, [2, 4, 3, 1, 0, 1]),
        (Vocabulary("x", "string", ["x,y", "a\tb", " a", "漢字"]), TEXTS, [3, 0, 4, 5, 1, 2]),
        (Vocabulary("x", "int64", []), IDS, [1, 1, 1, 1, 0, 1]),
        (HashBuckets("x", "int64", 1000), IDS, None),
        (HashBuckets("x", "string", 1000), TEXTS, None),
        (Boundaries("x", [1.0, 2.5]), NUMBERS, [3, 2, 4, 0, 2, 4]),
        (Boundaries("x", []), NUMBERS, [2, 2, 2, 0, 2, 2]),
    ],
)
def test_equals_the_encoding_of_the_records(vocabulary, values, rows, tmp_path):
    looked_up = lookup(vocabulary, tmp_path)({"x": values[None], "history_x": values[None]})
    encoded = vocabulary.encode(values)
    if rows is not None:
        assert encoded.tolist() == rows
    assert looked_up["x"].dtype == "int32"
    assert looked_up["x"].numpy()[0].tolist() == encoded.tolist()
    real = encoded[encoded != 0].tolist()
    assert looked_up["history_x"].numpy()[0].tolist() == real + [0] * (len(encoded) - len(real))
    assert encoded.max() < vocabulary.table().rows


def test_of_a_long_history_the_newest_count(tmp_path):
    look_up = lookup(Vocabulary("x", "int64", [10, 11, 12, 13]), tmp_path, history_length=2)
    history = tf.constant([[10, 11, 12, 13], [10, 11, 12, -1], [13, -1, -1, -1], [-1, -1, -1, -1]])
    rows = look_up({"x": tf.zeros((4, 1), tf.int64), "history_x": tf.cast(history, tf.int64)})
    assert rows["history_x"].numpy().tolist() == [[4, 5], [3, 4], [5, 0], [0, 0]]


def test_a_history_may_be_padded_anywhere_and_comes_out_padded_on_the_right(tmp_path):
    look_up = lookup(Vocabulary("x", "int64", [10, 11, 12, 13]), tmp_path, history_length=3)
    history = np.array([[-1, -1, 10, 11], [10, -1, 11, -1], [10, 11, -1, 12], [10, 11, 12, 13]])
    rows = look_up({"x": np.zeros((4, 1), int), "history_x": history})
    expected = [[2, 3, 0], [2, 3, 0], [2, 3, 4], [3, 4, 5]]
    assert rows["history_x"].numpy().tolist() == expected


def test_nothing_is_nothing(tmp_path):
    look_up = lookup(Vocabulary("x", "int64", [10]), tmp_path)
    for requests, candidates, behaviors in ((2, 3, 0), (2, 0, 1), (0, 3, 4), (0, 0, 0)):
        x, history = np.full((requests, candidates), 10), np.full((requests, behaviors), 10)
        rows = look_up({"x": x, "history_x": history})
        assert rows["x"].shape == (requests, candidates)
        assert rows["history_x"].shape == (requests, max(behaviors, 1))
    assert look_up({"x": np.ones((2, 1), int), "history_x": np.ones((2, 0), int)})[
        "history_x"
    ].numpy().tolist() == [[0], [0]]


@pytest.mark.parametrize("lines", [1, 3])
def test_a_vocabulary_of_another_size_is_refused(lines, tmp_path):
    (tmp_path / "vocabularies").mkdir()
    text = "".join(f"{10 + i}\n" for i in range(lines))
    (tmp_path / "vocabularies" / "x.txt").write_text(text)
    features = [Feature("x", "candidate", "x"), Feature("history_x", "history", "x")]
    schema = Schema("s", features, [Table("x", "vocabulary", "int64", 4)], 6, str(tmp_path))
    with pytest.raises(ValueError, match=f"must hold the 2 values of the table 'x'. .*: {lines}"):
        RequestLookup(schema)


def test_what_is_known_of_behaviors_is_cut_with_them(tmp_path):
    items = Vocabulary("x", "int64", [10, 11, 12])
    items.save(tmp_path)
    features = [
        Feature("x", "candidate", "x"),
        Feature("history_x", "history", "x"),
        Feature("history_gap", "behavior", "gap"),
    ]
    tables = [items.table(), Boundaries("gap", [30.0]).table()]
    look_up = RequestLookup(Schema("s", features, tables, 2, str(tmp_path)))
    rows = look_up(
        {
            "x": np.array([[10], [10], [10]]),
            "history_x": np.array([[10, 11, 12], [10, 11, -1], [10, -1, -1]]),
            "history_gap": np.array([[np.nan, 30, 5], [np.nan, 29.9, np.nan], [np.nan] * 3], "f"),
        }
    )
    assert rows["history_gap"].dtype == "int32"
    assert rows["history_gap"].numpy().tolist() == [[3, 2], [0, 2], [0, 0]]


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocabularies/x\.txt is missing: expected"):
        vocabulary = Vocabulary("x", "int64", [1])
        features = [Feature("x", "candidate", "x"), Feature("history_x", "history", "x")]
        RequestLookup(Schema("s", features, [vocabulary.table()], 2, str(tmp_path)))


def test_numbers_are_as_the_records_have_them(tmp_path):
    numbers = Numbers("x", mean=2.0, deviation=3.0)
    table = numbers.table()
    assert (table.kind, table.mean, table.deviation, table.rows) == ("number", 2.0, 3.0, 2)
    features = [
        Feature("k", "candidate", "k"),
        Feature("x", "candidate", "x"),
        Feature("history_k", "history", "k"),
        Feature("history_x", "history", "x"),
    ]
    tables = [HashBuckets("k", "int64", 10).table(), table]
    look_up = RequestLookup(Schema("s", features, tables, 2, str(tmp_path)))
    keys = np.array([[7, 8, -1, 9]])
    raw = np.array([[1.5, np.nan, 5.0, -np.inf]], "f")
    found = look_up({"k": keys, "x": raw, "history_k": keys, "history_x": raw})
    np.testing.assert_array_equal(found["x"], numbers.encode(raw))
    np.testing.assert_array_equal(found["x"], [[1.5, np.nan, 5.0, np.nan]])
    # The two newest real behaviors are the second and the fourth.
    np.testing.assert_array_equal(found["history_x"], [[np.nan, np.nan]])


def test_of_several_values_as_many_count_as_training_saw(tmp_path):
    features = [
        Feature("k", "candidate", "k"),
        Feature("tags", "candidate", "tag", values=2),
        Feature("history_k", "history", "k"),
        Feature("history_tags", "history", "tag", values=2),
    ]
    tables = [
        HashBuckets("k", "int64", 10).table(),
        Table("tag", "vocabulary", "string", rows=5),
    ]
    Vocabulary("tag", "string", ["a", "b", "c"]).save(tmp_path)
    look_up = RequestLookup(Schema("s", features, tables, 1, str(tmp_path)))
    tags = np.array([[["b", "x", "c"], ["", "a", ""]]], object)
    keys = np.array([[7, 8]])
    found = look_up({"k": keys, "tags": tags, "history_k": keys, "history_tags": tags})
    assert found["tags"].numpy().tolist() == [[[3, 1], [0, 2]]]
    assert found["history_tags"].numpy().tolist() == [[[0, 2]]]
