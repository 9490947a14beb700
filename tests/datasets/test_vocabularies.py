import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.datasets.vocabularies import (
    Boundaries,
    HashBuckets,
    Vocabulary,
    has_line_break,
)


def test_vocabulary_is_ordered_by_count_then_value():
    vocabulary = Vocabulary.from_counts("x", "int64", [7, 5, 9, 3], [2, 4, 4, 1], min_count=2)
    assert vocabulary.values.tolist() == [5, 9, 7]
    assert vocabulary.encode([5, 9, 7, 3, 1000, -1]).tolist() == [2, 3, 4, 1, 1, 0]
    assert vocabulary.table().rows == 5


@pytest.mark.parametrize(
    ("tiers", "starts"),
    [
        (1, ()),
        # 5 and 3 of 12 are seen by the first two: they reach a half, and the first a third.
        (2, (4,)),
        (3, (3, 4)),
    ],
)
def test_tiers_of_popularity_share_what_training_sees(tiers, starts):
    vocabulary = Vocabulary.from_counts("x", "int64", [7, 8, 9, 6], [1, 5, 3, 3], tiers=tiers)
    assert vocabulary.values.tolist() == [8, 6, 9, 7]
    assert vocabulary.tiers == vocabulary.table().tiers == starts


def test_what_gets_no_row_is_of_the_last_tier():
    # A half of all 12 is what 4, 1 and 1 hold together; of the kept 6 it would be what 4 holds.
    values, counts = [1, 2, 3, -1], [4, 1, 1, 6]
    assert Vocabulary.from_counts("x", "int64", values, counts, tiers=2).tiers == (5,)
    assert Vocabulary.from_counts("x", "int64", values[:3], counts[:3], tiers=2).tiers == (3,)


def test_text_keeps_its_spelling(tmp_path):
    values = ["b ", "a", "É", "02", "2", " "]
    vocabulary = Vocabulary.from_counts("x", "string", values, [1] * 6)
    assert vocabulary.values.tolist() == [" ", "02", "2", "a", "b ", "É"]
    vocabulary.save(tmp_path)
    lines = (tmp_path / "vocabularies" / "x.txt").read_bytes().decode().split("\n")
    assert lines == [" ", "02", "2", "a", "b ", "É", ""]


def test_missing_values_and_line_breaks_get_no_row():
    texts = ["", "a\nb", "a\r", "a\u2028b", "ok"]
    vocabulary = Vocabulary.from_counts("x", "string", texts, [9, 9, 9, 9, 1])
    assert vocabulary.values.tolist() == ["ok"]
    assert vocabulary.encode(np.array(texts, object)).tolist() == [0, 1, 1, 1, 2]
    assert has_line_break(texts).tolist() == [False, True, True, True, False]


def test_vocabulary_rows_are_those_of_a_lookup_in_the_saved_file(tmp_path):
    vocabulary = Vocabulary.from_counts("x", "string", ["b ", "a", "é", "02"], [1, 2, 3, 3])
    vocabulary.save(tmp_path)
    lookup = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "vocabularies" / "x.txt"),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        default_value=-1,
    )
    texts = ["b ", "b", "a", "é", "02", "2"]
    expected = lookup.lookup(tf.constant(texts)).numpy() + 2
    np.testing.assert_array_equal(vocabulary.encode(texts), expected)


@pytest.mark.parametrize(
    ("dtype", "values", "missing"),
    [("int64", [12, 0, 2**60, -7], -1), ("string", ["a", "é", "12", " "], "")],
)
def test_hash_is_of_the_value_as_text(dtype, values, missing):
    text = tf.constant([str(value) for value in values])
    expected = 2 + tf.strings.to_hash_bucket_fast(text, 5).numpy()
    buckets = HashBuckets("x", dtype, 5)
    assert buckets.table().rows == 7
    np.testing.assert_array_equal(buckets.encode([*values, missing, values[0]])[:4], expected)
    assert buckets.encode([*values, missing])[4] == 0


def test_boundaries_count_those_at_or_below():
    boundaries = Boundaries("x", [1.0, 2.5])
    assert boundaries.encode([0.5, 1.0, 2.4, 2.5, 9.0, np.nan]).tolist() == [2, 3, 3, 4, 4, 0]
    assert boundaries.table().rows == 5
    assert boundaries.table().boundaries == (1.0, 2.5)


def test_boundaries_part_the_training_values_equally():
    # 0 0 0 0 | 1 2 3 4 | 5 6 7 8 -> each third begins at 1 and 5.
    values, counts = [0, 1, 2, 3, 4, 5, 6, 7, 8, np.nan], [4, 1, 1, 1, 1, 1, 1, 1, 1, 50]
    boundaries = Boundaries.from_counts("x", values, counts, buckets=3)
    assert boundaries.boundaries.tolist() == [1, 5]


def test_boundaries_of_few_values_are_fewer():
    assert Boundaries.from_counts("x", [3, 1], [1, 1], buckets=4).boundaries.tolist() == [3]
    assert Boundaries.from_counts("x", [3], [9], buckets=4).boundaries.tolist() == []
    assert Boundaries.from_counts("x", [], [], buckets=4).encode([5.0]).tolist() == [2]


def test_any_shape_and_none():
    for vocabulary in (
        Vocabulary("x", "int64", [4, 5]),
        HashBuckets("x", "int64", 3),
        Boundaries("x", [1]),
    ):
        rows = vocabulary.encode(np.array([[4, 5], [6, 4]]))
        assert rows.shape == (2, 2)
        assert rows.dtype == np.int32
        assert vocabulary.encode(np.zeros((0,), np.int64)).shape == (0,)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`buckets` must be positive"):
        HashBuckets("x", "int64", 0)
    with pytest.raises(ValueError, match="`boundaries` must be increasing"):
        Boundaries("x", [2, 1])
    with pytest.raises(ValueError, match="`buckets` must be at least 2"):
        Boundaries.from_counts("x", [1], [1], buckets=1)
